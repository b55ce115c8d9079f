"""A mover's care for machines that could not be reached: it probes them, and lets their transfers run again.

One mover probes a machine at a time (`models.machines.health`). Those who wait for an answer from such a machine get it here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from datamanager.errors import CatalogueUnavailable
from flows.runtime.reachability import unreachable
from flows.runtime.services import Services
from models.machines import health

LOOK_EVERY = 1.0  # seconds
PATIENCE = health.PROBE_WITHIN.total_seconds() * 0.75
"""Seconds that a probe may take; a machine whose login takes longer counts as away."""

log = structlog.get_logger(__name__)


class MachineWatch:
    """Probes machines as long as `forever` runs; `answers` is called when one answers again."""

    def __init__(self, services: Services, answers: Callable[[], None]) -> None:
        self._services = services
        self._answers = answers
        self._probing: set[asyncio.Task[None]] = set()

    async def forever(self) -> None:
        """Look every second whether a probe is due."""
        while True:
            try:
                await self.look()
            except CatalogueUnavailable as exc:
                log.warning("machines_not_watched", error=exc.detail)
            await asyncio.sleep(LOOK_EVERY)

    async def look(self) -> None:
        """Begin the probes that are due, and end what clients wait for in vain. Raises: CatalogueUnavailable."""
        for probe in await asyncio.to_thread(self._take_probes):
            task = asyncio.create_task(self._probe(probe), name=f"probe {probe.machine}")
            self._probing.add(task)
            task.add_done_callback(self._probing.discard)
        for transfer in await asyncio.to_thread(self._refuse_waiting):
            self._services.ring(f"ended:{transfer}")

    async def _probe(self, probe: health.Probe) -> None:
        answered = not await unreachable(self._services, [probe.machine], PATIENCE)

        def note() -> bool:
            with self._services.database.write() as session:
                return health.probed(session, probe, answered=answered)

        try:
            noted = await asyncio.to_thread(note)
        except CatalogueUnavailable as exc:
            log.warning("probe_not_noted", machine=probe.machine, error=exc.detail)  # it is due again in a minute
            return
        log.info("machine_probed", machine=probe.machine, answered=answered, noted=noted)
        if answered and noted:
            self._answers()

    def _take_probes(self) -> list[health.Probe]:
        services = self._services
        with services.database.read() as session:
            if not health.probe_is_due(session, services.machines):
                return []
        with services.database.write() as session:
            return health.take_probes(session, services.machines)

    def _refuse_waiting(self) -> list[str]:
        services = self._services
        with services.database.read() as session:
            if not health.somebody_waits(session):
                return []
        with services.database.write() as session:
            return [str(row.id) for row in health.refuse_waiting(session, services.owner, services.settings.lease)]
