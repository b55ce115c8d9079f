"""Heartbeats of a flow run, and the event that none follows any more.

Prefect's engine sends heartbeats too, from a thread of each run, until the run's last state is written. So one may come
after that state, or that state may be held back by a server that was restarted meanwhile, and the automation of
`deployments.orchestrator.crash_automation` would suspect a run that has ended. Here nothing comes after the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event

from deployments.orchestrator.crash_automation import HEARTBEAT, RUN_LEFT
from deployments.orchestrator.environment import RUN_HEARTBEAT


@asynccontextmanager
async def heartbeats(flow_run: FlowRun) -> AsyncIterator[None]:
    """Send them while the body works on a run, and RUN_LEFT after the last one."""
    resource = {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.name": flow_run.name}
    deployment = f"prefect.deployment.{flow_run.deployment_id}"
    related = [{"prefect.resource.id": deployment, "prefect.resource.role": "deployment"}]
    emit = partial(emit_event, resource=resource, related=related)

    async def beat() -> None:
        while True:
            emit(HEARTBEAT)
            await asyncio.sleep(RUN_HEARTBEAT)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        emit(RUN_LEFT)
