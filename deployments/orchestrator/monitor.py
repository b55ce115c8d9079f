"""A mover's monitor of Prefect: does it answer, what does its work pool allow, was a run of ours changed there.

The catalogue is the truth about transfers; where the two differ for what nobody works on, see
`deployments.orchestrator.reconcile`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from uuid import UUID

import structlog
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import StateType
from prefect.states import Running

from datamanager.engine.control import Control
from datamanager.errors import Cancelled
from deployments.orchestrator.gateway import PrefectGateway
from deployments.orchestrator.reconcile import PAGE, Reconciler, in_states
from deployments.orchestrator.work_pool import Caps, read_caps
from flows.runtime.services import Services

RECONCILE_EVERY = 5  # looks between two searches for runs that say something else than their transfer
NOT_OURS_TO_SAY = (
    StateType.CANCELLING,
    StateType.CANCELLED,
    StateType.COMPLETED,
    StateType.FAILED,
    StateType.CRASHED,
    StateType.SCHEDULED,
    StateType.PAUSED,
)
"""States that a run can't have while we work on it, unless somebody else set them."""

log = structlog.get_logger(__name__)


class PrefectMonitor:
    """Looks at the Prefect server, and notes in the gateway whether it is there.

    `caps` is what its work pool allowed at the last look. `queues` are the work queues that this mover serves; empty:
    all. `changed` is called when Prefect went away or came back.
    """

    def __init__(self, services: Services, gateway: PrefectGateway, changed: Callable[[], None]) -> None:
        self._services = services
        self._gateway = gateway
        self._changed = changed
        self.queues: Collection[str] = ()
        self._reconciler = Reconciler(services, gateway)
        self._looks = 0
        self._was_there = False
        self._misreported: set[UUID] = set()
        self.caps = Caps()

    async def look(self) -> None:
        """See whether Prefect answers and what its work pool allows; stop what was cancelled there; now and then bring
        its states and the catalogue together.
        """
        gateway = self._gateway
        answers = await gateway.look()
        if answers:
            self.caps = await self._read_caps()
        if gateway.there != self._was_there:
            self._was_there = gateway.there
            log.info("prefect_reachable" if gateway.there else "prefect_unreachable")
            self._changed()
        if answers and (self._services.by_run or self._services.shared or self._services.maintenance):
            await self._check_our_runs()
        if answers and self._looks % RECONCILE_EVERY == 0:
            await self._reconciler.reconcile()
        self._looks += 1

    async def _read_caps(self) -> Caps:
        async with self._gateway.client() as client:
            caps = await read_caps(client, self.queues)
            if caps is None:
                await self._gateway.provide()
                caps = await read_caps(client, self.queues)
        return caps or Caps(pool=0)  # another mover is making the pool

    async def _check_our_runs(self) -> None:
        """Stop what was cancelled in Prefect. What is called ended there, but is not, is called running again."""
        mine = [*self._services.by_run, *self._services.shared, *self._services.maintenance]
        ours = FlowRunFilter(id=FlowRunFilterId(any_=mine), state=in_states(*NOT_OURS_TO_SAY))
        misreported = set()
        async with self._gateway.client() as client:
            found = await client.read_flow_runs(flow_run_filter=ours, limit=PAGE)
        for run in found:
            control = self._control_of(run.id)
            if control is None or run.state is None:
                continue
            if run.state.is_cancelling() or run.state.is_cancelled():
                log.info("cancelled_in_prefect", flow_run=str(run.id))
                control.stop(Cancelled("cancelled in Prefect"))
            elif run.id in self._misreported:  # two looks found it so: it was not about to begin
                log.warning("run_set_to_running", flow_run=str(run.id), was=run.state.name)
                await self._gateway.set_state(run.id, Running(message="a mover works on it"))
            else:
                misreported.add(run.id)
        self._misreported = misreported

    def _control_of(self, run: UUID) -> Control | None:
        services = self._services
        if (hold := services.by_run.get(run)) is not None:
            return services.running.get(hold)
        shared = services.shared.get(run)
        return services.maintenance.get(run) if shared is None else shared.control
