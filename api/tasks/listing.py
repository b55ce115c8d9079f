"""The lists of tasks, and of a batch's items: filters and pages, strict about every name and value."""

from __future__ import annotations

from typing import Annotated, Literal
from uuid import UUID

import orjson
from fastapi import APIRouter
from pydantic import BeforeValidator, Field
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.context import In
from api.http import openapi
from api.http.query import (
    Cursor,
    Position,
    Query,
    Time,
    choice,
    number,
    one_of,
    page_response,
    page_size,
    read_query,
    rendered,
)
from api.http.request_parts import task_id_of
from api.tasks.views import ItemView, TaskView, item_view, show_tasks, weight_of_task
from datamanager import errors
from datamanager.domain.fields import Priority
from datamanager.domain.states import Phase, TransferKind, TransferStatus
from models.access.visibility import ALL
from models.core.cursors import Rendering
from models.transfers.items import page_of_items
from models.transfers.lookup import TransferSelection, get_transfer, select_transfers

TASKS_MAX = 1000
ITEMS_MAX = 10_000
SORTABLE = ("-created", "created")
ITEM_STATUS = (TransferStatus.QUEUED, TransferStatus.COMPLETE, TransferStatus.ERROR)
_ITEM_STATUS = "QUEUED, COMPLETE or ERROR"

router = APIRouter(prefix="/DM/async", default_response_class=Response)


def _object(value: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        raise ValueError("must be an object's identifier") from None


def _sort(value: str) -> str:
    if value not in SORTABLE:
        raise ValueError(f"must be one of {', '.join(SORTABLE)}")
    return value


class TaskQuery(Query):
    """Which tasks, in which order."""

    status: Annotated[TransferStatus | None, one_of(TransferStatus)] = choice(TransferStatus)
    kind: Annotated[TransferKind | None, one_of(TransferKind)] = choice(TransferKind)
    phase: Annotated[Phase | None, one_of(Phase)] = choice(Phase)
    priority: Annotated[Priority | None, one_of(Priority)] = choice(Priority)
    machine: str | None = Field(None, description="Tasks from or to this machine (not batches, which may touch many).")
    group: str | None = Field(None, description="Tasks of objects of this group.")
    object: Annotated[UUID | None, BeforeValidator(_object)] = Field(
        None, description="Tasks that use or create this object."
    )
    since: Time | None = Field(
        None, description="Requested at this time or later; RFC 3339 with a zone, such as 2026-01-31T12:00:00Z."
    )
    until: Time | None = Field(None, description="Requested before this time; RFC 3339 with a zone.")
    sort: Annotated[Literal["-created", "created"], BeforeValidator(_sort)] = Field(
        "-created", description=f"One of {', '.join(SORTABLE)}. Default -created: the newest first."
    )
    limit: Annotated[int, number(1, TASKS_MAX)] = page_size("Tasks", 100, TASKS_MAX)
    cursor: Cursor = None


class ItemQuery(Query):
    """Which items of a batch."""

    status: Annotated[TransferStatus | None, one_of(ITEM_STATUS, f"must be {_ITEM_STATUS}")] = Field(
        None, description=f"Items that are {_ITEM_STATUS}."
    )
    limit: Annotated[int, number(1, ITEMS_MAX)] = page_size("Items", 1000, ITEMS_MAX)
    cursor: Position = -1


@router.get(
    "/status",
    tags=["tasks"],
    summary="List tasks",
    responses=openapi.json_answer(TaskView, "One page of tasks.", errors.InvalidRequest, many=True),
    openapi_extra=openapi.query(TaskQuery),
)
@router.get("/status/", include_in_schema=False, openapi_extra=openapi.query(TaskQuery))
async def list_tasks(request: Request, context: In) -> Response:
    """List tasks, the newest first, with a `Link` header with `rel="next"` while there is more."""
    given = request.query_params.multi_items()
    query = read_query(given, TaskQuery)
    wanted = TransferSelection(oldest_first=query.sort == "created", **query.model_dump(exclude={"sort"}))

    def look(session: Session) -> tuple[list[bytes], str | None]:
        rows, cursor = select_transfers(session, wanted, ALL, Rendering(weigh=weight_of_task))
        return [orjson.dumps(view) for view in show_tasks(session, context, rows)], cursor

    return page_response("/DM/async/status", given, *await context.reading(look))


@router.get(
    "/status/{task}/items",
    tags=["batches"],
    summary="List a batch's items",
    responses=openapi.json_answer(
        ItemView, "One page of items, by number.", errors.TaskNotFound, errors.InvalidRequest, many=True
    ),
    openapi_extra=openapi.query(ItemQuery),
)
async def list_items(task: str, request: Request, context: In) -> Response:
    """List the status of a batch's items, in the order of the request, with a `Link` header with `rel="next"` while
    there is more. A task that is not a batch has none.
    """
    task_id, query = task_id_of(task), read_query(request.query_params.multi_items(), ItemQuery)

    shown = rendered(item_view)

    def look(session: Session) -> tuple[list[bytes], int | None]:
        row = get_transfer(session, task_id, ALL)
        return page_of_items(session, row, status=query.status, after=query.cursor, limit=query.limit, rendering=shown)

    given = [("status", query.status), ("limit", query.limit)]
    repeated = [(name, str(value)) for name, value in given if value is not None]
    return page_response(f"/DM/async/status/{task_id}/items", repeated, *await context.reading(look))
