"""Schedules of the catalogue, brought to Prefect: each is a schedule of the deployment `recurring/data-manager`.

The catalogue is the truth. What a person changes of them in Prefect is set back, and the deployment is resumed when it
was paused: nobody would learn here that nothing is fetched. A schedule there whose slug is none of ours is left alone.
One mover at a time does it: at its start, when something has changed, and now and then anyway, so that a Prefect server
whose database was lost has them again.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.objects import DeploymentSchedule
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

from datamanager.domain.recurring import read_interval
from deployments.orchestrator.gateway import PrefectGateway
from flows.fetch_recurring import finish, recurring
from flows.runtime.services import Services
from models.core.leases import leased
from models.database import read, write
from models.external import schedules
from models.external.schedules import Rhythm

CHECK_EVERY = 30.0  # seconds after which Prefect is compared although nothing has changed here
LEASE = "schedules"
WITHIN = timedelta(seconds=30)
ANCHOR = datetime(2000, 1, 1, tzinfo=UTC)  # a Saturday, midnight: 6h is 00, 06, 12 and 18 o'clock

log = structlog.get_logger(__name__)


class ScheduleSync:
    """Brings schedules to Prefect. Belongs to the mover's event loop."""

    def __init__(self, services: Services, gateway: PrefectGateway) -> None:
        self._services = services
        self._gateway = gateway
        self._seen: list[Rhythm] | None = None
        self._due = 0.0

    async def look(self) -> None:
        """Note what ended, and bring to Prefect what changed. Raises: CatalogueUnavailable, OrchestratorUnavailable."""
        database = self._services.database
        await asyncio.to_thread(finish, self._services)
        found = await read(database, schedules.rhythms)
        if not self._gateway.there:
            self._seen = None  # another one may be there next
            return
        if found == self._seen and time.monotonic() < self._due:
            return
        async with leased(database, LEASE, self._services.owner, WITHIN) as ours:
            if not ours:
                return  # another mover does it; if it dies in the middle it is our turn then
            async with self._gateway.client() as client:
                await self._bring(client, found)
        self._seen = await read(database, schedules.rhythms)
        if any(rhythm.wanted_at for rhythm in self._seen) or _standing(self._seen) != _standing(found):
            self._seen = None
        self._due = time.monotonic() + CHECK_EVERY

    async def _bring(self, client: PrefectClient, wanted: list[Rhythm]) -> None:
        deployment = await self._deployment(client)
        there = {one.slug: one for one in await client.read_deployment_schedules(deployment) if one.slug is not None}
        for rhythm in wanted:
            known = there.pop(str(rhythm.id), None)
            await self._bring_one(client, deployment, rhythm, known)
            if rhythm.wanted_at is not None:
                await self._begin(rhythm.id, rhythm.wanted_at)
        for slug, gone in there.items():
            if _is_ours(slug):
                log.info("schedule_removed", schedule=slug)
                await client.delete_deployment_schedule(deployment, gone.id)

    async def _bring_one(
        self, client: PrefectClient, deployment: UUID, rhythm: Rhythm, known: DeploymentSchedule | None
    ) -> None:
        slug, parameters, when = str(rhythm.id), {"schedule": str(rhythm.id)}, _when(rhythm)
        if known is None:
            log.info("schedule_created_in_prefect", schedule=slug)
            new = DeploymentScheduleCreate(schedule=when, active=rhythm.active, parameters=parameters, slug=slug)
            await client.create_deployment_schedules(deployment, [new])
        elif (known.schedule, known.active, known.parameters) != (when, rhythm.active, parameters):
            log.info("schedule_corrected_in_prefect", schedule=slug)
            await client.update_deployment_schedule(
                deployment, known.id, active=rhythm.active, schedule=when, parameters=parameters
            )

    async def _begin(self, schedule: UUID, moment: datetime) -> None:
        """Make the requested run: one, however many movers see the request."""
        text = f"{moment:%Y-%m-%dT%H:%M:%SZ}"
        await self._gateway.create_run(
            recurring,
            {"schedule": str(schedule), "moment": text},
            name=f"recurring {str(schedule)[:8]} {text}",
            idempotency_key=f"schedule:{schedule}:{text}",
        )
        await write(self._services.database, schedules.run_is_made, schedule, moment)

    async def _deployment(self, client: PrefectClient) -> UUID:
        found = await self._gateway.deployment(recurring)
        if found.paused:
            log.warning("deployment_resumed", flow=recurring.name, says="schedules are paused by dm schedule pause")
            await client.resume_deployment(found.id)
        return found.id


def _when(rhythm: Rhythm) -> Any:
    if rhythm.cron is not None:
        return CronSchedule(cron=rhythm.cron, timezone="UTC")
    return IntervalSchedule(interval=read_interval(rhythm.interval or ""), anchor_date=ANCHOR, timezone="UTC")


def _standing(rhythms: list[Rhythm]) -> set[tuple[UUID, str | None, str | None, bool]]:
    return {(one.id, one.interval, one.cron, one.active) for one in rhythms}


def _is_ours(slug: str) -> bool:
    try:
        return str(UUID(slug)) == slug
    except ValueError:
        return False
