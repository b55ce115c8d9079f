"""One transfer's flow run, from its making to its end: the catalogue's row and the run in Prefect say the same.

What can't be shown now (Prefect is away) goes back to the queue, and that costs no attempt.

Runs are performed by Prefect's flow engine, less what a mover does better for all its runs together. Measured with 200
tiny copies in the queue, where Prefect's server is what takes the time:

- Each run of the engine opens a thread, an event loop and a websocket to learn whether somebody suspends it. That
  halves the runs per second. A mover looks at all its runs with one request (`deployments.orchestrator.monitor`).
- Each run asks the server where results are kept. Ours are kept nowhere: the catalogue has them.
- A run that a mover has made is RUNNING from its first moment: it does so at once. Three requests less.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import Abort
from prefect.states import Running

from datamanager.domain.states import TransferKind, TransferStatus, status_of_run
from datamanager.errors import Cancelled, CatalogueUnavailable, InternalError, LeaseLost, OrchestratorUnavailable
from deployments.mover.heartbeats import heartbeats
from deployments.orchestrator.flow_registry import FLOW_OF_KIND, AnyFlow
from deployments.orchestrator.gateway import PrefectGateway, translated
from deployments.orchestrator.prefect_private import KnowingClient, Nowhere, UnobservedEngine
from deployments.orchestrator.reconcile import end_of
from flows.runtime import acting
from flows.runtime.progress import run_name, run_tags
from flows.runtime.services import Services, provided
from models.access.visibility import ALL
from models.database import read, write
from models.tables import Transfer
from models.transfers import outcomes, queue
from models.transfers.lookup import get_transfer

BACK_IN = timedelta(seconds=1)
"""When a transfer whose run did not begin is tried again."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class FlowRunner:
    """Runs what a mover has taken. `stopping` says whether the mover stops."""

    services: Services
    gateway: PrefectGateway
    stopping: Callable[[], bool]

    async def run_transfer(self, hold: queue.TransferLease, row: Transfer) -> None:
        """Make a transfer's run and run it to its end; give back what has not ended then. Raises: CancelledError."""
        flow = FLOW_OF_KIND[TransferKind(row.kind)]
        spent = True
        try:
            acting.prepare(self.services, hold, row)
            flow_run = await self._flow_run(flow, row, hold)
            self.services.by_run[flow_run.id] = hold
            state = await self.run(flow, flow_run, {"transfer": hold.transfer})
            if hold in self.services.running and state is not None:
                await self._did_not_begin(hold, state)
        except asyncio.CancelledError:
            spent = False  # the mover stops, which is no fault of the transfer
            raise
        except OrchestratorUnavailable as exc:
            spent = False  # Prefect is away, neither
            self.gateway.miss()
            log.warning("prefect_unavailable", transfer=str(hold.transfer), error=exc.detail)
        finally:
            if hold in self.services.running:  # the flow did not begin, so it did not end the transfer either
                await self.give_back(hold, spent=spent)
            await acting.give_up(self.services, hold)

    async def run(self, flow: AnyFlow, flow_run: FlowRun, parameters: dict[str, Any]) -> State[Any] | None:
        """Run a flow to its end; None when another mover has its transfer and so the run. Gives back what is held when
        the mover stops: not before the flow run's state is written, or that would overwrite the next mover's.
        """
        mine = self.services.by_run.get(flow_run.id)
        try:
            with provided(self.services), translated():
                state = await run_warm(flow, flow_run, parameters)
            return await self._final(flow_run, state)
        except Abort:
            return None
        except asyncio.CancelledError:
            hold = self.services.by_run.get(flow_run.id)
            if hold is not None and hold in self.services.running:
                # the engine has called it crashed
                await self.gateway.show_waiting(flow_run.id, "returned to the queue: its mover stops")
                await self.give_back(hold, spent=False)
            raise
        finally:
            if mine is None or self.services.by_run.get(flow_run.id) == mine:
                self.services.by_run.pop(flow_run.id, None)

    async def give_back(self, hold: queue.TransferLease, *, spent: bool) -> None:
        """Return a transfer to the queue; `spent`: the attempt counts. Never raises for a catalogue that is away."""
        self.services.running.pop(hold, None)
        after = timedelta(0) if self.stopping() else BACK_IN
        with contextlib.suppress(LeaseLost, CatalogueUnavailable):  # ended, or the lease runs out by itself
            await asyncio.shield(write(self.services.database, queue.requeue, hold, after=after, spent=spent))

    async def _final(self, flow_run: FlowRun, state: State[Any]) -> State[Any]:
        """Let a run end as its transfer did: the engine calls every error FAILED, also one after which the transfer
        waits for its next attempt, and can't say at all how a run ended that was cancelled.
        """
        hold = self.services.by_run.get(flow_run.id)
        if hold is None or state.is_completed() or state.is_cancelled():
            return state
        row = await read(self.services.database, get_transfer, hold.transfer, ALL)
        if row.ended is not None and (wanted := end_of(row)).type is not state.type:
            await self.gateway.set_state(flow_run.id, wanted)
        elif row.ended is None and row.owner is None and row.epoch == hold.epoch:
            await self.gateway.show_waiting(flow_run.id, "waits in the queue for another attempt")
        return state

    async def _did_not_begin(self, hold: queue.TransferLease, state: State[Any]) -> None:
        """End a transfer whose run somebody ended in Prefect before it began."""
        if status_of_run(state.type.value, state.name or "", bytes_moved=False) is not TransferStatus.ERROR:
            return
        reason = Cancelled("cancelled in Prefect") if state.is_cancelled() else InternalError(f"run {state.name}")
        with contextlib.suppress(LeaseLost):
            await write(self.services.database, outcomes.fail, hold, reason)
        self.services.running.pop(hold, None)
        self.services.notify(f"ended:{hold.transfer}")

    async def _flow_run(self, flow: AnyFlow, row: Transfer, hold: queue.TransferLease) -> FlowRun:
        """Return the transfer's flow run, RUNNING: the one it has, or a new one."""
        run = None if row.flow_run_id is None else await self.gateway.read_run(row.flow_run_id)
        if run is None:
            run = await self.gateway.create_run(
                flow,
                {"transfer": str(row.id)},
                state=Running(),
                work_queue_name=row.priority,
                name=run_name(row),
                tags=run_tags(row),
                idempotency_key=str(row.id) if row.flow_run_id is None else f"{row.id}:{hold.epoch}",
            )
        if run.state is None or not run.state.is_running():
            await self.gateway.set_state(run.id, Running(message="acquired again"))
            run = await self.gateway.read_run(run.id)
            if run is None:
                raise OrchestratorUnavailable("the flow run was deleted in Prefect")
        return run


class WarmEngine(UnobservedEngine):
    """Runs a flow run that is there already."""

    def __init__(self, flow: AnyFlow, flow_run: FlowRun, parameters: dict[str, Any]) -> None:
        super().__init__(flow=flow, parameters=parameters)
        self._made = flow_run

    async def create_flow_run(self, client: PrefectClient) -> FlowRun:  # noqa: ARG002 - Prefect's signature
        """Return the run, as it is: its deployment has said all that Prefect's engine would write to it here."""
        return self._made

    async def begin_run(self) -> State[Any]:
        """Call the run RUNNING, unless it was made so. What Prefect hands out to a worker tells no state."""
        made = self._made.state
        return made if made is not None and made.is_running() else await super().begin_run()

    @contextlib.asynccontextmanager
    async def setup_run_context(self, client: PrefectClient | None = None) -> AsyncIterator[None]:
        """Make Prefect's context of the run. One that was made RUNNING is not read again."""
        made = self._made.state
        if made is not None and made.is_running():
            client = KnowingClient(client or self.client, self._made)
        async with super().setup_run_context(client):
            yield


async def run_warm(flow: AnyFlow, flow_run: FlowRun, parameters: dict[str, Any]) -> State[Any]:
    """Run a flow to its end, as `prefect.flow_engine.run_flow_async` does, and return its state.

    The parameters of a run that is RUNNING are taken as they are. Raises: Abort, Pause; CancelledError, once the run
    has been called crashed.
    """
    flow.result_storage = flow.result_storage or Nowhere()
    engine = WarmEngine(flow, flow_run, parameters)
    async with heartbeats(flow_run), engine.start():
        while engine.is_running():
            async with engine.run_context():
                _ = await engine.call_flow_fn()
    return engine.state
