"""All that this project uses of Prefect beyond its public interface; nothing private of Prefect is named elsewhere.

tests/integration/test_prefect_private.py names each part, so that it says in seconds what an upgrade broke.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Generator, Set
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from prefect._flow_run_suspension import FlowRunSuspensionRequest, register_flow_run_suspension_request
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.filesystems import WritableFileSystem
from prefect.flow_engine import AsyncFlowRunEngine
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult

if TYPE_CHECKING:
    from prefect.server.events.actions import Action
    from prefect.server.events.schemas.automations import TriggeredAction

CALLS_ARE_OFF = "this server calls no other host: webhooks and notifications are off (docs/security.md)"


class Nowhere(WritableFileSystem):
    """Keeps nothing: not what runs return, and not a file for each error that they raise."""

    async def read_path(self, path: str) -> bytes:
        """Raises: ValueError, always."""
        raise ValueError(f"nothing is kept, nor is {path}")

    async def write_path(self, path: str, content: bytes) -> None:
        """Keep nothing."""

    def _resolve_path(self, path: str) -> None:
        """Say that keys are below no folder: Prefect takes them for paths below the working directory else, and logs
        that they are not.
        """


class UnobservedEngine(AsyncFlowRunEngine[..., Any]):
    """Prefect's flow engine without the thread, event loop and WebSocket by which each run learns of its suspension."""

    @contextmanager
    def setup_flow_run_suspension_request(self) -> Generator[FlowRunSuspensionRequest, None, None]:
        """Let the run be suspended from within this process; nothing listens for it outside."""
        if self.flow_run is None:
            raise ValueError("the engine has no flow run yet")
        request = self._get_flow_run_suspension_request()
        with register_flow_run_suspension_request(self.flow_run.id, request):
            request.raise_if_requested()
            yield request


class MoverResult(BaseWorkerResult):
    """What a run leaves: its end is in its own state."""


class PrefectWorker(BaseWorker[BaseJobConfiguration, BaseVariables, MoverResult], ABC):
    """Prefect's base class of workers, with what a mover needs of it under public names."""

    job_configuration = BaseJobConfiguration
    _description = "Runs the Data Manager's flows in one warm process."

    @property
    def work_pool_name(self) -> str:
        """The work pool that is served."""
        return self._work_pool_name

    @property
    def work_queues(self) -> Set[str]:
        """The work queues that are served; empty: all."""
        return self._work_queues

    @property
    def limit(self) -> int | None:
        """How many runs Prefect's command line allows at once."""
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = limit

    def note_poll(self) -> None:
        """Note for the health check that nothing is wrong although Prefect was not asked."""
        self._last_polled_time = datetime.now(UTC)

    async def choose(self, found: list[WorkerFlowRunResponse]) -> list[WorkerFlowRunResponse]:
        """Return which of the scheduled runs to take."""
        return found

    async def _get_scheduled_flow_runs(self) -> list[WorkerFlowRunResponse]:
        found = await super()._get_scheduled_flow_runs()
        return await self.choose([one for one in found if one.flow_run.id not in self._submitting_flow_run_ids])


def calling_actions() -> tuple[type[Action], ...]:
    """Return the actions of automations that connect to an address which a client has chosen, also one inside the
    server's network, and keep the answer. Imports Prefect's server, which takes seconds.
    """
    from prefect.server.events.actions import CallWebhook, SendNotification

    return CallWebhook, SendNotification


def refuse_calls() -> None:
    """Have the Prefect server of this process refuse these actions from now on: each is shown as failed, with
    CALLS_ARE_OFF.
    """
    from prefect.server.events.actions import ActionFailed

    async def refuse(self: Action, triggered_action: TriggeredAction) -> None:  # noqa: ARG001 - Prefect's signature
        raise ActionFailed(CALLS_ARE_OFF)

    for action in calling_actions():
        action.act = refuse  # type: ignore[method-assign]
