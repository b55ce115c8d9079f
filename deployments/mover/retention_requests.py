"""Runs of retention that the API has entered in the catalogue: each gets its flow run here, which any mover then takes.

With several movers two may see the same one: the idempotency key makes it one flow run.
"""

from __future__ import annotations

import structlog

from deployments.orchestrator.gateway import PrefectGateway
from deployments.periodic import every
from deployments.transactions import read, write
from flows.apply_retention import retention
from flows.runtime.services import Services
from models.retention import runs as retention_runs

LOOK_EVERY = 1.0  # seconds

log = structlog.get_logger(__name__)


class RetentionRequests:
    """Looks for requested runs of retention as long as `forever` runs. Belongs to the mover's event loop."""

    def __init__(self, services: Services, gateway: PrefectGateway) -> None:
        self._database = services.database
        self._gateway = gateway

    async def forever(self) -> None:
        """Look each second for runs that were requested, and for those whose mover is gone."""
        await every(LOOK_EVERY, "start retention", self._look)

    async def _look(self) -> None:
        if await read(self._database, retention_runs.any_lost):
            for run in await write(self._database, retention_runs.end_lost):
                log.warning("retention_run_lost", run=str(run))
        if not self._gateway.there:
            return
        for run in await read(self._database, retention_runs.asked_for):
            made = await self._gateway.create_run(
                retention,
                {"run_id": str(run)},
                name=f"retention {str(run)[:8]}",
                tags=["retention"],
                idempotency_key=f"retention:{run}",
            )
            await write(self._database, retention_runs.attach, run, made.id)
