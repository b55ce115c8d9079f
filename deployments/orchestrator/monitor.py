"""A mover's eye on Prefect: is it there, what does its work pool allow, was a run of ours cancelled or changed there.

The catalogue is the truth about transfers; where the two differ for what nobody works on, see
`deployments.orchestrator.reconcile`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from datetime import timedelta
from uuid import UUID

import httpx
import structlog
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import StateType
from prefect.context import AsyncClientContext
from prefect.exceptions import PrefectException
from prefect.states import Running

from datamanager.errors import Cancelled, CatalogueUnavailable, OrchestratorUnavailable
from deployments.orchestrator.deploy import apply
from deployments.orchestrator.reconcile import PAGE, Reconciler, in_states, waiting
from deployments.orchestrator.work_pool import Caps, read_caps
from flows.runtime.services import Services
from models.core.leases import drop_lease, hold_lease

LOOK_EVERY = 2.0  # seconds between two looks at Prefect's health, its work pool and our runs
RECONCILE_EVERY = 5  # such looks between two searches for runs that say something else than their transfer
ANSWER_WITHIN = 2.0  # seconds
DEPLOY_LEASE = "deploy"
DEPLOY_WITHIN = timedelta(seconds=30)
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


class PrefectWatch:
    """Looks at the Prefect server as long as `forever` runs. `there` is False while it does not answer.

    `caps` is what its work pool allowed at the last look. `queues` are the work queues that this mover
    serves; empty: all.
    """

    def __init__(self, services: Services, changed: Callable[[], None]) -> None:
        self._services = services
        self._changed = changed
        self.queues: Collection[str] = ()
        self._reconciler = Reconciler(services)
        self._astray: set[UUID] = set()
        self.there = False
        self.caps = Caps()

    async def forever(self) -> None:
        """Look every two seconds."""
        looks = 0
        while True:
            try:
                await self.look()
                if self.there and looks % RECONCILE_EVERY == 0:
                    async with AsyncClientContext.get_or_create() as context:
                        await self._reconciler.reconcile(context.client)
                looks += 1
            except (httpx.HTTPError, PrefectException, CatalogueUnavailable, OrchestratorUnavailable) as exc:
                log.warning("prefect_watch_failed", error=repr(exc))
            await asyncio.sleep(LOOK_EVERY)

    async def look(self) -> None:
        """See whether Prefect answers and what its work pool allows; stop what was cancelled there."""
        there = await self._answers()
        if there:
            async with AsyncClientContext.get_or_create() as context:
                self.caps = await self._read_caps(context.client)
        was_there, self.there = self.there, there
        if there != was_there:
            log.info("prefect_is_there" if there else "prefect_is_away")
            self._changed()
        if there and (self._services.by_run or self._services.upkeep):
            async with AsyncClientContext.get_or_create() as context:
                await self._mind_our_runs(context.client)

    async def provide(self) -> None:
        """Make the work pool and the deployments, which are missing: Prefect's database was lost, or is older.

        One mover does it at a time. Raises: OrchestratorUnavailable, CatalogueUnavailable.
        """
        owner = self._services.owner

        def begin() -> bool:
            with self._services.database.write() as session:
                return hold_lease(session, DEPLOY_LEASE, owner, DEPLOY_WITHIN)

        def end() -> None:
            with self._services.database.write() as session:
                drop_lease(session, DEPLOY_LEASE, owner)

        if not await asyncio.to_thread(begin):
            return
        try:
            log.warning("deployments_missing", says="they are made anew")
            await apply()
        finally:
            await asyncio.to_thread(end)

    async def show_waiting(self, flow_run: UUID, message: str) -> None:
        """Show a run of ours as waiting, before its transfer goes back to the queue; in vain while Prefect is away."""
        if not self.there:
            return
        try:
            async with asyncio.timeout(ANSWER_WITHIN), AsyncClientContext.get_or_create() as context:
                await context.client.set_flow_run_state(flow_run, waiting(message), force=True)
        except (httpx.HTTPError, PrefectException, TimeoutError) as exc:
            log.warning("run_not_shown", flow_run=str(flow_run), error=repr(exc))  # the reconciler does it later

    async def _answers(self) -> bool:
        """Ask without Prefect's own client, which would try for a minute before it says no."""
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_WITHIN) as client:
                answer = await client.get(f"{self._services.settings.prefect_url}/health")
        except httpx.HTTPError:
            return False
        return answer.status_code < 500

    async def _read_caps(self, client: PrefectClient) -> Caps:
        caps = await read_caps(client, self.queues)
        if caps is None:
            await self.provide()
            caps = await read_caps(client, self.queues)
        return caps or Caps(pool=0)  # another mover is making the pool

    async def _mind_our_runs(self, client: PrefectClient) -> None:
        """Stop what was cancelled in Prefect. What is called ended there, but is not, is called running again."""
        mine = [*self._services.by_run, *self._services.upkeep]
        ours = FlowRunFilter(id=FlowRunFilterId(any_=mine), state=in_states(*NOT_OURS_TO_SAY))
        astray = set()
        for run in await client.read_flow_runs(flow_run_filter=ours, limit=PAGE):
            hold = self._services.by_run.get(run.id)
            control = self._services.upkeep.get(run.id) if hold is None else self._services.running.get(hold)
            if control is None or run.state is None:
                continue
            if run.state.is_cancelling() or run.state.is_cancelled():
                log.info("cancelled_in_prefect", flow_run=str(run.id))
                control.stop(Cancelled("cancelled in Prefect"))
            elif run.id in self._astray:  # two looks found it so: it was not about to begin
                log.warning("run_called_running_again", flow_run=str(run.id), was=run.state.name)
                await client.set_flow_run_state(run.id, Running(message="a mover works on it"), force=True)
            else:
                astray.add(run.id)
        self._astray = astray
