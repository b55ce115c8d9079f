"""Runs of retention that the API has entered in the catalogue: each gets its flow run here, which any mover then takes.

With several movers two may see the same one: the idempotency key makes it one flow run.
"""

from __future__ import annotations

import asyncio
from uuid import UUID

import httpx
import structlog
from prefect.client.orchestration import PrefectClient
from prefect.context import AsyncClientContext
from prefect.exceptions import ObjectNotFound, PrefectException

from datamanager.errors import CatalogueUnavailable, OrchestratorUnavailable
from deployments.orchestrator.flow_registry import DEPLOYMENT
from deployments.orchestrator.monitor import PrefectWatch
from flows.apply_retention import retention
from flows.runtime.services import Services
from models.retention import runs as retention_runs

LOOK_EVERY = 1.0  # seconds

log = structlog.get_logger(__name__)


class AskedRetention:
    """A mover's look at what was asked for. Lives in its event loop."""

    def __init__(self, services: Services, prefect: PrefectWatch) -> None:
        self._services = services
        self._prefect = prefect

    async def forever(self) -> None:
        """Look each second for runs that were asked for, and for those whose mover is gone."""
        while True:
            try:
                await self._look()
            except (CatalogueUnavailable, OrchestratorUnavailable) as exc:
                log.warning("retention_not_begun", error=exc.detail)
            except (httpx.HTTPError, PrefectException) as exc:
                log.warning("prefect_unavailable", error=repr(exc))
            await asyncio.sleep(LOOK_EVERY)

    async def _look(self) -> None:
        wanted, lost = await asyncio.to_thread(self._found)
        if lost:
            await asyncio.to_thread(self._end_lost)
        if wanted and self._prefect.there:
            async with AsyncClientContext.get_or_create() as context:
                for run in wanted:
                    await self._provide(context.client, run)

    async def _provide(self, client: PrefectClient, run: UUID) -> None:
        name = f"{retention.name}/{DEPLOYMENT}"
        try:
            deployment = await client.read_deployment_by_name(name)
        except ObjectNotFound:
            await self._prefect.provide()
            deployment = await client.read_deployment_by_name(name)
        made = await client.create_flow_run_from_deployment(
            deployment.id,
            parameters={"run_id": str(run)},
            name=f"retention {str(run)[:8]}",
            tags=["retention"],
            idempotency_key=f"retention:{run}",
        )
        await asyncio.to_thread(self._attach, run, made.id)

    def _found(self) -> tuple[list[UUID], bool]:
        with self._services.database.read() as session:
            return retention_runs.asked_for(session), retention_runs.any_lost(session)

    def _end_lost(self) -> None:
        with self._services.database.write() as session:
            for run in retention_runs.end_lost(session):
                log.warning("retention_run_was_lost", run=str(run))

    def _attach(self, run: UUID, flow_run: UUID) -> None:
        with self._services.database.write() as session:
            retention_runs.attach(session, run, flow_run)
