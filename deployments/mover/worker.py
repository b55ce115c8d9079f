"""The Prefect worker type `mover`: long-lived, warm, runs the project's flows in its own process.

`dm mover` and `prefect worker start --type mover --pool data-manager` both start it. It shows in the Prefect UI with
heartbeats. A Prefect server imports this module too, as it does every worker type that is installed, so what only a
mover needs is imported when it starts.
"""

from __future__ import annotations

import asyncio
import copy
import fcntl
import itertools
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import structlog
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.context import AsyncClientContext, SyncClientContext
from prefect.settings import PREFECT_API_URL, PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from prefect.workers.base import BaseJobConfiguration

from datamanager.errors import NotSupported, SettingsError
from datamanager.settings import Settings, load_settings
from deployments.mover.loop_thread import in_own_loop
from deployments.orchestrator.environment import WORK_POOL
from deployments.orchestrator.prefect_private import MoverResult, PrefectWorker, fewer_events
from deployments.orchestrator.work_pool import NO_JOB, QUEUES
from deployments.periodic import every

if TYPE_CHECKING:
    from deployments.mover.service import MoverService
    from deployments.orchestrator.flow_registry import AnyFlow
    from deployments.orchestrator.gateway import PrefectGateway

SYNC_EVERY = 10.0  # seconds between heartbeats to Prefect
QUERY_EVERY = 2.0  # seconds between looks for runs begun in the UI or by a schedule

log = structlog.get_logger(__name__)


class MoverWorker(PrefectWorker):
    """A worker that runs only flows of this project, warm and concurrently; never pull steps, never another entry
    point.
    """

    type = "mover"

    def __init__(
        self,
        work_pool_name: str = WORK_POOL,
        work_queues: list[str] | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(work_pool_name, work_queues, name, **options)
        self._given_name = name
        self._mover: MoverService | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stops = 0
        self._stop, self._hurry = asyncio.Event(), asyncio.Event()

    async def start(
        self,
        run_once: bool = False,
        with_healthcheck: bool = False,  # noqa: ARG002 - Prefect's signature; its command line serves the check itself
        printer: Callable[..., None] = print,
    ) -> None:
        """Work until `stop` is called, or SIGTERM or SIGINT comes. With `run_once` end when one poll's runs have ended.

        Unlike the base class, never give up while Prefect is away: the catalogue's transfers wait for it.

        Raises: SettingsError, CatalogueUnavailable.
        """
        settings = self._settings()
        await in_own_loop(lambda: self._work(settings, run_once, printer), self.stop)

    @classmethod
    def get_default_base_job_template(cls) -> dict[str, Any]:
        """Return the job template of a pool that `prefect worker start` makes."""
        return copy.deepcopy(NO_JOB)

    def stop(self) -> None:
        """Take nothing new, let what runs end within `stop_grace`, hand back the rest, end `start`. Called twice: hand
        back at once. Safe from any thread.
        """
        self._stops += 1
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._apply_stops)

    def _apply_stops(self) -> None:
        if self._stops:
            self._stop.set()
        if self._stops > 1:
            self._hurry.set()

    def _settings(self) -> Settings:
        """Read the settings; they and Prefect's must mean the same server and pool. Raises: SettingsError."""
        settings, prefect = load_settings(), PREFECT_API_URL.value()
        if self.work_pool_name != WORK_POOL:
            raise SettingsError(f"a mover serves the work pool {WORK_POOL}, not {self.work_pool_name}")
        if unknown := sorted(set(self.work_queues) - QUEUES.keys()):
            raise SettingsError(f"a mover serves the work queues {', '.join(QUEUES)}, not {', '.join(unknown)}")
        if settings.prefect_api_url is None and prefect:
            settings = settings.model_copy(update={"prefect_api_url": prefect.rstrip("/")})
        if prefect is None or prefect.rstrip("/") != settings.prefect_url:
            raise SettingsError(f"DM_PREFECT_API_URL: {settings.prefect_url}, but PREFECT_API_URL is {prefect}")
        if self.limit is not None:
            settings = settings.model_copy(update={"concurrency": self.limit})
        return settings

    async def _work(self, settings: Settings, run_once: bool, printer: Callable[..., None]) -> None:
        from deployments.composition import open_runtime, run_directory, tell_missing
        from deployments.mover.service import MoverService

        self._loop = asyncio.get_running_loop()
        self.limit = settings.concurrency
        self.name = self._given_name or worker_name(run_directory(settings))
        runtime = await asyncio.to_thread(open_runtime, settings, pool_size=settings.concurrency + 4)
        tell_missing(runtime.machines)
        try:
            async with AsyncExitStack() as stack:
                stack.enter_context(fewer_events())
                # none of Prefect's own: `deployments.mover.heartbeats` sends them
                stack.enter_context(temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}))
                # leases are this process's, not its successor's of the same name
                lease_name = f"{self.name}:{os.getpid()}-{secrets.token_hex(3)}"
                mover = self._mover = await stack.enter_async_context(MoverService(runtime, lease_name))
                mover.dispatcher.monitor.queues = self.work_queues
                await stack.enter_async_context(self)
                await stack.enter_async_context(AsyncClientContext())
                stack.enter_context(SyncClientContext())  # Prefect makes such a client for each run, if there is none
                async with anyio.create_task_group() as loops:
                    self._apply_stops()  # a stop that came during the start
                    loops.start_soon(mover.work)
                    if run_once:
                        await self._once(mover)
                    else:
                        beat = partial(self._translated, self.sync_with_backend)
                        query = partial(self._translated, self.get_and_submit_flow_runs)
                        loops.start_soon(every, SYNC_EVERY, "send heartbeat to Prefect", beat)
                        loops.start_soon(every, QUERY_EVERY, "take scheduled runs", query)
                        printer(f"mover {self.name} is ready")
                        await self._stop.wait()
                    printer(f"mover {self.name} stops")
                    await mover.dispatcher.finish(self._hurry)
                    loops.cancel_scope.cancel()
                await mover.hand_back()
        finally:
            runtime.close()

    async def _once(self, mover: MoverService) -> None:
        await self._translated(self.sync_with_backend)
        await self._translated(self.get_and_submit_flow_runs)
        while not self._stop.is_set() and (self.limiter.borrowed_tokens or mover.dispatcher.busy):  # noqa: ASYNC110 - untold
            await anyio.sleep(QUERY_EVERY)

    async def _translated(self, work: Callable[[], Awaitable[Any]]) -> None:
        """Do work of the base class; Prefect's errors are ours then."""
        from deployments.orchestrator.gateway import translated

        with translated():
            await work()

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Take as many of Prefect's runs as there are slots free, which transfers of the catalogue share, and
        maintenance runs beside them.
        """
        dispatcher = self._mover.dispatcher if self._mover is not None else None
        free = dispatcher.free + dispatcher.maintenance.free if dispatcher is not None else 0
        if not free:
            self.note_poll()
            return []
        self.limiter.total_tokens = self.limiter.borrowed_tokens + free
        return await super().get_and_submit_flow_runs()

    async def choose(self, found: list[WorkerFlowRunResponse]) -> list[WorkerFlowRunResponse]:
        """Leave out what there is no room for: transfers while no slot is free, maintenance while enough of it runs."""
        if self._mover is None:
            return []
        dispatcher, chosen = self._mover.dispatcher, list[WorkerFlowRunResponse]()
        free = {True: dispatcher.maintenance.free, False: dispatcher.free}
        for one in found:
            is_maintenance = await dispatcher.gateway.is_maintenance(one.flow_run.deployment_id)
            if free[is_maintenance] > 0:
                free[is_maintenance] -= 1
                chosen.append(one)
        return chosen

    async def run(
        self,
        flow_run: FlowRun,
        configuration: BaseJobConfiguration,  # noqa: ARG002 - Prefect's signature
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> MoverResult:
        """Run what was begun in the Prefect UI or by a schedule. Raises: NotSupported for a flow that is not ours."""
        if self._mover is None:
            raise NotSupported("the mover is not working")
        dispatcher = self._mover.dispatcher
        flow = await self._flow_of(flow_run, dispatcher.gateway)
        if task_status is not None:
            task_status.started(str(flow_run.id))
        await dispatcher.run_scheduled(flow, flow_run)
        return MoverResult(identifier=str(flow_run.id), status_code=0)

    async def _flow_of(self, flow_run: FlowRun, gateway: PrefectGateway) -> AnyFlow:
        from deployments.orchestrator.flow_registry import flow_at

        deployment = flow_run.deployment_id
        entrypoint = None if deployment is None else await gateway.entrypoint(deployment)
        flow = flow_at(entrypoint)
        if flow is None:
            raise NotSupported(f"entry point {entrypoint!r} is not a flow of this project; a mover runs no other")
        return flow


def worker_name(directory: Path) -> str:
    """Name this process's mover: the host and the first number that no other mover of this home has.

    The same after a restart, so that Prefect's page of workers does not fill up with those that were. A lock in
    `directory` holds the number as long as the process lives.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for number in itertools.count(1):
        lock = os.open(directory / f"mover-{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
        else:
            return f"{socket.gethostname()}-{number}"
    raise AssertionError("unreachable: the numbers do not end")
