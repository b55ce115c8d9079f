"""What users do to tasks under way: cancel, pause, resume."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from anyio.to_thread import run_sync
from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.context import Context, In
from api.http import openapi
from api.http.idempotency import Slot, once
from api.http.ids import task_id_of
from api.http.responses import json_response
from api.tasks.showing import show_task
from api.views import TaskView
from datamanager import errors
from datamanager.domain.requests import Request as Nothing
from datamanager.messaging.wake import ring
from models.tables import Transfer
from models.transfers import cancel_pause

router = APIRouter(prefix="/DM/async", tags=["tasks"])

_TASK = (errors.TaskNotFound, errors.TaskEnded, errors.IdempotencyMismatch)
_ANSWERS = {
    **openapi.json_answer("TaskView", "The task: it is done.", *_TASK),
    202: {**openapi.json_answer("TaskView", "The task: its mover does it within seconds.")[200]},
}


@router.delete(
    "/status/{task}",
    summary="Cancel a task",
    response_class=Response,
    responses=_ANSWERS,
    openapi_extra=openapi.body(None, prefers=False),
)
async def cancel(task: str, request: Request, context: In) -> Response:
    """End a task in ERROR with the code `cancelled`: its partial file goes, its source stays.

    200 when it has ended by that; 202 when a mover works on it, which stops it within seconds. A task whose file has
    its name already goes on to its end, and may end COMPLETE.
    """
    return await _change(context, request, task, cancel_pause.cancel, lambda row: row.ended is not None)


@router.post(
    "/{task}/pause",
    summary="Pause a task",
    response_class=Response,
    responses=_ANSWERS,
    openapi_extra=openapi.body(None, prefers=False),
)
async def pause(task: str, request: Request, context: In) -> Response:
    """Keep a task from going on until it is resumed. What it has moved by then is kept; it is QUEUED meanwhile.

    200 when it is paused; 202 when a mover works on it, which stops it within seconds.
    """
    return await _change(context, request, task, cancel_pause.pause, lambda row: row.paused)


@router.post(
    "/{task}/resume",
    summary="Resume a task",
    response_class=Response,
    responses=openapi.json_answer("TaskView", "The task.", *_TASK),
    openapi_extra=openapi.body(None, prefers=False),
)
async def resume(task: str, request: Request, context: In) -> Response:
    """Let a paused task go on where it was."""
    return await _change(context, request, task, cancel_pause.resume, lambda _: True)


async def _change(
    context: Context,
    request: Request,
    task: str,
    change: Callable[[Session, UUID], Transfer],
    done: Callable[[Transfer], bool],
) -> Response:
    """Change a task and tell the movers of this host, or those who wait for its end."""
    task_id = task_id_of(task)

    def inside(session: Session) -> tuple[TaskView, bool]:
        row = change(session, task_id)
        return show_task(session, context, row), done(row)

    async def work(_: Slot) -> Response:
        view, at_once = await context.writing(inside)
        context.posted()
        if view["ended"] is not None:
            context.waiter.heard(f"ended:{task_id}")
        await run_sync(ring, context.run_directory, "mover", "queued")
        return json_response(view, 200 if at_once else 202)

    return await once(context, request, Nothing(), work)
