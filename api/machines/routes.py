"""Machines: list them with a live probe of each, drain them, change their limits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.access.asking import requires
from api.context import Context, In
from api.http import openapi
from api.http.idempotency import mutate
from api.http.request_parts import read_request
from api.http.responses import json_response, view_of
from api.machines.caller_storages import acting_for
from api.machines.probe import prober_of
from api.machines.views import HealthView, LimitsView, MachineView, machine_view
from datamanager import errors
from datamanager.domain.limits import MachineLimitsRequest
from datamanager.identity.grant import Grant
from datamanager.identity.scopes import AccessTarget
from datamanager.machines import Machine
from models.access.visibility import seen
from models.machines import health, limits
from models.machines.health import Health
from models.objects.totals import active_by_machine

router = APIRouter(prefix="/DM/machines", tags=["machines"], default_response_class=Response)

MayRead = Annotated[Grant, requires("read:machines")]
MayDrain = Annotated[Grant, requires("drain:machines")]

_HEALTH = openapi.json_answer(HealthView, "The machine's health.", errors.UnknownMachine, *openapi.BODY)
_LIMITS = "The limits in force."


@router.get(
    "", summary="List machines", responses=openapi.json_answer(MachineView, "All machines, by name.", many=True)
)
@router.get("/", include_in_schema=False)
async def list_machines(request: Request, context: In, asked: MayRead) -> Response:
    """List the machines, the limits in force, whether transfers wait for them, and the result of a probe:
    reachable, round trip, free space.

    It takes a few seconds at most.
    """
    in_force, healths, totals = await context.reading(
        lambda session: (
            limits.current(session, context.machines),
            health.current(session),
            active_by_machine(session, seen(asked, "list:objects")),
        )
    )
    async with acting_for(context, request) as acting:
        findings = await prober_of(request).probe_all(acting.storages)
    shown = seen(asked, "read:machines").machines(sorted(findings))
    return json_response(
        [
            machine_view(
                context.machines[name],
                findings[name],
                in_force[name],
                healths.get(name, health.WELL),
                totals.get(name, (0, 0)),
            )
            for name in shown
        ]
    )


@router.patch(
    "/{name}",
    summary="Change a machine's limits",
    responses=openapi.json_answer(LimitsView, _LIMITS, *openapi.BODY, errors.UnknownMachine),
    openapi_extra=openapi.body(MachineLimitsRequest),
)
async def limit_machine(name: str, request: Request, context: In, asked: MayDrain) -> Response:
    """Change the limits of all transfers of a machine, those under way included. Null lifts a limit; what is not given
    stays as it is. They hold, whatever machines.toml says, until they are reset.
    """
    machine = _drained(context, asked, name)
    fields = await read_request(request, MachineLimitsRequest)

    def change(session: Session) -> LimitsView:
        wanted = {"bandwidth": fields.bandwidth, "max_transfers": fields.max_transfers}
        return view_of(LimitsView, limits.change(session, machine, **wanted), name=name)

    return await _change(context, request, change, fields, notify=limits.CHANGED)


@router.delete(
    "/{name}/limits",
    summary="Reset a machine's limits",
    responses=openapi.json_answer(LimitsView, _LIMITS, errors.UnknownMachine, *openapi.BODY),
    openapi_extra=openapi.body(),
)
async def reset_machine(name: str, request: Request, context: In, asked: MayDrain) -> Response:
    """Reset a machine's limits to those of machines.toml; fine when they are that already."""
    machine = _drained(context, asked, name)

    def change(session: Session) -> LimitsView:
        return view_of(LimitsView, limits.reset(session, machine), name=name)

    return await _change(context, request, change, notify=limits.CHANGED)


@router.post("/{name}/drain", summary="Drain a machine", responses=_HEALTH, openapi_extra=openapi.body())
async def drain_machine(name: str, request: Request, context: In, asked: MayDrain) -> Response:
    """Take no more transfers of a machine: they wait QUEUED, those that run are not stopped. It lasts, over restarts
    too, until the machine is undrained. Fine when it is drained already.
    """
    return await _change_health(context, request, asked, name, health.drain)


@router.post("/{name}/undrain", summary="End a machine's draining", responses=_HEALTH, openapi_extra=openapi.body())
async def undrain_machine(name: str, request: Request, context: In, asked: MayDrain) -> Response:
    """Start the transfers of a drained machine again. Idempotent."""
    return await _change_health(context, request, asked, name, health.undrain)


async def _change_health(
    context: Context, request: Request, asked: Grant, name: str, change: Callable[[Session, str], Health]
) -> Response:
    machine = _drained(context, asked, name).name
    return await _change(context, request, lambda session: view_of(HealthView, change(session, machine), name=name))


async def _change(
    context: Context,
    request: Request,
    change: Callable[[Session], Any],
    fields: MachineLimitsRequest | None = None,
    notify: str = "queued",
) -> Response:
    """Change a machine and have the movers of this host look at the queue: more may be allowed now."""
    return await mutate(context, request, lambda session, _: json_response(change(session)), fields, notify=notify)


def _drained(context: Context, asked: Grant, name: str) -> Machine:
    """Return the machine that is to be changed. Raises: NotAllowed, whether there is one or not; UnknownMachine."""
    asked.require("drain:machines", AccessTarget(machine=name))
    return context.machines[name]
