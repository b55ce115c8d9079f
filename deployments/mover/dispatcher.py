"""A mover's runs: takes transfers from the catalogue, as many as it has slots for, and gives leases their heartbeat.

The catalogue is the truth; Prefect runs and shows (`deployments.mover.flow_runner`). While Prefect is away nothing is taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any
from uuid import UUID

import structlog
from prefect.client.schemas.objects import FlowRun

from datamanager.engine.control import Control
from datamanager.errors import CatalogueUnavailable, DataManagerError, InternalError, LeaseLost
from deployments.mover.flow_runner import Performer
from deployments.mover.maintenance_runs import Upkeep
from deployments.orchestrator.flow_registry import MAINTENANCE, AnyFlow
from deployments.orchestrator.monitor import PrefectWatch
from flows.runtime.services import Services
from models.core.leases import MOVER_PREFIX, drop_lease, hold_lease
from models.machines import limits
from models.tables import Transfer
from models.transfers import cancel_pause as control
from models.transfers import outcomes, queue
from models.transfers.prefect_queries import held_by_priority
from models.transfers.submission import get_transfer

POLL = 1.0  # seconds; wake-ups make the start immediate, the poll only catches what they missed
HAND_BACK_WITHIN = 20.0  # seconds that runs get at a stop to hand their work back

log = structlog.get_logger(__name__)


class Runs:
    """The transfers that this mover performs, at most `settings.concurrency` at once. Lives in one event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._settings = services.settings
        self._tasks: dict[queue.TransferLease | UUID, asyncio.Task[Any]] = {}
        self._beat_soon = asyncio.Event()
        self.prefect = PrefectWatch(services, self._prefect_changed)
        self.upkeep = Upkeep(services, self.prefect)
        self._performer = Performer(services, self.prefect, lambda: self._stopping)
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._stopping = False

    @property
    def free(self) -> int:
        """How many more transfers this mover may run now; none when it stops."""
        return 0 if self._stopping else max(0, self._settings.concurrency - len(self._tasks))

    @property
    def busy(self) -> bool:
        """Whether anything runs."""
        return bool(self._tasks or self._services.upkeep)

    def poke(self) -> None:
        """Look at the queue now. Safe from any thread."""
        self._loop.call_soon_threadsafe(self._woken.set)

    async def notified(self, _transfer: UUID) -> bool:
        """Hear of a transfer over the broker. The queue in the catalogue decides what is taken."""
        self._woken.set()
        return True

    async def take_forever(self) -> None:
        """Take what waits, whenever woken and at least each second."""
        while not self._stopping:
            self._woken.clear()
            # without Prefect nothing can run: what waits is left alone, it would only be taken and given back
            if self.free > 0 and self.prefect.there and await self._when_possible(self._take, self.free):
                continue  # there may be more
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), POLL)

    async def beat_forever(self) -> None:
        """Say that this mover lives, renew its leases, stop what was lost, return what silent movers left."""
        while True:
            self._beat_soon.clear()
            await self._when_possible(self._beat)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._beat_soon.wait(), self._settings.heartbeat.total_seconds())

    def _prefect_changed(self) -> None:
        self._beat_soon.set()  # the lease says whether this mover can work
        self._woken.set()

    async def finish(self, hurry: asyncio.Event) -> None:
        """Take nothing new; return when what runs has ended, when `stop_grace` is over, or when told to hurry."""
        self._stopping = True
        self._woken.set()
        hurried = asyncio.create_task(hurry.wait())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._settings.stop_grace.total_seconds()):
                while self._tasks and not hurried.done():
                    await asyncio.wait([hurried, *self._tasks.values()], return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()

    async def stop(self) -> None:
        """Hand the running transfers back to the queue: no attempt is counted, partial files stay for the next one."""
        self._stopping = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        upkeep = asyncio.create_task(self.upkeep.stop())
        if tasks:
            log.info("handing_back", transfers=len(tasks))
            await asyncio.wait(tasks, timeout=HAND_BACK_WITHIN)
        await upkeep
        with contextlib.suppress(CatalogueUnavailable):
            await asyncio.to_thread(self._sign_off)

    async def run_scheduled(self, flow: AnyFlow, flow_run: FlowRun) -> None:
        """Run what was begun in the Prefect UI or by a schedule. Maintenance takes no slot of the transfers."""
        if flow in MAINTENANCE.values():
            await self.upkeep.run_scheduled(flow, flow_run)
            return
        task = asyncio.current_task()
        if task is not None:
            self._tasks[flow_run.id] = task
        try:
            await self._performer.run(flow, flow_run, flow_run.parameters)
        finally:
            self._tasks.pop(flow_run.id, None)

    # --- taking ------------------------------------------------------------------------------------------------------

    async def _take(self, free: int) -> bool:
        # a lost transfer whose earlier run has not ended here yet is left to others: both would be the same Prefect run
        mine = [*self._services.running, *self._services.by_run.values(), *self._tasks]
        busy = {key.transfer for key in mine if isinstance(key, queue.TransferLease)}
        taking = asyncio.ensure_future(asyncio.to_thread(self._take_now, free, busy))
        try:
            taken = await asyncio.shield(taking)
        except asyncio.CancelledError:
            for hold, _ in await taking:  # the mover stops in this moment: nobody else knows of these
                await self._performer.give_back(hold, spent=False)
            raise
        for hold, row in taken:
            self._services.running[hold] = Control()
            performing = self._performer.perform(hold, row)
            self._tasks[hold] = task = asyncio.create_task(performing, name=f"transfer {hold.transfer}")
            task.add_done_callback(functools.partial(self._forget, hold))
        return bool(taken)

    def _take_now(self, free: int, busy: Collection[UUID]) -> list[tuple[queue.TransferLease, Transfer]]:
        services = self._services
        with services.database.read() as session:  # cheap: no write lock when the queue is empty
            most = limits.caps(session, services.machines)
            late = control.due(session)
            if not late and (self.prefect.caps.pool == 0 or not queue.waiting(session, most)):
                return []
        caps = self.prefect.caps
        room: Mapping[str, int] = {}
        with services.database.write() as session:
            expired = control.expire(session)
            if caps.limited:
                found = caps.room(held_by_priority(session), free)
                free, room = found.total, found.queues
            most = limits.caps(session, services.machines)
            taken = queue.take(session, services.owner, self._settings.lease, free, caps=most, room=room, besides=busy)
            rows = [(hold, get_transfer(session, hold.transfer)) for hold in taken]
            for hold, row in rows:
                if row.attempts > self._settings.max_attempts:
                    error = InternalError(f"given up after {self._settings.max_attempts} attempts; see faults")
                    outcomes.fail(session, hold, error)
                    expired.append(row)
        for row in expired:
            services.notify(f"ended:{row.id}")
        return [(hold, row) for hold, row in rows if row.ended is None]

    def _forget(self, hold: queue.TransferLease, _task: asyncio.Task[None]) -> None:
        self._tasks.pop(hold, None)
        self._services.running.pop(hold, None)
        self._woken.set()  # a slot is free

    # --- leases ------------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        lost = await asyncio.to_thread(self._beat_now)
        for hold in lost:
            control = self._services.running.get(hold)
            if control is not None:
                control.stop(LeaseLost(f"transfer {hold.transfer} was given to another mover"))

    def _beat_now(self) -> list[queue.TransferLease]:
        holds = list(self._services.running)
        with self._services.database.write() as session:
            lost = queue.renew(session, holds, self._settings.lease)
            details = {"prefect": self.prefect.there}
            hold_lease(
                session, MOVER_PREFIX + self._services.owner, self._services.owner, self._settings.lease, details
            )
            self.upkeep.renew(session)
            reaped = queue.reap(session)
            expired = control.expire(session)
        for row in expired:
            self._services.notify(f"ended:{row.id}")
        if reaped:
            log.warning("leases_reaped", transfers=[str(row.id) for row in reaped])
            self.poke()
        return lost

    def _sign_off(self) -> None:
        with self._services.database.write() as session:
            drop_lease(session, MOVER_PREFIX + self._services.owner, self._services.owner)

    async def _when_possible(self, work: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        """Await `work`; a catalogue that is away is waited for, not died of."""
        try:
            return await work(*args)
        except CatalogueUnavailable as exc:
            log.warning("catalogue_unavailable", error=exc.detail)
        except DataManagerError as exc:
            log.exception("mover_fault", code=exc.code)
        await asyncio.sleep(POLL)
        return None
