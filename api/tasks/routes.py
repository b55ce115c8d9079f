"""The endpoints that answer at once: the same orders as tasks, and how a task fares."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.context import In
from api.http import openapi
from api.http.bodies import read_request
from api.http.ids import object_id_of, task_id_of
from api.http.responses import json_response
from api.tasks.showing import show_task
from api.transfers.submit import enqueue
from api.views import TaskView
from datamanager import errors
from datamanager.domain.requests import CopyRequest, GetExternalRequest, MoveRequest
from datamanager.domain.states import TransferKind
from models.transfers.submission import Order, get_transfer

router = APIRouter(prefix="/DM/async", tags=["tasks"])


def _accepted(*classes: type[errors.DataManagerError]) -> dict[str, Any]:
    responses = {
        **openapi.task(status=200),
        **openapi.task(status=202),
        **openapi.problems(*openapi.BODY, *classes),
    }
    return {"response_class": Response, "responses": responses}


@router.post(
    "/copy/{uuid}",
    summary="Copy an object as a task",
    openapi_extra=openapi.body(CopyRequest),
    **_accepted(*openapi.OBJECT, *openapi.PLACE),
)
async def copy(uuid: str, request: Request, context: In) -> Response:
    """Accept a copy; the task's `result` will be the new object's identifier."""
    object_id = object_id_of(uuid)
    fields = await read_request(request, CopyRequest)
    return await enqueue(context, request, Order(TransferKind.COPY, fields, object_id))


@router.post(
    "/move/{uuid}",
    summary="Move an object as a task",
    openapi_extra=openapi.body(MoveRequest),
    **_accepted(*openapi.OBJECT, *openapi.PLACE),
)
async def move(uuid: str, request: Request, context: In) -> Response:
    """Accept a move; the task's `result` will be a message."""
    object_id = object_id_of(uuid)
    fields = await read_request(request, MoveRequest)
    return await enqueue(context, request, Order(TransferKind.MOVE, fields, object_id))


@router.post(
    "/getexternal",
    summary="Fetch a URL as a task",
    openapi_extra=openapi.body(GetExternalRequest),
    **_accepted(*openapi.PLACE, *openapi.URL),
)
@router.post("/getexternal/", include_in_schema=False)
@router.put("/getexternal", include_in_schema=False)
@router.put("/getexternal/", include_in_schema=False)
async def getexternal(request: Request, context: In) -> Response:
    """Accept a download; the task's `result` will be the new object's identifier."""
    fields = await read_request(request, GetExternalRequest)
    return await enqueue(context, request, Order(TransferKind.GETEXTERNAL, fields))


@router.get(
    "/status/{task}",
    summary="Show a task",
    response_class=Response,
    responses=openapi.json_answer("TaskView", "The task.", errors.TaskNotFound),
)
async def status(task: str, context: In) -> Response:
    """Show how a task fares: `status` is QUEUED, RUNNING, COMPLETE or ERROR, `result` what came of it."""
    task_id = task_id_of(task)

    def look(session: Session) -> TaskView:
        return show_task(session, context, get_transfer(session, task_id))

    return json_response(await context.reading(look))
