"""A mover's maintenance runs: flows that are no transfers (`flow_table.MAINTENANCE`), beside its transfers' slots.

They come from Prefect (a schedule, a person) or are audits that the API has entered in the catalogue. Each has a lease
`run:{flow run}` that this mover renews; a run whose lease is gone is called crashed (`deployments.orchestrator.reconcile`), and an
audit whose run has no lease goes back to the queue.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any
from uuid import UUID

import httpx
import structlog
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import AsyncClientContext
from prefect.exceptions import Abort, ObjectNotFound, PrefectException
from prefect.states import Cancelled as CancelledState
from prefect.states import Running
from sqlalchemy.orm import Session

from datamanager.engine.control import Control
from datamanager.errors import Cancelled, CatalogueUnavailable, DataManagerError, OrchestratorUnavailable
from deployments.mover.warm_engine import run_warm
from deployments.orchestrator.flow_registry import DEPLOYMENT, ENTRYPOINTS, MAINTENANCE, AnyFlow
from deployments.orchestrator.monitor import PrefectWatch
from flows.runtime.services import Services, provided
from models.audit import runs as audit_runs
from models.audit.runs import AuditLease
from models.core.leases import RUN_PREFIX, drop_lease, hold_lease

AT_ONCE = 8
"""Maintenance runs of one mover at once. They mostly wait for a machine, and take none of the transfers' slots."""
AUDITS_AT_ONCE = 4
"""As many of them may be audits that the API has entered: a row of those must not keep others from their time."""
LOOK_EVERY = 1.0  # seconds between two looks for audits that wait
STOP_WITHIN = 20.0
"""Seconds that runs get at a stop to give back what they work on."""
AUDIT = ENTRYPOINTS["flows.audit_machine:audit"]

log = structlog.get_logger(__name__)


class Upkeep:
    """The maintenance runs of one mover. Lives in its event loop."""

    def __init__(self, services: Services, prefect: PrefectWatch) -> None:
        self._services = services
        self._prefect = prefect
        self._tasks: dict[UUID, asyncio.Task[Any]] = {}
        self._audits: set[UUID] = set()
        self._is_maintenance: dict[UUID, bool] = {}
        self._stopping = False

    @property
    def free(self) -> int:
        """How many more may run here now."""
        return 0 if self._stopping else max(0, AT_ONCE - len(self._tasks))

    async def forever(self) -> None:
        """Look each second for audits that wait, and for those whose run fell silent."""
        while True:
            try:
                await self._look()
            except (CatalogueUnavailable, OrchestratorUnavailable) as exc:
                log.warning("audits_not_taken", error=exc.detail)
            except (httpx.HTTPError, PrefectException) as exc:
                log.warning("prefect_unavailable", error=repr(exc))
            await asyncio.sleep(LOOK_EVERY)

    async def run_scheduled(self, flow: AnyFlow, flow_run: FlowRun) -> None:
        """Run what was begun in Prefect."""
        task = asyncio.current_task()
        if task is not None:
            self._tasks[flow_run.id] = task
        try:
            await self._run(flow, flow_run, flow_run.parameters)
        finally:
            self._tasks.pop(flow_run.id, None)

    async def is_maintenance(self, client: PrefectClient, deployment: UUID | None) -> bool:
        """Say whether a deployment is one of a maintenance flow."""
        if deployment is None:
            return False
        if deployment not in self._is_maintenance:
            try:
                found = await client.read_deployment(deployment)
            except ObjectNotFound:
                return False
            self._is_maintenance[deployment] = found.entrypoint in MAINTENANCE
        return self._is_maintenance[deployment]

    def renew(self, session: Session) -> None:
        """Prolong the leases of what runs here, in the heartbeat's transaction."""
        for run in list(self._services.upkeep):
            hold_lease(session, f"{RUN_PREFIX}{run}", self._services.owner, self._services.settings.lease)

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

    async def _look(self) -> None:
        if not self.free or not self._prefect.there or not await asyncio.to_thread(self._anything_to_do):
            return
        for hold in await asyncio.to_thread(self._take):
            task = asyncio.create_task(self._perform(hold), name=f"audit {hold.audit}")
            self._tasks[hold.audit] = task
            self._audits.add(hold.audit)
            task.add_done_callback(partial(self._forget, hold.audit))

    def _forget(self, audit: UUID, _task: asyncio.Task[None]) -> None:
        self._tasks.pop(audit, None)
        self._audits.discard(audit)

    def _anything_to_do(self) -> bool:
        with self._services.database.read() as session:
            return audit_runs.anything_to_do(session)

    def _take(self) -> list[AuditLease]:
        with self._services.database.write() as session:
            for row in audit_runs.give_back_lost(session):
                log.warning("audit_was_lost", audit=str(row.id), machine=row.machine, status=row.status)
            return audit_runs.take(session, min(self.free, AUDITS_AT_ONCE - len(self._audits)))

    async def _perform(self, hold: AuditLease) -> None:
        """Make an audit's run, and run it to its end. What did not begin goes back to the queue."""
        try:
            async with AsyncClientContext.get_or_create() as context:
                flow_run = await self._flow_run(context.client, hold)
            await self._attach(hold, flow_run.id)
        except BaseException as exc:
            with contextlib.suppress(CatalogueUnavailable):  # its lease runs out by itself
                await asyncio.shield(asyncio.to_thread(self._untake, hold))
            if isinstance(exc, httpx.HTTPError | PrefectException | DataManagerError):
                log.warning("audit_not_begun", audit=str(hold.audit), error=repr(exc))
                return
            raise
        await self._run(AUDIT, flow_run, {"audit_id": hold.audit})

    async def _flow_run(self, client: PrefectClient, hold: AuditLease) -> FlowRun:
        name = f"{AUDIT.name}/{DEPLOYMENT}"
        try:
            deployment = await client.read_deployment_by_name(name)
        except ObjectNotFound:
            await self._prefect.provide()
            deployment = await client.read_deployment_by_name(name)
        return await client.create_flow_run_from_deployment(
            deployment.id,
            parameters={"audit_id": str(hold.audit)},
            state=Running(),
            name=f"audit {hold.machine}",
            tags=["audit", hold.machine],
            idempotency_key=f"audit:{hold.audit}:{hold.attempt}",
        )

    async def _attach(self, hold: AuditLease, run: UUID) -> None:
        def attach() -> None:
            with self._services.database.write() as session:
                audit_runs.attach(session, hold, run)
                hold_lease(session, f"{RUN_PREFIX}{run}", self._services.owner, self._services.settings.lease)

        await asyncio.to_thread(attach)

    def _untake(self, hold: AuditLease) -> None:
        with self._services.database.write() as session:
            audit_runs.release(session, hold)

    # --- running ------------------------------------------------------------------------------------------------------

    async def _run(self, flow: AnyFlow, flow_run: FlowRun, parameters: dict[str, Any]) -> None:
        services, run = self._services, flow_run.id
        control = services.upkeep[run] = Control()
        try:
            await asyncio.to_thread(self._hold, run)
            with provided(services):
                state = await run_warm(flow, flow_run, parameters)
            await self._shown(run, control, state)
        except Abort:
            log.info("maintenance_run_left", flow_run=str(run))
        except CatalogueUnavailable as exc:
            log.warning("maintenance_run_not_begun", flow_run=str(run), error=exc.detail)
        except (httpx.HTTPError, PrefectException) as exc:
            log.warning("prefect_unavailable", flow_run=str(run), error=repr(exc))
        finally:
            services.upkeep.pop(run, None)
            with contextlib.suppress(CatalogueUnavailable):
                await asyncio.shield(asyncio.to_thread(self._drop, run))

    async def _shown(self, run: UUID, control: Control, state: State[Any]) -> None:
        """Call a run cancelled that was: the engine calls every error failed."""
        if isinstance(control.stopping, Cancelled) and not state.is_completed():
            async with AsyncClientContext.get_or_create() as context:
                await context.client.set_flow_run_state(run, CancelledState(message="cancelled in Prefect"), force=True)

    def _hold(self, run: UUID) -> None:
        services = self._services
        with services.database.write() as session:
            hold_lease(session, f"{RUN_PREFIX}{run}", services.owner, services.settings.lease)

    def _drop(self, run: UUID) -> None:
        with self._services.database.write() as session:
            drop_lease(session, f"{RUN_PREFIX}{run}", self._services.owner)
