"""Live probes of machines: bounded in time, one at a time a machine.

A machine that hangs keeps one thread however often it is asked for: later requests join the probe under way.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.requests import Request

from datamanager.errors import DataManagerError, NoLogin, PathMissing, TransportTimeout
from datamanager.machines import Machine, Machines, missing_files
from datamanager.transports.factory import Storages
from datamanager.transports.port import Storage

PATIENCE = 5.0  # seconds for all machines together


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe found: `latency` in seconds of one round trip, `free` in bytes for our login; `missing` are keys of
    machines.toml that name what is not there.
    """

    latency: float | None = None
    free: int | None = None
    error: DataManagerError | None = None
    missing: tuple[str, ...] = ()


class Prober:
    """Probes of this process's machines. Belongs to one event loop."""

    def __init__(self, machines: Machines, storages: Storages) -> None:
        self._machines = machines
        self._storages = storages
        self._limiter = CapacityLimiter(max(1, len(machines)))
        self._under_way: dict[tuple[str, str | None], asyncio.Task[ProbeResult]] = {}

    async def probe_all(self, storages: Storages | None = None, patience: float = PATIENCE) -> dict[str, ProbeResult]:
        """Probe every machine at once; one that has not answered after `patience` seconds counts as timed out.

        `storages`: those of the person who asks; machines where they have no login are probed with the service's.
        """
        own = storages or self._storages
        tasks = {name: self._joined(machine, own) for name, machine in self._machines.items()}
        await asyncio.wait(tasks.values(), timeout=patience)
        late = ProbeResult(error=TransportTimeout(f"no answer, or no free connection, within {patience:g} s"))
        return {name: task.result() if task.done() else late for name, task in tasks.items()}

    def _joined(self, machine: Machine, storages: Storages) -> asyncio.Task[ProbeResult]:
        try:
            storage = storages.get(machine.name)
        except NoLogin:
            storage = None
        key = machine.name, None if storage is None or storage.login is None else storage.login.account
        task = self._under_way.get(key)
        if task is None:
            task = self._under_way[key] = asyncio.create_task(
                run_sync(self._probe, machine, storage, limiter=self._limiter)
            )
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return task

    def _probe(self, machine: Machine, storage: Storage | None) -> ProbeResult:
        try:
            with (storage or self._storages.get(machine.name)).session() as session:
                begun = time.monotonic()
                session.stat(machine.base_dir)
                latency = time.monotonic() - begun
                return ProbeResult(latency, session.free_space(machine.base_dir))
        except PathMissing as exc:
            return ProbeResult(error=exc, missing=("base_dir",))
        except DataManagerError as exc:
            return ProbeResult(error=exc, missing=tuple(missing_files(machine)))


def prober_of(request: Request) -> Prober:
    """Return the prober of the app that serves the request."""
    prober: Prober = request.app.state.prober
    return prober
