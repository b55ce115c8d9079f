"""The Prefect worker type `mover`: long-lived, warm, runs the project's flows in its own process.

`dm mover` and `prefect worker start --type mover --pool data-manager` both start it. It shows in the Prefect UI with
heartbeats.
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import os
import secrets
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import httpx
import structlog
from prefect.client.schemas.objects import FlowRun
from prefect.context import AsyncClientContext
from prefect.exceptions import PrefectException
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult

from datamanager.errors import NotSupported
from datamanager.settings import load_settings
from deployments.environment import WORK_POOL
from deployments.flow_table import ENTRYPOINTS, AnyFlow
from deployments.moving import Mover
from deployments.runtime import open_runtime

SYNC_EVERY = 10.0  # seconds between heartbeats to Prefect
QUERY_EVERY = 2.0  # seconds between looks for runs begun in the UI or by a schedule

log = structlog.get_logger(__name__)


class MoverResult(BaseWorkerResult):
    """What a run leaves: its end is in its own state."""


class MoverWorker(BaseWorker[BaseJobConfiguration, BaseVariables, MoverResult]):
    """A worker that runs only flows of this project, warm and concurrently; never pull steps, never another entry
    point.
    """

    type = "mover"
    job_configuration = BaseJobConfiguration
    _display_name = "Data Manager mover"
    _description = "Runs the Data Manager's flows in one warm process."

    def __init__(self, work_pool_name: str = WORK_POOL, **options: Any) -> None:
        super().__init__(work_pool_name, **options)
        self._mover: Mover | None = None
        self._stop = asyncio.Event()

    async def start(
        self,
        run_once: bool = False,
        with_healthcheck: bool = False,  # noqa: ARG002 - Prefect's signature
        printer: Callable[..., None] = print,
    ) -> None:
        """Work until cancelled or `stop` is called.

        Unlike the base class, never give up while Prefect is away: the catalogue's transfers wait for it.
        """
        settings = load_settings()
        runtime = await asyncio.to_thread(open_runtime, settings, pool_size=settings.concurrency + 4)
        try:
            async with AsyncExitStack() as stack:
                # leases are this process's, not its successor's of the same name
                mover = Mover(runtime, f"{self.name}:{os.getpid()}-{secrets.token_hex(3)}")
                self._mover = await stack.enter_async_context(mover)
                await stack.enter_async_context(self)
                await stack.enter_async_context(AsyncClientContext())
                async with anyio.create_task_group() as loops:
                    loops.start_soon(self._forever, self._sync_and_initialize, SYNC_EVERY)
                    loops.start_soon(self._forever, self.get_and_submit_flow_runs, QUERY_EVERY)
                    loops.start_soon(mover.work)
                    printer(f"mover {self.name} is ready")
                    if not run_once:
                        await self._stop.wait()
                    loops.cancel_scope.cancel()
                await mover.hand_back()
        finally:
            runtime.close()

    def stop(self) -> None:
        """Take nothing new, hand back what runs, end `start`. Call it in the worker's event loop."""
        self._stop.set()

    async def run(
        self,
        flow_run: FlowRun,
        configuration: BaseJobConfiguration,  # noqa: ARG002 - Prefect's signature
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> MoverResult:
        """Run what was begun in the Prefect UI or by a schedule. Raises: NotSupported for a flow that is not ours."""
        flow = await self._flow_of(flow_run)
        if task_status is not None:
            task_status.started(str(flow_run.id))
        if self._mover is not None:
            await self._mover.runs.run_scheduled(flow, flow_run)
        return MoverResult(identifier=str(flow_run.id), status_code=0)

    async def _flow_of(self, flow_run: FlowRun) -> AnyFlow:
        entrypoint = None
        if flow_run.deployment_id is not None:
            entrypoint = (await self.client.read_deployment(flow_run.deployment_id)).entrypoint
        if entrypoint not in ENTRYPOINTS:
            raise NotSupported(f"entry point {entrypoint!r} is no flow of this project; a mover runs no other")
        return ENTRYPOINTS[entrypoint]

    async def _forever(self, work: Callable[[], Any], every: float) -> None:
        while True:
            try:
                await work()
            except (httpx.HTTPError, PrefectException) as exc:
                log.warning("prefect_unavailable", error=str(exc))
            await anyio.sleep(every)


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
