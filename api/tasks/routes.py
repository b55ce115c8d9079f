"""Tasks one by one: their status; cancel, pause and resume them; limit their bandwidth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.access.asking import requires
from api.context import Context, In
from api.http import openapi
from api.http.idempotency import Slot, mutate
from api.http.request_parts import read_request, task_id_of
from api.http.responses import json_response, preferences
from api.tasks.views import TaskView, show_task
from api.transfers.wait import ENDED, waiter_of
from datamanager import errors
from datamanager.domain.limits import TransferLimitsRequest
from datamanager.domain.states import TransferStatus
from datamanager.identity.grant import Grant
from models.access.visibility import Visible, seen
from models.machines import limits
from models.tables import Transfer
from models.transfers import cancel_pause
from models.transfers.lookup import get_transfer

router = APIRouter(prefix="/DM/async", tags=["tasks"], default_response_class=Response)

MayRead = Annotated[Grant, requires("read:tasks")]
MayControl = Annotated[Grant, requires("control:tasks")]

_TASK: openapi.Errors = (errors.TaskNotFound, errors.TaskEnded, *openapi.BODY)
_ANSWERS = {
    **openapi.json_answer(TaskView, "The task; the change is complete.", *_TASK),
    202: {**openapi.json_answer(TaskView, "The task; its mover applies the change within seconds.")[200]},
}


@router.get(
    "/status/{task}",
    summary="Show a task",
    responses=openapi.json_answer(TaskView, "The task.", errors.TaskNotFound),
    openapi_extra=openapi.preference("`wait=n`: answer when the task has ended, after n seconds at the latest."),
)
async def status(task: str, request: Request, context: In, asked: MayRead) -> Response:
    """Show the status of a task: QUEUED, RUNNING, COMPLETE or ERROR, and its `result`."""
    task_id, visible = task_id_of(task), seen(asked, "read:tasks")

    async def shown() -> TaskView:
        return await context.reading(
            lambda session: show_task(session, context, get_transfer(session, task_id, visible))
        )

    view, preferred = await shown(), preferences(request)
    if preferred.wait is None:
        return json_response(view)
    if not TransferStatus(view["status"]).ended:
        await waiter_of(request).ended(task_id, preferred.wait)
        view = await shown()
    return json_response(view, headers={"Preference-Applied": f"wait={preferred.wait:g}"})


@router.delete("/status/{task}", summary="Cancel a task", responses=_ANSWERS, openapi_extra=openapi.body())
async def cancel(task: str, request: Request, context: In, asked: MayControl) -> Response:
    """End a task in ERROR with the code `cancelled`: its partial file goes, its source stays.

    200 when it has ended by that; 202 when a mover works on it, which stops it within seconds. A task whose file has
    its name already runs to its end, and may end COMPLETE.
    """
    response = await _change(context, request, asked, task, cancel_pause.cancel, lambda row: row.ended is not None)
    if response.status_code == 200:
        waiter_of(request).notify(f"{ENDED}{task_id_of(task)}")
    return response


@router.post("/{task}/pause", summary="Pause a task", responses=_ANSWERS, openapi_extra=openapi.body())
async def pause(task: str, request: Request, context: In, asked: MayControl) -> Response:
    """Pause a task until it is resumed. What it has moved by then is kept; it is QUEUED meanwhile.

    200 when it is paused; 202 when a mover works on it, which stops it within seconds.
    """
    return await _change(context, request, asked, task, cancel_pause.pause, lambda row: row.paused)


@router.post(
    "/{task}/resume",
    summary="Resume a task",
    responses=openapi.json_answer(TaskView, "The task.", *_TASK),
    openapi_extra=openapi.body(),
)
async def resume(task: str, request: Request, context: In, asked: MayControl) -> Response:
    """Resume a paused task where it stopped."""
    return await _change(context, request, asked, task, cancel_pause.resume, lambda _: True)


@router.patch(
    "/status/{task}",
    summary="Change a task's bandwidth",
    responses=openapi.json_answer(TaskView, "The task.", *openapi.BODY, errors.TaskNotFound, errors.TaskEnded),
    openapi_extra=openapi.body(TransferLimitsRequest),
)
async def limit_task(task: str, request: Request, context: In, asked: MayControl) -> Response:
    """Set the bandwidth limit of a task, or remove it with null. It applies to a running task within seconds."""
    task_id, fields = task_id_of(task), await read_request(request, TransferLimitsRequest)

    def change(session: Session, _: Slot) -> Response:
        row = limits.change_transfer(session, task_id, fields.bandwidth, _controlled(asked))
        return json_response(show_task(session, context, row))

    return await mutate(context, request, change, fields)


async def _change(
    context: Context,
    request: Request,
    asked: Grant,
    task: str,
    change: Callable[[Session, UUID, Visible], Transfer],
    done: Callable[[Transfer], bool],
) -> Response:
    """Change a task and notify the movers of this host; 202 while `done` is not true of it."""
    task_id = task_id_of(task)

    def inside(session: Session, _: Slot) -> Response:
        row = change(session, task_id, _controlled(asked))
        return json_response(show_task(session, context, row), 200 if done(row) else 202)

    return await mutate(context, request, inside, notify="queued")


def _controlled(asked: Grant) -> Visible:
    """Return which tasks whoever asks may control, and which they only see."""
    return seen(asked, "read:tasks", to="control:tasks")
