"""A mover's runs: takes transfers from the catalogue, makes each one's Prefect flow run, runs it warm, and gives
leases their heartbeat.

The catalogue is the truth; Prefect runs and shows. What can't be shown now (Prefect is away) waits in the queue and
costs no attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import structlog
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import AsyncClientContext
from prefect.exceptions import Abort, ObjectNotFound, PrefectException
from prefect.flow_engine import run_flow_async
from prefect.states import Pending

from datamanager.domain.states import TransferKind, TransferStatus, status_of_run
from datamanager.engine.control import Control
from datamanager.errors import (
    Cancelled,
    CatalogueUnavailable,
    DataManagerError,
    InternalError,
    LeaseLost,
    OrchestratorUnavailable,
)
from deployments.flow_table import DEPLOYMENT, FLOW_OF_KIND, AnyFlow
from deployments.reconciling import end_of
from deployments.watching import PrefectWatch
from flows.running.naming import run_name, run_tags
from flows.running.services import Services, provided
from models import control, limits, movers, outcomes
from models.leases import MOVER_PREFIX, drop_lease, hold_lease
from models.runs import held_by_priority
from models.tables import Transfer
from models.transfers import get_transfer

POLL = 1.0  # seconds; wake-ups make the start immediate, the poll only catches what they missed
BACK_IN = timedelta(seconds=1)
"""When a transfer whose run did not begin is tried again."""
HAND_BACK_WITHIN = 20.0  # seconds that runs get at a stop to hand their work back

log = structlog.get_logger(__name__)


class Runs:
    """The transfers that this mover performs, at most `settings.concurrency` at once. Lives in one event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._settings = services.settings
        self._tasks: dict[movers.Hold | UUID, asyncio.Task[Any]] = {}
        self._beat_soon = asyncio.Event()
        self.prefect = PrefectWatch(services, self._prefect_changed)
        self._deployments: dict[str, UUID] = {}
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
        return bool(self._tasks)

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
        if tasks:
            log.info("handing_back", transfers=len(tasks))
            await asyncio.wait(tasks, timeout=HAND_BACK_WITHIN)
        with contextlib.suppress(CatalogueUnavailable):
            await asyncio.to_thread(self._sign_off)

    async def run_scheduled(self, flow: AnyFlow, flow_run: FlowRun) -> None:
        """Run what was begun in the Prefect UI or by a schedule."""
        task = asyncio.current_task()
        if task is not None:
            self._tasks[flow_run.id] = task
        try:
            await self._run(flow, flow_run, flow_run.parameters)
        finally:
            self._tasks.pop(flow_run.id, None)

    # --- taking ------------------------------------------------------------------------------------------------------

    async def _take(self, free: int) -> bool:
        # a lost transfer whose earlier run has not ended here yet is left to others: both would be the same Prefect run
        mine = [*self._services.running, *self._services.by_run.values(), *self._tasks]
        busy = {key.transfer for key in mine if isinstance(key, movers.Hold)}
        taking = asyncio.ensure_future(asyncio.to_thread(self._take_now, free, busy))
        try:
            taken = await asyncio.shield(taking)
        except asyncio.CancelledError:
            for hold, _ in await taking:  # the mover stops in this moment: nobody else knows of these
                await self._give_back(hold, spent=False)
            raise
        for hold, row in taken:
            self._services.running[hold] = Control()
            self._tasks[hold] = asyncio.create_task(self._perform(hold, row), name=f"transfer {hold.transfer}")
            self._tasks[hold].add_done_callback(functools.partial(self._forget, hold))
        return bool(taken)

    def _take_now(self, free: int, busy: Collection[UUID]) -> list[tuple[movers.Hold, Transfer]]:
        services = self._services
        with services.database.read() as session:  # cheap: no write lock when the queue is empty
            most = limits.caps(session, services.machines)
            late = control.due(session)
            if not late and (self.prefect.caps.pool == 0 or not movers.waiting(session, most)):
                return []
        caps = self.prefect.caps
        room: Mapping[str, int] = {}
        with services.database.write() as session:
            expired = control.expire(session)
            if caps.limited:
                found = caps.room(held_by_priority(session), free)
                free, room = found.total, found.queues
            most = limits.caps(session, services.machines)
            taken = movers.take(session, services.owner, self._settings.lease, free, caps=most, room=room, besides=busy)
            rows = [(hold, get_transfer(session, hold.transfer)) for hold in taken]
            for hold, row in rows:
                if row.attempts > self._settings.max_attempts:
                    error = InternalError(f"given up after {self._settings.max_attempts} attempts; see faults")
                    outcomes.fail(session, hold, error)
                    expired.append(row)
        for row in expired:
            services.ring(f"ended:{row.id}")
        return [(hold, row) for hold, row in rows if row.ended is None]

    def _forget(self, hold: movers.Hold, _task: asyncio.Task[None]) -> None:
        self._tasks.pop(hold, None)
        self._services.running.pop(hold, None)
        self._woken.set()  # a slot is free

    # --- running -----------------------------------------------------------------------------------------------------

    async def _perform(self, hold: movers.Hold, row: Transfer) -> None:
        flow = FLOW_OF_KIND[TransferKind(row.kind)]
        spent = True
        try:
            async with AsyncClientContext.get_or_create() as context:
                flow_run = await self._flow_run(context.client, flow, row, hold)
            self._services.by_run[flow_run.id] = hold
            state = await self._run(flow, flow_run, {"transfer": hold.transfer})
            if hold in self._services.running and state is not None:
                await self._did_not_begin(hold, state)
        except asyncio.CancelledError:
            spent = False  # the mover stops, which is no fault of the transfer
            raise
        except (httpx.HTTPError, PrefectException, OrchestratorUnavailable) as exc:
            spent = False  # Prefect is away, neither
            self.prefect.there = False
            log.warning("prefect_unavailable", transfer=str(hold.transfer), error=repr(exc))
        finally:
            if hold in self._services.running:  # the flow did not begin, so it did not end the transfer either
                await self._give_back(hold, spent=spent)

    async def _run(self, flow: AnyFlow, flow_run: FlowRun, parameters: dict[str, Any]) -> State[Any] | None:
        """Run a flow to its end; None when another mover has its transfer and so the run. Gives back what is held when
        the mover stops: not before the flow run's state is written, or that would overwrite the next mover's.
        """
        mine = self._services.by_run.get(flow_run.id)
        try:
            with provided(self._services):
                state = await run_flow_async(flow, flow_run=flow_run, parameters=parameters, return_type="state")
            return await self._final(flow_run, state) if isinstance(state, State) else None
        except Abort:
            return None
        except asyncio.CancelledError:
            hold = self._services.by_run.get(flow_run.id)
            if hold is not None and hold in self._services.running:
                await self.prefect.show_waiting(flow_run.id, "handed back: its mover stops")  # the engine said: crashed
                await self._give_back(hold, spent=False)
            raise
        finally:
            if mine is None or self._services.by_run.get(flow_run.id) == mine:
                self._services.by_run.pop(flow_run.id, None)

    async def _final(self, flow_run: FlowRun, state: State[Any]) -> State[Any]:
        """Let a run end as its transfer did: the engine calls every error FAILED, also one after which the transfer
        waits for its next attempt, and can't say at all how a run ended that was cancelled.
        """
        hold = self._services.by_run.get(flow_run.id)
        if hold is None or state.is_completed() or state.is_cancelled():
            return state

        def read() -> Transfer:
            with self._services.database.read() as session:
                return get_transfer(session, hold.transfer)

        row = await asyncio.to_thread(read)
        if row.ended is not None and (wanted := end_of(row)).type is not state.type:
            async with AsyncClientContext.get_or_create() as context:
                await context.client.set_flow_run_state(flow_run.id, wanted, force=True)
        elif row.ended is None and row.owner is None and row.epoch == hold.epoch:
            await self.prefect.show_waiting(flow_run.id, "waits in the queue for another attempt")
        return state

    async def _did_not_begin(self, hold: movers.Hold, state: State[Any]) -> None:
        """End a transfer whose run somebody ended in Prefect before it began."""
        if status_of_run(state.type.value, state.name or "", bytes_moved=False) is not TransferStatus.ERROR:
            return
        reason = Cancelled("cancelled in Prefect") if state.is_cancelled() else InternalError(f"run {state.name}")

        def end() -> None:
            with self._services.database.write() as session:
                outcomes.fail(session, hold, reason)

        with contextlib.suppress(LeaseLost):
            await asyncio.to_thread(end)
        self._services.running.pop(hold, None)
        self._services.ring(f"ended:{hold.transfer}")

    async def _flow_run(self, client: PrefectClient, flow: AnyFlow, row: Transfer, hold: movers.Hold) -> FlowRun:
        """Return the transfer's flow run, PENDING: the one it has, or a new one. No worker polls for PENDING ones."""
        run = None
        if row.flow_run_id is not None:
            with contextlib.suppress(ObjectNotFound):
                run = await client.read_flow_run(row.flow_run_id)
        if run is None:
            run = await client.create_flow_run_from_deployment(
                await self._deployment(client, flow),
                parameters={"transfer": str(row.id)},
                state=Pending(),
                work_queue_name=row.priority,
                name=run_name(row),
                tags=run_tags(row),
                idempotency_key=str(row.id) if row.flow_run_id is None else f"{row.id}:{hold.epoch}",
            )
        if run.state is None or not run.state.is_pending():
            await client.set_flow_run_state(run.id, Pending(message="taken again"), force=True)
            run = await client.read_flow_run(run.id)
        return run

    async def _deployment(self, client: PrefectClient, flow: AnyFlow) -> UUID:
        name = f"{flow.name}/{DEPLOYMENT}"
        if name not in self._deployments:
            try:
                found = await client.read_deployment_by_name(name)
            except ObjectNotFound:
                await self.prefect.provide()
                found = await client.read_deployment_by_name(name)
            self._deployments[name] = found.id
        return self._deployments[name]

    async def _give_back(self, hold: movers.Hold, *, spent: bool) -> None:
        def give_back() -> None:
            with self._services.database.write() as session:
                movers.requeue(session, hold, after=timedelta(0) if self._stopping else BACK_IN, spent=spent)

        self._services.running.pop(hold, None)
        self._deployments.clear()  # they may have been made anew
        with contextlib.suppress(LeaseLost, CatalogueUnavailable):  # ended, or the lease runs out by itself
            await asyncio.shield(asyncio.to_thread(give_back))

    # --- leases ------------------------------------------------------------------------------------------------------

    async def _beat(self) -> None:
        lost = await asyncio.to_thread(self._beat_now)
        for hold in lost:
            control = self._services.running.get(hold)
            if control is not None:
                control.stop(LeaseLost(f"transfer {hold.transfer} was given to another mover"))

    def _beat_now(self) -> list[movers.Hold]:
        holds = list(self._services.running)
        with self._services.database.write() as session:
            lost = movers.renew(session, holds, self._settings.lease)
            details = {"prefect": self.prefect.there}
            hold_lease(
                session, MOVER_PREFIX + self._services.owner, self._services.owner, self._settings.lease, details
            )
            reaped = movers.reap(session)
            expired = control.expire(session)
        for row in expired:
            self._services.ring(f"ended:{row.id}")
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
