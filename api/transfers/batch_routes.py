"""Batches: many objects in one task, and how each of its items fares."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.context import In
from api.http import openapi
from api.http.bodies import read_large_request
from api.http.ids import task_id_of
from api.http.responses import json_response
from api.transfers.submit import enqueue
from api.views import ItemView, item_view
from datamanager import errors
from datamanager.domain.requests import CopyManyRequest, MoveManyRequest
from datamanager.domain.states import TransferKind, TransferStatus
from datamanager.errors import InvalidRequest
from models.transfers.items import select_items
from models.transfers.submission import Order, get_transfer

LIMIT_DEFAULT = 1000
LIMIT_MAX = 10_000

PARAMETERS: dict[str, str] = {
    "status": f"Items that are {TransferStatus.QUEUED}, {TransferStatus.COMPLETE} or {TransferStatus.ERROR}.",
    "limit": f"Items in a page, 1 to {LIMIT_MAX}; default {LIMIT_DEFAULT}.",
    "cursor": "Where the page before ended; taken from its `Link` header.",
}

router = APIRouter(prefix="/DM/async", tags=["batches"])

_ACCEPTED: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        **openapi.task(status=200),
        **openapi.task(status=202),
        **openapi.problems(*openapi.BODY, errors.ObjectNotFound, errors.UnknownMachine, errors.PathNotAllowed),
    },
}


@router.post(
    "/copy",
    summary="Copy many objects as one task",
    openapi_extra=openapi.body(CopyManyRequest, forms=False),
    **_ACCEPTED,
)
async def copy_many(request: Request, context: In) -> Response:
    """Accept copies of many objects: up to 10,000 `items`, or all that lies below a `directory`.

    A failing item fails alone, also one that can't be accepted: see the task's items. What is already at its
    destination is skipped, so a batch may be repeated.
    """
    fields = await read_large_request(request, CopyManyRequest)
    return await enqueue(context, request, Order(TransferKind.COPY_MANY, fields))


@router.post(
    "/move",
    summary="Move many objects as one task",
    openapi_extra=openapi.body(MoveManyRequest, forms=False),
    **_ACCEPTED,
)
async def move_many(request: Request, context: In) -> Response:
    """Accept moves of many objects: up to 10,000 `items`, or all that lies below a `directory`.

    A failing item fails alone, also one that can't be accepted: see the task's items. What is already at its
    destination is skipped, so a batch may be repeated.
    """
    fields = await read_large_request(request, MoveManyRequest)
    return await enqueue(context, request, Order(TransferKind.MOVE_MANY, fields))


@router.get(
    "/status/{task}/items",
    summary="List a batch's items",
    response_class=Response,
    responses=openapi.json_answer(
        "ItemView", "One page of items, by number.", errors.TaskNotFound, errors.InvalidRequest, many=True
    ),
    openapi_extra={
        "parameters": [
            {"name": name, "in": "query", "required": False, "description": text, "schema": {"type": "string"}}
            for name, text in PARAMETERS.items()
        ]
    },
)
async def list_items(task: str, request: Request, context: In) -> Response:
    """List how a batch's items fare, in the order of the request, with a `Link` header with `rel="next"` while there is
    more. A task that is no batch has none.
    """
    task_id = task_id_of(task)
    status, limit, after = _page_of(request.query_params.multi_items())

    def look(session: Session) -> list[ItemView]:
        get_transfer(session, task_id)
        rows = select_items(session, task_id, status=status, after=after, limit=limit + 1)
        return [item_view(row) for row in rows]

    items = await context.reading(look)
    headers = {}
    if len(items) > limit:
        items.pop()
        headers["Link"] = _next(task_id, status, limit, items[-1]["number"])
    return json_response(items, headers=headers)


def _next(task: UUID, status: TransferStatus | None, limit: int, last: int) -> str:
    query = {"limit": limit, "cursor": last} if status is None else {"status": status, "limit": limit, "cursor": last}
    return f'</DM/async/status/{task}/items?{urlencode(query)}>; rel="next"'


def _page_of(given: list[tuple[str, str]]) -> tuple[TransferStatus | None, int, int]:
    """Read status, limit and the number after which the page begins. Raises: InvalidRequest, which names each
    parameter that is unknown or wrong.
    """
    status, limit, after = None, LIMIT_DEFAULT, -1
    wrong: dict[str, str] = {}
    for name, value in given:
        number = int(value) if value.isascii() and value.isdecimal() and len(value) <= 9 else None
        if name not in PARAMETERS:
            wrong[name] = f"unknown; known: {', '.join(PARAMETERS)}"
        elif name == "status":
            if value.upper() in (TransferStatus.QUEUED, TransferStatus.COMPLETE, TransferStatus.ERROR):
                status = TransferStatus(value.upper())
            else:
                wrong[name] = "must be QUEUED, COMPLETE or ERROR"
        elif name == "limit":
            if number is not None and 1 <= number <= LIMIT_MAX:
                limit = number
            else:
                wrong[name] = f"must be a number from 1 to {LIMIT_MAX}"
        elif number is not None:
            after = number
        else:
            wrong[name] = "not one that this listing returned"
    if wrong:
        raise InvalidRequest("; ".join(f"{name}: {what}" for name, what in wrong.items()), wrong)
    return status, limit, after
