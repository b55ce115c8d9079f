"""Quotas: what the caller and the caller's groups may have, and have."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from starlette.responses import Response
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from api.access.asking import requires
from api.context import In
from api.http import openapi
from api.http.responses import json_response
from datamanager.identity.grant import Grant, Means
from models.access.permission import maker
from models.transfers.reservations import shown_quotas

router = APIRouter(prefix="/DM", tags=["access"], default_response_class=Response)


class UseView(TypedDict):
    """How much there is, and how much there may be; null: it is not limited."""

    used: int
    limit: int | None


class QuotaView(TypedDict):
    """The quota of a group or person: `objects` and `bytes` with what open tasks may add, `queued` tasks that have not
    ended.
    """

    kind: str
    name: str
    objects: UseView
    bytes: UseView
    queued: UseView
    requests_per_second: int | None


@router.get(
    "/quota",
    summary="Show quotas",
    responses=openapi.json_answer(QuotaView, "Those that apply to the caller.", many=True),
)
async def show_quota(context: In, asked: Annotated[Grant, requires()]) -> Response:
    """Show what the caller and the caller's groups may have, and have, where that is limited. Without authentication:
    all groups that quotas.toml names.
    """
    quotas, person = context.quotas, maker(asked)
    groups = quotas.groups if asked.means is Means.NONE else asked.groups
    return json_response(await context.reading(lambda session: shown_quotas(session, quotas, person, groups)))
