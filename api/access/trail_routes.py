"""The audit trail: its rows, filtered and in pages."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from pydantic import BeforeValidator, Field
from starlette.requests import Request
from starlette.responses import Response
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from api.access.asking import requires
from api.context import In
from api.http import openapi
from api.http.query import Cursor, Query, Time, choice, number, one_of, page_response, page_size, read_query, rendered
from api.http.responses import view_of
from datamanager import errors
from models.access.trail import TrailOutcome
from models.access.trail_listing import TrailSelection, select_trail
from models.tables import TrailEntry

ROWS_MAX = 1000
router = APIRouter(prefix="/DM", tags=["access"], default_response_class=Response)


class TrailView(TypedDict):
    """A row of the audit trail; `number` and `hash` are null for about a second, until it is linked to the chain."""

    number: int | None
    time: datetime
    person: str | None
    means: str
    credential: str | None
    origin: str
    request_id: str | None
    action: str
    object: UUID | None
    task: UUID | None
    subject: str | None
    outcome: str
    code: str | None
    acted_as: str | None
    certificate: str | None
    counts: dict[str, int] | None
    hash: str | None


def _identifier(value: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        raise ValueError("must be an identifier") from None


Identifier = Annotated[UUID | None, BeforeValidator(_identifier)]


class TrailQuery(Query):
    """Which rows."""

    person: str | None = Field(None, description="What this person did.")
    object: Identifier = Field(None, description="What was done to this object.")
    task: Identifier = Field(None, description="The request and the end of this task.")
    action: str | None = Field(None, description="Rows of this action: a kind of task, or a method and a path.")
    outcome: Annotated[TrailOutcome | None, one_of(TrailOutcome)] = choice(TrailOutcome)
    since: Time | None = Field(
        None, description="Written at this time or later; RFC 3339 with a zone, such as 2026-01-31T12:00:00Z."
    )
    until: Time | None = Field(None, description="Written before this time; RFC 3339 with a zone.")
    limit: Annotated[int, number(1, ROWS_MAX)] = page_size("Rows", 100, ROWS_MAX)
    cursor: Cursor = None


@router.get(
    "/trail",
    summary="Show the audit trail",
    dependencies=[requires("admin:trail")],
    responses=openapi.json_answer(TrailView, "One page of rows.", errors.InvalidRequest, many=True),
    openapi_extra=openapi.query(TrailQuery),
)
async def show_trail(request: Request, context: In) -> Response:
    """Show who did what, the newest first, with a `Link` header with `rel="next"` while there is more. With filters a
    page may be short, or empty, although there is more.
    """
    given = request.query_params.multi_items()
    wanted = TrailSelection(**read_query(given, TrailQuery).model_dump())
    texts, cursor = await context.reading(lambda session: select_trail(session, wanted, rendered(trail_view)))
    return page_response("/DM/trail", given, texts, cursor)


def trail_view(row: TrailEntry) -> TrailView:
    """Return what clients see of a row."""
    return view_of(TrailView, row, object=row.object_id, task=row.transfer_id)
