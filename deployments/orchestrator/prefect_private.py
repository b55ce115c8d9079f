"""All that this project uses of Prefect beyond its public interface; nothing private of Prefect is named elsewhere.

tests/integration/test_prefect_private.py names each part, so that it says in seconds what an upgrade broke.
"""

from __future__ import annotations

import asyncio
from abc import ABC
from collections.abc import Generator, Set
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect._flow_run_suspension import FlowRunSuspensionRequest, register_flow_run_suspension_request
from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.responses import WorkerFlowRunResponse
from prefect.context import FlowRunContext
from prefect.events import Event, RelatedResource, utilities
from prefect.events.worker import EventsWorker
from prefect.filesystems import WritableFileSystem
from prefect.flow_engine import AsyncFlowRunEngine
from prefect.workers.base import BaseJobConfiguration, BaseVariables, BaseWorker, BaseWorkerResult

if TYPE_CHECKING:
    from prefect.server.events.actions import Action
    from prefect.server.events.schemas.automations import TriggeredAction

TASK_RUN = "prefect.task-run."
"""How the names of task runs' events begin; their states follow."""
BEGINNINGS = frozenset({f"{TASK_RUN}Pending", f"{TASK_RUN}Running"})
SHOWN_AFTER = 1.0
"""Seconds until a task run is shown before its end. The server writes its events once a second anyway."""
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


class KnowingClient(PrefectClient):
    """Another client's connections, with a flow run that it need not ask for."""

    def __init__(self, client: PrefectClient, known: FlowRun) -> None:
        self.__dict__.update(client.__dict__)
        self._known = known

    async def read_flow_run(self, flow_run_id: UUID) -> FlowRun:
        """Return the run that it knows, or ask for another one."""
        return self._known if flow_run_id == self._known.id else await super().read_flow_run(flow_run_id)


class TaskRunEvents(EventsWorker):
    """Prefect's sender of events, with fewer of task runs: what begins and ends within SHOWN_AFTER is one event instead
    of three, and names its flow run only, not all that belongs to that. Each costs the server some milliseconds.
    """

    def __init__(self, *options: Any) -> None:
        super().__init__(*options)
        self._held: dict[str, tuple[Event, asyncio.TimerHandle]] = {}

    def send(self, item: Event) -> None:
        """Queue an event; that a task run begins is kept until it has ended, or lasts."""
        if not item.event.startswith(TASK_RUN):
            super().send(item)
            return
        held = self._held.pop(item.resource.id, None)
        if held is not None:
            first, timer = held
            timer.cancel()
            item.follows = first.follows  # the server waits for what an event follows
        if item.event in BEGINNINGS:
            timer = asyncio.get_running_loop().call_later(SHOWN_AFTER, self._show, item)
            self._held[item.resource.id] = item, timer
        else:
            super().send(item)

    async def attach_related_resources_from_context(self, event: Event) -> None:
        """Name what an event has to do with: of a task run the flow run, by which the server finds it."""
        run = FlowRunContext.get()
        if run is None or run.flow_run is None or not event.event.startswith(TASK_RUN):
            await super().attach_related_resources_from_context(event)
            return
        labels = {"id": f"prefect.flow-run.{run.flow_run.id}", "role": "flow-run", "name": run.flow_run.name}
        event.related.append(RelatedResource({f"prefect.resource.{name}": value for name, value in labels.items()}))

    def _show(self, event: Event) -> None:
        self._held.pop(event.resource.id, None)
        super().send(event)


@contextmanager
def fewer_events() -> Generator[None, None, None]:
    """Have `TaskRunEvents` send this process's events inside."""
    names: dict[str, Any] = vars(utilities)  # by this name `emit_event` finds it
    names["EventsWorker"] = TaskRunEvents
    try:
        yield
    finally:
        names["EventsWorker"] = EventsWorker


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
