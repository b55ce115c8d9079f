"""Quotas: what the caller and the caller's groups may have, and have."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from api.context import In
from api.http import openapi
from api.http.responses import json_response
from datamanager.identity.grant import Means
from models.access.requester import requester
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
async def show_quota(context: In) -> Response:
    """Show what the caller and the caller's groups may have, and have, where that is limited. Without authentication:
    all groups that quotas.toml names.
    """
    by, quotas = requester(), context.quotas
    groups = quotas.groups if by.means == Means.NONE else by.groups
    return json_response(await context.reading(lambda session: shown_quotas(session, quotas, by.person, groups)))
