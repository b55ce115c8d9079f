"""Heartbeats of a flow run, and the event that none follows any more.

Prefect's engine sends heartbeats too, from a thread of each run, until the run's last state is written. So one may come
after that state, or that state may be held back by a server that was restarted meanwhile, and the automation of
`deployments.orchestrator.crash_automation` would suspect a run that has ended. Here nothing comes after the end.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial

from prefect.client.schemas.objects import FlowRun
from prefect.events import emit_event

from deployments.orchestrator.crash_automation import HEARTBEAT, RUN_LEFT
from deployments.orchestrator.environment import RUN_HEARTBEAT

FIRST_AFTER = timedelta(seconds=5)
"""Age at which a run is worth a heartbeat, which costs the Prefect server a transaction; most runs are over then."""


@asynccontextmanager
async def heartbeats(flow_run: FlowRun) -> AsyncIterator[None]:
    """Send them while the body works on a run that is FIRST_AFTER old, and RUN_LEFT after the last one. A mover before
    may have sent some of an older one: then RUN_LEFT is due in any case.
    """
    resource = {"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.name": flow_run.name}
    deployment = f"prefect.deployment.{flow_run.deployment_id}"
    related = [{"prefect.resource.id": deployment, "prefect.resource.role": "deployment"}]
    emit = partial(emit_event, resource=resource, related=related)
    age = datetime.now(UTC) - flow_run.created if flow_run.created is not None else FIRST_AFTER
    due = beaten = age >= FIRST_AFTER

    async def beat() -> None:
        nonlocal beaten
        if not due:
            await asyncio.sleep(FIRST_AFTER.total_seconds())
        while True:
            emit(HEARTBEAT)
            beaten = True
            await asyncio.sleep(RUN_HEARTBEAT)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()
        if beaten:
            emit(RUN_LEFT)
