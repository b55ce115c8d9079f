"""Probes of machines that could not be reached: once one answers, its transfers run again.

One mover probes a machine at a time (`models.machines.health`). Those who wait for an answer from such a machine get it
here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from datamanager.errors import CatalogueUnavailable
from flows.runtime.reachability import unreachable
from flows.runtime.services import Services
from models.database import read, write
from models.machines import health

PATIENCE = health.PROBE_WITHIN.total_seconds() * 0.75
"""Seconds that a probe may take; a machine whose login takes longer counts as away."""

log = structlog.get_logger(__name__)


class MachineProbes:
    """Probes machines; `answers` is called when one answers again."""

    def __init__(self, services: Services, answers: Callable[[], None]) -> None:
        self._services = services
        self._answers = answers
        self._probing: set[asyncio.Task[None]] = set()

    async def look(self) -> None:
        """Begin the probes that are due, and end what clients wait for in vain. Raises: CatalogueUnavailable."""
        services, due = self._services, list[health.Probe]()
        if await read(services.database, health.probe_is_due, services.machines):
            due = await write(services.database, health.take_probes, services.machines)
        for probe in due:
            task = asyncio.create_task(self._probe(probe), name=f"probe {probe.machine}")
            self._probing.add(task)
            task.add_done_callback(self._probing.discard)
        if await read(services.database, health.somebody_waits):
            owner, lease = services.owner, services.settings.lease
            for transfer in await write(services.database, health.refuse_waiting, owner, lease):
                services.notify(f"ended:{transfer.id}")

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
