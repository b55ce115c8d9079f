"""Limits that are changed while transfers run: a machine's, and a task's own."""

from __future__ import annotations

from anyio.to_thread import run_sync
from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.context import Context, In
from api.http import openapi
from api.http.bodies import read_request
from api.http.idempotency import Slot, once
from api.http.ids import task_id_of
from api.http.responses import json_response
from api.tasks.showing import show_task
from api.views import TaskView, limits_view
from datamanager import errors
from datamanager.domain.limits import MachineLimitsRequest, TransferLimitsRequest
from datamanager.domain.requests import Request as Nothing
from datamanager.messaging.wake import ring
from models.machines import limits

router = APIRouter(prefix="/DM")


@router.patch(
    "/async/status/{task}",
    tags=["tasks"],
    summary="Change a task's bandwidth",
    response_class=Response,
    responses=openapi.json_answer("TaskView", "The task.", *openapi.BODY, errors.TaskNotFound, errors.TaskEnded),
    openapi_extra=openapi.body(TransferLimitsRequest, prefers=False),
)
async def limit_task(task: str, request: Request, context: In) -> Response:
    """Limit how fast a task moves bytes, or lift its limit with null. A running one follows within seconds."""
    task_id = task_id_of(task)
    fields = await read_request(request, TransferLimitsRequest)

    def change(session: Session) -> TaskView:
        return show_task(session, context, limits.change_transfer(session, task_id, fields.bandwidth))

    async def work(_: Slot) -> Response:
        return json_response(await context.writing(change))

    return await once(context, request, fields, work)


@router.patch(
    "/machines/{name}",
    tags=["machines"],
    summary="Change a machine's limits",
    response_class=Response,
    responses=openapi.json_answer("LimitsView", "The limits in force.", *openapi.BODY, errors.UnknownMachine),
    openapi_extra=openapi.body(MachineLimitsRequest, prefers=False),
)
async def limit_machine(name: str, request: Request, context: In) -> Response:
    """Change the limits of all transfers of a machine, those under way included. Null lifts a limit; what is not given
    stays as it is. They hold, whatever machines.toml says, until they are deleted.
    """
    machine = context.machines[name]
    fields = await read_request(request, MachineLimitsRequest)

    async def work(_: Slot) -> Response:
        found = await context.writing(
            lambda session: limits.change(
                session, machine, bandwidth=fields.bandwidth, max_transfers=fields.max_transfers
            )
        )
        await _tell_movers(context)
        return json_response(limits_view(name, found))

    return await once(context, request, fields, work)


@router.delete(
    "/machines/{name}/limits",
    tags=["machines"],
    summary="Set a machine's limits back",
    response_class=Response,
    responses=openapi.json_answer(
        "LimitsView", "The limits in force.", errors.UnknownMachine, errors.IdempotencyMismatch
    ),
    openapi_extra=openapi.body(None, prefers=False),
)
async def reset_machine(name: str, request: Request, context: In) -> Response:
    """Set a machine's limits back to what machines.toml says; fine when they are that already."""
    machine = context.machines[name]

    async def work(_: Slot) -> Response:
        found = await context.writing(lambda session: limits.reset(session, machine))
        await _tell_movers(context)
        return json_response(limits_view(name, found))

    return await once(context, request, Nothing(), work)


async def _tell_movers(context: Context) -> None:
    """Let the movers of this host look at the queue: more may be allowed now."""
    await run_sync(ring, context.run_directory, "mover", limits.CHANGED)
