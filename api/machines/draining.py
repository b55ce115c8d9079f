"""Draining: an operator holds a machine's transfers back, before its maintenance say, and lets them run again."""

from __future__ import annotations

from collections.abc import Callable

from anyio.to_thread import run_sync
from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.context import Context, In
from api.http import openapi
from api.http.idempotency import Slot, once
from api.http.responses import json_response
from api.views import health_view
from datamanager import errors
from datamanager.domain.requests import DeleteRequest
from datamanager.messaging.wake import ring
from models.machines import health
from models.machines.health import Health

router = APIRouter(prefix="/DM/machines", tags=["machines"])
ANSWER = openapi.json_answer("HealthView", "The machine's health.", errors.UnknownMachine, errors.IdempotencyMismatch)


@router.post(
    "/{name}/drain",
    summary="Hold a machine's transfers back",
    response_class=Response,
    responses=ANSWER,
    openapi_extra=openapi.body(None, prefers=False),
)
async def drain_machine(name: str, request: Request, context: In) -> Response:
    """Take no more transfers of a machine: they wait QUEUED, those that run go on to their end. It holds, over restarts
    too, until it is undrained. Fine when it is drained already.
    """
    return await _change(context, request, name, health.drain)


@router.post(
    "/{name}/undrain",
    summary="Let a machine's transfers run again",
    response_class=Response,
    responses=ANSWER,
    openapi_extra=openapi.body(None, prefers=False),
)
async def undrain_machine(name: str, request: Request, context: In) -> Response:
    """Take a machine's transfers again; fine when it is not drained."""
    return await _change(context, request, name, health.undrain)


async def _change(context: Context, request: Request, name: str, change: Callable[[Session, str], Health]) -> Response:
    machine = context.machines[name]

    async def work(_: Slot) -> Response:
        found = await context.writing(lambda session: change(session, machine.name))
        await run_sync(ring, context.run_directory, "mover", "queued")
        return json_response(health_view(name, found))

    return await once(context, request, DeleteRequest(), work)
