"""Probes of machines that could not be reached: once one answers, its transfers run again.

One mover probes a machine at a time (`models.machines.health`). Those who wait for an answer from such a machine get it
here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from datamanager.errors import CatalogueUnavailable
from deployments.periodic import every
from deployments.transactions import read, write
from flows.runtime.reachability import unreachable
from flows.runtime.services import Services
from models.machines import health
from models.tables import Transfer

LOOK_EVERY = 1.0  # seconds
PATIENCE = health.PROBE_WITHIN.total_seconds() * 0.75
"""Seconds that a probe may take; a machine whose login takes longer counts as away."""

log = structlog.get_logger(__name__)


class MachineProbes:
    """Probes machines as long as `forever` runs; `answers` is called when one answers again."""

    def __init__(self, services: Services, answers: Callable[[], None]) -> None:
        self._services = services
        self._answers = answers
        self._probing: set[asyncio.Task[None]] = set()

    async def forever(self) -> None:
        """Look every second whether a probe is due."""
        await every(LOOK_EVERY, "probe machines", self.look)

    async def look(self) -> None:
        """Begin the probes that are due, and end what clients wait for in vain. Raises: CatalogueUnavailable."""
        for probe in await self._take_probes():
            task = asyncio.create_task(self._probe(probe), name=f"probe {probe.machine}")
            self._probing.add(task)
            task.add_done_callback(self._probing.discard)
        for transfer in await self._refuse_waiting():
            self._services.notify(f"ended:{transfer.id}")

    async def _probe(self, probe: health.Probe) -> None:
        answered = not await unreachable(self._services, [probe.machine], PATIENCE)
        try:
            noted = await write(self._services.database, health.probed, probe, answered=answered)
        except CatalogueUnavailable as exc:
            log.warning("probe_not_recorded", machine=probe.machine, error=exc.detail)  # it is due again in a minute
            return
        log.info("machine_probed", machine=probe.machine, answered=answered, noted=noted)
        if answered and noted:
            self._answers()

    async def _take_probes(self) -> list[health.Probe]:
        services = self._services
        if not await read(services.database, health.probe_is_due, services.machines):
            return []
        return await write(services.database, health.take_probes, services.machines)

    async def _refuse_waiting(self) -> list[Transfer]:
        services = self._services
        if not await read(services.database, health.somebody_waits):
            return []
        return await write(services.database, health.refuse_waiting, services.owner, services.settings.lease)
