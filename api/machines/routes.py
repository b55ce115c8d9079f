"""The configured machines, with a live probe of each."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from api.context import In
from api.http import openapi
from api.http.responses import json_response
from api.views import machine_view
from models.machines import health, limits

router = APIRouter(prefix="/DM", tags=["machines"])


@router.get(
    "/machines",
    summary="List machines",
    response_class=Response,
    responses=openapi.json_answer("MachineView", "All machines, by name.", many=True),
)
@router.get("/machines/", include_in_schema=False)
async def list_machines(context: In) -> Response:
    """List the machines, the limits in force, whether transfers wait for them, and what a probe found just now:
    reachable, round trip, free space.

    It takes a few seconds at most.
    """
    in_force, healths = await context.reading(
        lambda session: (limits.current(session, context.machines), health.current(session))
    )
    findings = await context.prober.probe_all()
    return json_response(
        [
            machine_view(context.machines[name], findings[name], in_force[name], healths.get(name, health.WELL))
            for name in sorted(findings)
        ]
    )
