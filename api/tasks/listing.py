"""The list of tasks: `GET /DM/async/status`, its filters and pages, strict about every name and value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.context import In
from api.http import openapi
from api.http.query import read_filters
from api.http.responses import json_response
from api.tasks.showing import show_tasks
from api.views import TaskView
from datamanager import errors
from datamanager.domain.states import Phase, TransferKind, TransferStatus
from datamanager.domain.timing import Priority, read_time
from models.transfers.listing import TransferSelection, select_transfers

LIMIT_DEFAULT = 100
LIMIT_MAX = 1000
SORTABLE = ("-created", "created")

PARAMETERS: dict[str, str] = {
    "status": f"One of {', '.join(TransferStatus)}.",
    "kind": f"One of {', '.join(TransferKind)}.",
    "phase": f"One of {', '.join(Phase)}.",
    "priority": f"One of {', '.join(Priority)}.",
    "machine": "Tasks from or to this machine (not batches, which may touch many).",
    "group": "Tasks of objects of this group.",
    "object": "Tasks that work on this object, or make it.",
    "since": "Asked for at this time or later; RFC 3339 with a zone, such as 2026-01-31T12:00:00Z.",
    "until": "Asked for before this time; RFC 3339 with a zone.",
    "sort": f"One of {', '.join(SORTABLE)}. Default -created: the newest first.",
    "limit": f"Tasks in a page, 1 to {LIMIT_MAX}; default {LIMIT_DEFAULT}.",
    "cursor": "Where the page before ended; taken from its `Link` header.",
}

router = APIRouter(prefix="/DM/async", tags=["tasks"])


@router.get(
    "/status",
    summary="List tasks",
    response_class=Response,
    responses=openapi.json_answer("TaskView", "One page of tasks.", errors.InvalidRequest, many=True),
    openapi_extra={
        "parameters": [
            {"name": name, "in": "query", "required": False, "description": text, "schema": {"type": "string"}}
            for name, text in PARAMETERS.items()
        ]
    },
)
@router.get("/status/", include_in_schema=False)
async def list_tasks(request: Request, context: In) -> Response:
    """List tasks, the newest first, with a `Link` header with `rel="next"` while there is more."""
    given = request.query_params.multi_items()
    wanted = selection_of(given)

    def look(session: Session) -> tuple[list[TaskView], str | None]:
        rows, cursor = select_transfers(session, wanted)
        return show_tasks(session, context, rows), cursor

    views, cursor = await context.reading(look)
    headers = {}
    if cursor is not None:
        query = urlencode([*((name, value) for name, value in given if name != "cursor"), ("cursor", cursor)])
        headers["Link"] = f'</DM/async/status?{query}>; rel="next"'
    return json_response(views, headers=headers)


def selection_of(items: Iterable[tuple[str, str]]) -> TransferSelection:
    """Read query parameters. Raises: InvalidRequest, which names each one that is unknown or wrong."""
    given = read_filters(items, PARAMETERS, READERS)
    oldest_first = given.pop("sort", SORTABLE[0]) == "created"
    return TransferSelection(oldest_first=oldest_first, **{"limit": LIMIT_DEFAULT, **given})


def _one_of(kind: type[StrEnum]) -> Callable[[str], StrEnum]:
    def read(value: str) -> StrEnum:
        for one in kind:
            if one.value.lower() == value.lower():
                return one
        raise ValueError(f"must be one of {', '.join(kind)}")

    return read


def _object(value: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        raise ValueError("must be an object's identifier") from None


def _sort(value: str) -> str:
    if value not in SORTABLE:
        raise ValueError(f"must be one of {', '.join(SORTABLE)}")
    return value


def _limit(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) <= 9 and 1 <= int(value) <= LIMIT_MAX):
        raise ValueError(f"must be a number from 1 to {LIMIT_MAX}")
    return int(value)


READERS: dict[str, Callable[[str], object]] = {
    "status": _one_of(TransferStatus),
    "kind": _one_of(TransferKind),
    "phase": _one_of(Phase),
    "priority": _one_of(Priority),
    "object": _object,
    "since": read_time,
    "until": read_time,
    "sort": _sort,
    "limit": _limit,
}
"""How a parameter's text becomes its value; raises ValueError. The others are texts."""
