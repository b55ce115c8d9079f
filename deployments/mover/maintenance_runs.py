"""A mover's maintenance runs: flows that are no transfers (`flow_registry.MAINTENANCE`), beside its transfers' slots.

They come from Prefect (a schedule, a person) or are audits that the API has entered in the catalogue. Runs of retention
that it has entered get their flow run here (`start_retention`), which any mover then takes. Each run has a lease
`run:{flow run}` that this mover renews; a run whose lease is gone is called crashed
(`deployments.orchestrator.reconcile`), and an audit whose run has no lease goes back to the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any
from uuid import UUID

import structlog
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import Abort
from prefect.states import Cancelled as CancelledState
from prefect.states import Running
from sqlalchemy.orm import Session

from datamanager.engine.control import Control
from datamanager.errors import Cancelled, CatalogueUnavailable, DataManagerError, OrchestratorUnavailable
from deployments.mover.flow_runner import run_warm
from deployments.orchestrator.flow_registry import AnyFlow
from deployments.orchestrator.gateway import PrefectGateway, translated
from flows.apply_retention import retention
from flows.audit_machine import audit
from flows.runtime.services import Services, provided
from models.audit import runs as audit_runs
from models.audit.runs import AuditLease
from models.core.leases import RUN_PREFIX, drop_lease, hold_lease
from models.database import read, write
from models.retention import runs as retention_runs

AT_ONCE = 8
"""Maintenance runs of one mover at once. They mostly wait for a machine, and take none of the transfers' slots."""
AUDITS_AT_ONCE = 4
"""As many of them may be audits that the API has entered: a row of those must not keep others from their time."""
STOP_WITHIN = 20.0
"""Seconds that runs get at a stop to give back what they work on."""

log = structlog.get_logger(__name__)


class MaintenanceRuns:
    """The maintenance runs of one mover. Belongs to its event loop."""

    def __init__(self, services: Services, gateway: PrefectGateway) -> None:
        self._services = services
        self._gateway = gateway
        self._tasks: dict[UUID, asyncio.Task[Any]] = {}
        self._audits: set[UUID] = set()
        self._stopping = False

    @property
    def free(self) -> int:
        """How many more may run here now."""
        return 0 if self._stopping else max(0, AT_ONCE - len(self._tasks))

    async def run_scheduled(self, flow: AnyFlow, flow_run: FlowRun) -> None:
        """Run what was begun in Prefect."""
        task = asyncio.current_task()
        if task is not None:
            self._tasks[flow_run.id] = task
        try:
            await self._run(flow, flow_run, flow_run.parameters)
        finally:
            self._tasks.pop(flow_run.id, None)

    def renew(self, session: Session) -> None:
        """Prolong the leases of what runs here, in the heartbeat's transaction."""
        for run in list(self._services.maintenance):
            self._hold(session, run)

    async def stop(self) -> None:
        """Stop what runs: it is no transfer that somebody waits for, so it gets no time to end well."""
        self._stopping = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            log.info("stopping_maintenance", runs=len(tasks))
            await asyncio.wait(tasks, timeout=STOP_WITHIN)

    # --- audits that the API has entered ------------------------------------------------------------------------------

    async def take_audits(self) -> None:
        """Begin the audits that wait, and give back those whose mover is gone."""
        if (
            not self.free
            or not self._gateway.there
            or not await read(self._services.database, audit_runs.anything_to_do)
        ):
            return
        for hold in await write(self._services.database, self._take):
            task = asyncio.create_task(self._run_audit(hold), name=f"audit {hold.audit}")
            self._tasks[hold.audit] = task
            self._audits.add(hold.audit)
            task.add_done_callback(partial(self._forget, hold.audit))

    def _forget(self, audit: UUID, _task: asyncio.Task[None]) -> None:
        self._tasks.pop(audit, None)
        self._audits.discard(audit)

    def _take(self, session: Session) -> list[AuditLease]:
        for row in audit_runs.give_back_lost(session):
            log.warning("audit_lost", audit=str(row.id), machine=row.machine, status=row.status)
        return audit_runs.take(session, min(self.free, AUDITS_AT_ONCE - len(self._audits)))

    async def _run_audit(self, hold: AuditLease) -> None:
        """Make an audit's run, and run it to its end. What did not begin goes back to the queue."""
        database = self._services.database
        try:
            flow_run = await self._gateway.create_run(
                audit,
                {"audit_id": str(hold.audit)},
                state=Running(),
                name=f"audit {hold.machine}",
                tags=["audit", hold.machine],
                idempotency_key=f"audit:{hold.audit}:{hold.attempt}",
            )
            await write(database, self._attach, hold, flow_run.id)
        except BaseException as exc:
            with contextlib.suppress(CatalogueUnavailable):  # its lease runs out by itself
                await asyncio.shield(write(database, audit_runs.release, hold))
            if isinstance(exc, DataManagerError):
                log.warning("audit_not_started", audit=str(hold.audit), error=exc.detail)
                return
            raise
        await self._run(audit, flow_run, {"audit_id": hold.audit})

    def _attach(self, session: Session, hold: AuditLease, run: UUID) -> None:
        audit_runs.attach(session, hold, run)
        self._hold(session, run)

    # --- running ------------------------------------------------------------------------------------------------------

    async def _run(self, flow: AnyFlow, flow_run: FlowRun, parameters: dict[str, Any]) -> None:
        services, run = self._services, flow_run.id
        control = services.maintenance[run] = Control()
        try:
            await write(services.database, self._hold, run)
            with provided(services), translated():
                state = await run_warm(flow, flow_run, parameters)
            if isinstance(control.stopping, Cancelled) and not state.is_completed():  # the engine calls it failed
                await self._gateway.set_state(run, CancelledState(message="cancelled in Prefect"))
        except Abort:
            log.info("maintenance_run_abandoned", flow_run=str(run))
        except (CatalogueUnavailable, OrchestratorUnavailable) as exc:
            log.warning("maintenance_run_failed", flow_run=str(run), code=exc.code, error=exc.detail)
        finally:
            services.maintenance.pop(run, None)
            with contextlib.suppress(CatalogueUnavailable):
                drop = write(services.database, drop_lease, f"{RUN_PREFIX}{run}", services.owner)
                await asyncio.shield(drop)

    def _hold(self, session: Session, run: UUID) -> None:
        hold_lease(session, f"{RUN_PREFIX}{run}", self._services.owner, self._services.settings.lease)


async def start_retention(services: Services, gateway: PrefectGateway) -> None:
    """Make the flow runs of requested runs of retention, and end the runs whose mover is gone.

    With several movers two may see the same request: the idempotency key makes it one flow run.
    """
    database = services.database
    if await read(database, retention_runs.any_lost):
        for run in await write(database, retention_runs.end_lost):
            log.warning("retention_run_lost", run=str(run))
    if not gateway.there:
        return
    for run in await read(database, retention_runs.asked_for):
        made = await gateway.create_run(
            retention,
            {"run_id": str(run)},
            name=f"retention {str(run)[:8]}",
            tags=["retention"],
            idempotency_key=f"retention:{run}",
        )
        await write(database, retention_runs.attach, run, made.id)
