"""A mover's runs: takes transfers from the catalogue, makes each one's Prefect flow run, runs it warm, and gives
leases their heartbeat.

The catalogue is the truth; Prefect runs and shows. What can't be shown now (Prefect is away) waits in the queue and
costs no attempt.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import httpx
import structlog
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import AsyncClientContext
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.flow_engine import run_flow_async
from prefect.states import Pending

from datamanager.domain.states import TransferKind, TransferStatus, status_of_run
from datamanager.engine.control import Control
from datamanager.errors import Cancelled, CatalogueUnavailable, DataManagerError, InternalError, LeaseLost
from deployments.flow_table import DEPLOYMENT, FLOW_OF_KIND, AnyFlow
from flows.running.naming import run_name, run_tags
from flows.running.services import Services, provided
from models import movers, outcomes
from models.leases import MOVER_PREFIX, drop_lease, hold_lease
from models.tables import Transfer
from models.transfers import get_transfer

POLL = 1.0  # seconds; wake-ups make the start immediate, the poll only catches what they missed
BACK_IN = timedelta(seconds=1)
"""When a transfer whose run did not begin is tried again."""
STOP_GRACE = 20.0  # seconds that runs get to hand their work back

log = structlog.get_logger(__name__)


class Runs:
    """The transfers that this mover performs, at most `settings.concurrency` at once. Lives in one event loop."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._settings = services.settings
        self._tasks: dict[movers.Hold, asyncio.Task[None]] = {}
        self._deployments: dict[str, UUID] = {}
        self._woken = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._stopping = False

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
            free = self._settings.concurrency - len(self._tasks)
            if free > 0 and await self._when_possible(self._take, free):
                continue  # there may be more
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), POLL)

    async def beat_forever(self) -> None:
        """Say that this mover lives, renew its leases, stop what was lost, return what silent movers left."""
        while True:
            await self._when_possible(self._beat)
            await asyncio.sleep(self._settings.heartbeat.total_seconds())

    async def stop(self) -> None:
        """Take nothing new and hand the running transfers back to the queue."""
        self._stopping = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=STOP_GRACE)
        with contextlib.suppress(CatalogueUnavailable):
            await asyncio.to_thread(self._sign_off)

    async def run_scheduled(self, flow: AnyFlow, flow_run: FlowRun) -> None:
        """Run what was begun in the Prefect UI or by a schedule."""
        with provided(self._services):
            await run_flow_async(flow, flow_run=flow_run, parameters=flow_run.parameters, return_type="state")

    # --- taking ------------------------------------------------------------------------------------------------------

    async def _take(self, free: int) -> bool:
        taken = await asyncio.to_thread(self._take_now, free)
        for hold, row in taken:
            self._services.running[hold] = Control()
            self._tasks[hold] = asyncio.create_task(self._perform(hold, row), name=f"transfer {hold.transfer}")
            self._tasks[hold].add_done_callback(functools.partial(self._forget, hold))
        return bool(taken)

    def _take_now(self, free: int) -> list[tuple[movers.Hold, Transfer]]:
        with self._services.database.read() as session:  # cheap: no write lock when the queue is empty
            if not movers.waiting(session):
                return []
        with self._services.database.write() as session:
            taken = movers.take(session, self._services.owner, self._settings.lease, free)
            rows = [(hold, get_transfer(session, hold.transfer)) for hold in taken]
            for hold, row in rows:
                if row.attempts > self._settings.max_attempts:
                    error = InternalError(f"given up after {self._settings.max_attempts} attempts; see faults")
                    outcomes.fail(session, hold, error)
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
                self._services.assigned[flow_run.id] = hold
                try:
                    with provided(self._services):
                        state = await run_flow_async(
                            flow, flow_run=flow_run, parameters={"transfer": hold.transfer}, return_type="state"
                        )
                finally:
                    self._services.assigned.pop(flow_run.id, None)
            if hold in self._services.running and isinstance(state, State):
                await self._did_not_begin(hold, state)
        except (httpx.HTTPError, PrefectException) as exc:
            spent = False  # Prefect is away, which is no fault of the transfer
            log.warning("prefect_unavailable", transfer=str(hold.transfer), error=repr(exc))
        finally:
            if hold in self._services.running:  # the flow did not begin, so it did not end the transfer either
                await self._give_back(hold, spent=spent)

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
        """Return the transfer's flow run, PENDING: the one it has, or a new one. PENDING, because no worker polls
        for that.
        """
        run = None
        if row.flow_run_id is not None:
            with contextlib.suppress(ObjectNotFound):
                run = await client.read_flow_run(row.flow_run_id)
        if run is None:
            run = await client.create_flow_run_from_deployment(
                await self._deployment(client, flow),
                parameters={"transfer": str(row.id)},
                state=Pending(),
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
            self._deployments[name] = (await client.read_deployment_by_name(name)).id
        return self._deployments[name]

    async def _give_back(self, hold: movers.Hold, *, spent: bool) -> None:
        def give_back() -> None:
            with self._services.database.write() as session:
                movers.requeue(session, hold, after=BACK_IN, spent=spent)

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
            hold_lease(session, MOVER_PREFIX + self._services.owner, self._services.owner, self._settings.lease)
            reaped = movers.reap(session)
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
