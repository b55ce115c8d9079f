"""Takes transfers from the catalogue, as many as this mover has slots for, and renews their leases.

The catalogue is the truth; Prefect runs and shows (`deployments.mover.flow_runner`). While Prefect is away nothing is
taken.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Collection, Mapping
from typing import Any
from uuid import UUID

import structlog
from prefect.client.schemas.objects import FlowRun, State
from sqlalchemy.orm import Session

from datamanager.engine.control import Control
from datamanager.errors import CatalogueUnavailable, DataManagerError, InternalError, LeaseLost, NotAllowed
from deployments.mover.flow_runner import FlowRunner
from deployments.mover.maintenance_runs import MaintenanceRuns
from deployments.mover.retried_runs import earlier_end
from deployments.mover.shared_runs import SharedRunner
from deployments.orchestrator.flow_registry import MAINTENANCE, AnyFlow
from deployments.orchestrator.gateway import PrefectGateway
from deployments.orchestrator.monitor import PrefectMonitor
from deployments.periodic import every
from flows.batch.chunk import PACKED_FROM
from flows.runtime.services import Services
from models.access.visibility import ALL
from models.core.leases import MOVER_PREFIX, drop_lease, hold_lease
from models.database import read, write
from models.machines import limits
from models.tables import Transfer
from models.transfers import cancel_pause, outcomes, queue, withdrawal
from models.transfers.lookup import get_transfer, held_by_priority

POLL = 1.0  # seconds; notifications make the start immediate, the poll only catches what they missed
Taken = tuple[queue.TransferLease, Transfer]
"""A transfer of this mover, and its row."""
HAND_BACK_WITHIN = 20.0  # seconds that runs get at a stop to hand their work back

log = structlog.get_logger(__name__)


class Dispatcher:
    """The transfers that this mover runs, at most `settings.concurrency` at once. Lives in one event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._settings = services.settings
        self._tasks: dict[queue.TransferLease | UUID, asyncio.Task[Any]] = {}
        self.gateway = PrefectGateway(services)
        self.monitor = PrefectMonitor(services, self.gateway, self._prefect_changed)
        self.maintenance = MaintenanceRuns(services, self.gateway)
        self._runner = FlowRunner(services, self.gateway, lambda: self._stopping)
        self._shared = SharedRunner(services, self.gateway, lambda: self._stopping)
        self._notified = asyncio.Event()
        self._renew_soon = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._stopping = False

    @property
    def free(self) -> int:
        """How many more transfers this mover may run now; none when it stops."""
        return 0 if self._stopping else max(0, self._settings.concurrency - len(self._tasks))

    @property
    def busy(self) -> bool:
        """Whether anything runs."""
        return bool(self._tasks or self._services.maintenance)

    def notify(self) -> None:
        """Look at the queue now. Safe from any thread."""
        self._loop.call_soon_threadsafe(self._notified.set)

    async def on_transfer(self, _transfer: UUID) -> bool:
        """Note a transfer of which the broker has a message. The queue in the catalogue decides what is taken."""
        self._notified.set()
        return True

    async def take_forever(self) -> None:
        """Take what waits, whenever notified and at least each second."""
        await every(POLL, "take transfers", self._take, notified=self._notified)

    async def renew_forever(self) -> None:
        """Say that this mover lives, renew its leases, stop what was lost, return what silent movers left."""
        heartbeat = self._settings.heartbeat.total_seconds()
        await every(heartbeat, "renew leases", self._renew, notified=self._renew_soon, retry_after=POLL)

    def _prefect_changed(self) -> None:
        self._renew_soon.set()  # the lease says whether this mover can work
        self._notified.set()

    async def finish(self, hurry: asyncio.Event) -> None:
        """Take nothing new; return when what runs has ended, when `stop_grace` is over, or when `hurry` is set."""
        self._stopping = True
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
        maintenance = asyncio.create_task(self.maintenance.stop())
        if tasks:
            log.info("returning_transfers", transfers=len(tasks))
            await asyncio.wait(tasks, timeout=HAND_BACK_WITHIN)
        await maintenance
        owner = self._services.owner
        with contextlib.suppress(CatalogueUnavailable):
            await write(self._services.database, drop_lease, MOVER_PREFIX + owner, owner)

    async def run_scheduled(self, flow: AnyFlow, flow_run: FlowRun) -> None:
        """Run what was begun in the Prefect UI or by a schedule. Maintenance takes no slot of the transfers."""
        if (end := await self._earlier_end(flow_run)) is not None:
            log.info("retried_after_its_end", flow_run=str(flow_run.id), state=end.name)
            await self.gateway.set_state(flow_run.id, end)
            return
        if flow in MAINTENANCE:
            await self.maintenance.run_scheduled(flow, flow_run)
            return
        task = asyncio.current_task()
        if task is not None:
            self._tasks[flow_run.id] = task
        try:
            await self._runner.run(flow, flow_run, flow_run.parameters)
        finally:
            self._tasks.pop(flow_run.id, None)

    async def _earlier_end(self, flow_run: FlowRun) -> State[Any] | None:
        """Look, as soon as the catalogue is there: a run must not fail because it is away."""
        while True:
            with contextlib.suppress(CatalogueUnavailable):
                return await read(self._services.database, earlier_end, flow_run)
            await asyncio.sleep(POLL)

    # --- taking ------------------------------------------------------------------------------------------------------

    async def _take(self) -> float | None:
        # without Prefect nothing can run: what waits is left alone, it would only be taken and given back
        if not self.free or not self.gateway.there:
            return None
        # a lost transfer whose earlier run has not ended here yet is left to others: both would be the same Prefect run
        # (not of one that shared its run, as it gets another)
        mine = [*self._services.by_run.values(), *self._tasks]
        busy = {key.transfer for key in mine if isinstance(key, queue.TransferLease)}
        taking = asyncio.ensure_future(asyncio.to_thread(self._take_now, self.free, busy))
        try:
            taken = await asyncio.shield(taking)
        except asyncio.CancelledError:
            for run in await taking:  # the mover stops in this moment: nobody else knows of these
                await self._shared.give_back([hold for hold, _ in run], spent=False)
            raise
        for run in taken:
            self._start(run)
        return 0 if taken else None  # there may be more

    def _start(self, run: list[Taken]) -> None:
        """Run a transfer, or those that share a run, which take one slot."""
        self._services.running.update((hold, Control()) for hold, _ in run)
        self._expect_sessions([row for _, row in run])
        first, row = run[0]
        if row.shared_run is None:
            key: queue.TransferLease | UUID = first
            running, name = self._runner.run_transfer(first, row), f"transfer {first.transfer}"
        else:
            key = row.shared_run
            running, name = self._shared.run(key, run), f"shared run {key}"
        self._tasks[key] = task = asyncio.create_task(running, name=name)
        task.add_done_callback(functools.partial(self._forget, key, [hold for hold, _ in run]))

    def _expect_sessions(self, rows: list[Transfer]) -> None:
        """Have connections made, and programs started, while Prefect makes the flow run. Logins as the person: see
        `flows.runtime.acting.prepare`.
        """
        machines = self._services.machines
        for name in ({name for row in rows for name in limits.ends(row)} & machines.keys()).difference(
            machines.of_callers
        ):
            with contextlib.suppress(DataManagerError):  # the run will say so
                storage = self._services.storages.get(name)
                storage.expect(many=max(len(rows), rows[0].request.get("count", 0)) >= PACKED_FROM)

    def _take_now(self, free: int, busy: Collection[UUID]) -> list[list[Taken]]:
        """Take what there are slots for; return what runs alone, and those that share a run together."""
        services = self._services
        with services.database.read() as session:  # cheap: no write lock when the queue is empty
            most = limits.caps(session, services.machines)
            late = cancel_pause.due(session)
            if not late and (self.monitor.caps.pool == 0 or not queue.waiting(session, most)):
                return []
        caps = self.monitor.caps
        room: Mapping[str, int] = {}
        with services.database.write() as session:
            expired = cancel_pause.expire(session)
            if caps.limited:
                found = caps.room(held_by_priority(session), free)
                free, room = found.total, found.queues
            most = limits.caps(session, services.machines)
            taken = queue.take(
                session,
                services.owner,
                self._settings.lease,
                free,
                caps=most,
                room=room,
                besides=busy,
                together=self._settings.max_attempts > 1,  # what does not end together has another attempt alone
                apart=services.machines.of_callers,  # each logs in for its own task
            )
            rows = [(hold, get_transfer(session, hold.transfer, ALL)) for hold in taken]
            refused = withdrawal.refused(session, [row for _, row in rows], *services.in_force)
            for hold, row in rows:
                if row.id in refused:
                    row.stop_requested = queue.FORBID  # what is past its commit point has to look first
                    if not row.past_commit_point:
                        outcomes.fail(session, hold, NotAllowed(cancel_pause.WITHDRAWN))
                        expired.append(row)
                        continue
                if row.attempts > self._settings.max_attempts:
                    error = InternalError(f"given up after {self._settings.max_attempts} attempts; see faults")
                    outcomes.fail(session, hold, error)
                    expired.append(row)
        for row in expired:
            services.notify(f"ended:{row.id}")
        runs: dict[UUID, list[Taken]] = {}
        for hold, row in rows:
            if row.ended is None:
                runs.setdefault(row.shared_run or row.id, []).append((hold, row))
        return list(runs.values())

    def _forget(
        self, key: queue.TransferLease | UUID, holds: list[queue.TransferLease], _task: asyncio.Task[None]
    ) -> None:
        self._tasks.pop(key, None)
        for hold in holds:
            self._services.running.pop(hold, None)
        self._notified.set()  # a slot is free

    # --- grants ------------------------------------------------------------------------------------------------------

    async def ask_again(self) -> None:
        """Have those of this mover's transfers stop that are not permitted any more: their runs see it within a
        second.
        """
        held = [hold.transfer for hold in self._services.running]
        if held and (found := await write(self._services.database, self._forbid, held)):
            log.warning("not_allowed_any_more", transfers=[str(one) for one in found])

    def _forbid(self, session: Session, held: list[UUID]) -> list[UUID]:
        return withdrawal.forbid(session, held, *self._services.in_force)

    # --- leases ------------------------------------------------------------------------------------------------------

    async def _renew(self) -> None:
        lost, reaped, expired = await write(self._services.database, self._renew_leases)
        for row in expired:
            self._services.notify(f"ended:{row.id}")
        if reaped:
            log.warning("leases_reaped", transfers=[str(row.id) for row in reaped])
            self._notified.set()
        for hold in lost:
            running = self._services.running.get(hold)
            if running is not None:
                running.stop(LeaseLost(f"transfer {hold.transfer} was given to another mover"))

    def _renew_leases(self, session: Session) -> tuple[list[queue.TransferLease], list[Transfer], list[Transfer]]:
        """Return which leases were lost, which transfers were taken back, and which are too late."""
        owner, lease = self._services.owner, self._settings.lease
        lost = queue.renew(session, list(self._services.running), lease)
        hold_lease(session, MOVER_PREFIX + owner, owner, lease, {"prefect": self.gateway.there})
        self.maintenance.renew(session)
        return lost, queue.reap(session), cancel_pause.expire(session)
