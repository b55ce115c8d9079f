"""A mover's eye on Prefect: is it there, was a run cancelled, did one stay RUNNING whose transfer has ended.

The catalogue is the truth about transfers; this brings Prefect's states and ours together again, in both directions.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
import structlog
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.context import AsyncClientContext
from prefect.exceptions import PrefectException
from prefect.states import Cancelled as CancelledState
from prefect.states import Completed, Failed

from datamanager.domain.states import TransferStatus
from datamanager.errors import Cancelled, CatalogueUnavailable
from deployments.flow_table import DEPLOYMENT
from flows.running.services import Services
from models.tables import Transfer
from models.transfers import find_by_flow_run

LOOK_EVERY = 2.0  # seconds between two looks at Prefect's health and at cancelled runs
RECONCILE_EVERY = 15  # such looks between two searches for runs that outlived their transfer
ANSWER_WITHIN = 2.0  # seconds
PAGE = 200

log = structlog.get_logger(__name__)


class PrefectWatch:
    """Looks at the Prefect server as long as `forever` runs. `there` is False while it does not answer."""

    def __init__(self, services: Services, changed: Callable[[], None]) -> None:
        self._services = services
        self._changed = changed
        self._suspects: set[UUID] = set()
        self.there = False

    async def forever(self) -> None:
        """Look every two seconds."""
        looks = 0
        while True:
            try:
                await self.look()
                if self.there and looks % RECONCILE_EVERY == 0:
                    await self.reconcile()
                looks += 1
            except (httpx.HTTPError, PrefectException, CatalogueUnavailable) as exc:
                log.warning("prefect_watch_failed", error=repr(exc))
            await asyncio.sleep(LOOK_EVERY)

    async def look(self) -> None:
        """See whether Prefect answers, and stop what was cancelled there."""
        was_there, self.there = self.there, await self._answers()
        if self.there != was_there:
            log.info("prefect_is_there" if self.there else "prefect_is_away")
            self._changed()
        if self.there and self._services.by_run:
            async with AsyncClientContext.get_or_create() as context:
                await self._stop_cancelled(context.client)

    async def _answers(self) -> bool:
        """Ask without Prefect's own client, which would try for a minute before it says no."""
        try:
            async with httpx.AsyncClient(trust_env=False, timeout=ANSWER_WITHIN) as client:
                answer = await client.get(f"{self._services.settings.prefect_url}/health")
        except httpx.HTTPError:
            return False
        return answer.status_code < 500

    async def _stop_cancelled(self, client: PrefectClient) -> None:
        ours = FlowRunFilter(id=FlowRunFilterId(any_=list(self._services.by_run)), state=_in(StateType.CANCELLING))
        for run in await client.read_flow_runs(flow_run_filter=ours, limit=PAGE):
            hold = self._services.by_run.get(run.id)
            control = self._services.running.get(hold) if hold is not None else None
            if control is not None:
                log.info("cancelled_in_prefect", flow_run=str(run.id))
                control.stop(Cancelled("cancelled in Prefect"))

    async def reconcile(self) -> None:
        """End runs that Prefect believes are under way although their transfer has ended.

        A run is ended only when two looks have found it so: the mover that ended the transfer may be about to say it.
        """
        async with AsyncClientContext.get_or_create() as context:
            open_runs = await context.client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    state=_in(StateType.RUNNING, StateType.PENDING, StateType.CANCELLING),
                ),
                deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[DEPLOYMENT])),
                limit=PAGE,
            )
            foreign = [run for run in open_runs if run.id not in self._services.by_run]
            ended = await asyncio.to_thread(self._ended, foreign)
            for run_id, row in ended.items():
                if run_id in self._suspects:
                    await self._end(context.client, run_id, row)
            self._suspects = set(ended)

    def _ended(self, runs: list[FlowRun]) -> dict[UUID, Transfer]:
        found = {}
        with self._services.database.read() as session:
            for run in runs:
                row = find_by_flow_run(session, run.id)
                if row is not None and row.ended is not None:
                    found[run.id] = row
        return found

    async def _end(self, client: PrefectClient, run_id: UUID, row: Transfer) -> None:
        log.info("run_reconciled", flow_run=str(run_id), transfer=str(row.id), status=row.status)
        state: State[Any]
        if row.status == TransferStatus.COMPLETE.value:
            state = Completed(message=row.result)
        elif row.error_code == Cancelled.code:
            state = CancelledState(message=row.error_detail)
        else:
            state = Failed(message=row.error_detail)
        await client.set_flow_run_state(run_id, state, force=True)


def _in(*types: StateType) -> FlowRunFilterState:
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))
