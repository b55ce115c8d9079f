"""Bring Prefect's states and the catalogue together again, in both directions, for what nobody works on.

- A run is open although its transfer has ended: it ends as the transfer did.
- A transfer waits although its run is called running, failed or crashed: the run is called waiting again. When a person
  cancelled the run, the transfer ends as cancelled.
- A run begun in Prefect was handed to a mover that died before it made the transfer: it is handed out again.
- A shared run is open although none of its transfers is held: it ends as they did. Those that went back to the queue
  have left it.
- A maintenance run, which has no transfer, is called running although no mover has its lease: it has crashed.

All but the third are done only when two looks have found it so: somebody may be about to do it. A run that is missing
is made anew when its transfer is taken.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import structlog
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateName,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled as CancelledState
from prefect.states import Completed, Crashed, Failed, Scheduled

from datamanager.domain.states import TransferStatus
from datamanager.errors import Cancelled, TaskEnded
from deployments.orchestrator.flow_registry import DEPLOYMENT
from deployments.orchestrator.gateway import PrefectGateway, waiting
from flows.runtime.services import Services
from models.access.visibility import ALL
from models.core.leases import RUN_PREFIX, is_held
from models.database import read, write
from models.tables import Transfer
from models.transfers import cancel_pause
from models.transfers.lookup import by_flow_run, get_transfer, unheld_with_a_run
from models.transfers.shared_outcomes import SharedCounts, count_shared

PAGE = 200  # Prefect's own limit
WAITING = "AwaitingRetry"
LOST_AFTER = timedelta(minutes=1)
WAITS = (StateType.SCHEDULED, StateType.PAUSED)
"""States that a waiting transfer's run may have; who paused a run resumes it."""
OPEN = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)

log = structlog.get_logger(__name__)


class Reconciler:
    """Compares at each `reconcile`; remembers what the look before found."""

    def __init__(self, services: Services, gateway: PrefectGateway) -> None:
        self._services = services
        self._gateway = gateway
        self._suspects: set[Any] = set()

    async def reconcile(self) -> None:
        """Look, and repair what was found the last time too. Raises: OrchestratorUnavailable, CatalogueUnavailable."""
        before, self._suspects = self._suspects, set()
        for state in (in_states(*OPEN), FlowRunFilterState(name=FlowRunFilterStateName(any_=[WAITING]))):
            async for runs in self._pages(state):
                await self._compare_runs(runs, before)
        await self._compare_transfers(before)

    def _again(self, suspect: Any, before: set[Any]) -> bool:
        if suspect in before:
            return True
        self._suspects.add(suspect)
        return False

    async def _pages(self, state: FlowRunFilterState) -> AsyncIterator[list[FlowRun]]:
        """Read our deployments' runs in a state, a page at a time."""
        offset = 0
        while True:
            async with self._gateway.client() as client:
                page = await client.read_flow_runs(
                    flow_run_filter=FlowRunFilter(state=state),
                    deployment_filter=DeploymentFilter(name=DeploymentFilterName(any_=[DEPLOYMENT])),
                    sort=FlowRunSort.ID_DESC,
                    limit=PAGE,
                    offset=offset,
                )
            if page:
                yield page
            if len(page) < PAGE:
                return
            offset += PAGE

    async def _compare_runs(self, runs: list[FlowRun], before: set[Any]) -> None:
        services = self._services
        foreign = [run for run in runs if run.id not in services.by_run and run.id not in services.shared]
        rows = await read(services.database, by_flow_run, [run.id for run in foreign])
        for run in foreign:
            if await self._gateway.is_shared(run.deployment_id):
                await self._compare_shared(run, before)
                continue
            row = rows.get(run.id)
            if row is not None and row.ended is not None:
                if self._again(run.id, before):
                    log.info("run_reconciled", flow_run=str(run.id), transfer=str(row.id), status=row.status)
                    await self._gateway.set_state(run.id, end_of(row))
            elif row is None and _is_lost(run):
                log.info("run_rescheduled", flow_run=str(run.id))
                await self._gateway.set_state(run.id, Scheduled(message="its mover has died"))
            elif row is None and await self._is_deserted(run) and self._again(("deserted", run.id), before):
                log.info("maintenance_run_crashed", flow_run=str(run.id))
                await self._gateway.set_state(run.id, Crashed(message="its mover has died"))

    async def _compare_shared(self, run: FlowRun, before: set[Any]) -> None:
        """End a shared run that nobody works on. One that a person has begun is refused by the mover that gets it."""
        if run.state is None or run.state.is_scheduled() or run.state.is_pending():
            return
        found = await read(self._services.database, count_shared, [run.id])
        counts = found.get(run.id, SharedCounts())
        if not counts.held and self._again(run.id, before):
            log.info("shared_run_reconciled", flow_run=str(run.id), counts=str(counts))
            await self._gateway.set_state(run.id, end_of_shared(counts, "its mover is gone"))

    async def _compare_transfers(self, before: set[Any]) -> None:
        beyond: UUID | None = None
        while rows := await read(self._services.database, unheld_with_a_run, PAGE, beyond=beyond):
            beyond = rows[-1].id
            of_run = {row.flow_run_id: row for row in rows}
            ids = FlowRunFilterId(any_=[run for run in of_run if run is not None])
            async with self._gateway.client() as client:
                found = await client.read_flow_runs(flow_run_filter=FlowRunFilter(id=ids), limit=PAGE)
            for run in found:
                row = of_run[run.id]
                if run.state is not None and run.state.type not in WAITS and self._again((run.id, row.epoch), before):
                    await self._bring_back(run.id, run.state, row)

    async def _bring_back(self, run: UUID, state: State[Any], row: Transfer) -> None:
        if state.is_cancelled() or state.is_cancelling():
            log.info("cancelled_in_prefect", flow_run=str(run))
            await self._cancel(row.id)
            return
        now = await read(self._services.database, get_transfer, row.id, ALL)
        if now.owner is None and now.ended is None and now.epoch == row.epoch:
            log.info("run_requeued", flow_run=str(run), transfer=str(row.id), was=state.name)
            await self._gateway.set_state(run, waiting("waits in the queue for another attempt"))

    async def _is_deserted(self, run: FlowRun) -> bool:
        """Say whether a run of a maintenance flow is under way by its state alone."""
        state = run.state
        if state is None or not (state.is_running() or state.is_cancelling()) or run.id in self._services.maintenance:
            return False
        if run.parameters.get("transfer") or not await self._gateway.is_maintenance(run.deployment_id):
            return False
        return not await read(self._services.database, is_held, f"{RUN_PREFIX}{run.id}")

    async def _cancel(self, transfer: UUID) -> None:
        """End a waiting transfer, also one that is paused or not due yet; or ask the mover that has it to stop."""
        services = self._services
        try:
            row = await write(services.database, cancel_pause.cancel, transfer, ALL, "cancelled in Prefect")
        except TaskEnded as ended:
            log.info("not_cancelled", transfer=str(transfer), reason=ended.detail)
            return
        if row.ended is not None:
            services.notify(f"ended:{transfer}")


def end_of(row: Transfer) -> State[Any]:
    """Return the state in which the run of an ended transfer ends."""
    if row.status == TransferStatus.COMPLETE.value:
        return Completed(message=row.result)
    if row.error_code == Cancelled.code:
        return CancelledState(message=row.error_detail)
    return Failed(message=row.error_detail)


def end_of_shared(counts: SharedCounts, why: str = "") -> State[Any]:
    """Return the state in which a shared run ends; `why` it did not come to its own end."""
    said = f"{why}: {counts}" if why else str(counts)
    if counts.error:
        return Failed(message=said)
    if why or (counts.cancelled and not counts.complete):
        return CancelledState(message=said)
    return Completed(message=said)


def in_states(*types: StateType) -> FlowRunFilterState:
    """Return a filter for runs in states of these types."""
    return FlowRunFilterState(type=FlowRunFilterStateType(any_=list(types)))


def _is_lost(run: FlowRun) -> bool:
    """Say whether a run that was begun in Prefect has been waiting for a mover that took it and is gone."""
    state = run.state
    if state is None or not state.is_pending() or run.parameters.get("transfer"):
        return False
    return state.timestamp < datetime.now(UTC) - LOST_AFTER
