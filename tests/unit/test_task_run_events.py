"""What a mover tells the Prefect server of its task runs: little of short ones, in order of all."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from queue import Empty
from uuid import uuid4

import pytest
from prefect.events import Event
from prefect.events.clients import PrefectEventsClient

from deployments.orchestrator import prefect_private
from deployments.orchestrator.prefect_private import TaskRunEvents


class Steps:
    """The states of one task run, each an event that follows the one before."""

    def __init__(self, worker: TaskRunEvents) -> None:
        self._worker = worker
        self._run = uuid4()
        self._last: Event | None = None

    def reach(self, state: str) -> Event:
        """Send the event of a state."""
        follows = None if self._last is None else self._last.id
        resource = {"prefect.resource.id": f"prefect.task-run.{self._run}"}
        self._last = Event.model_validate(
            {"event": f"prefect.task-run.{state}", "resource": resource, "follows": follows}
        )
        self._worker.send(self._last)
        return self._last


def sent(steps: Callable[[Steps], Awaitable[None]]) -> list[tuple[str, str | None]]:
    """Return which states were sent, each with the state whose event it follows."""
    worker = TaskRunEvents(PrefectEventsClient, ())
    events: list[Event] = []

    async def perform() -> None:
        await steps(Steps(worker))

    asyncio.run(perform())
    try:
        while (event := worker._queue.get_nowait()) is not None:
            events.append(event)
    except Empty:
        pass
    names = {event.id: event.event.rpartition(".")[2] for event in events}
    return [(names[event.id], None if event.follows is None else names[event.follows]) for event in events]


def test_short_task_run_is_one_event() -> None:
    async def steps(run: Steps) -> None:
        for state in ("Pending", "Running", "Completed"):
            run.reach(state)

    assert sent(steps) == [("Completed", None)]


def test_task_run_that_lasts_is_shown_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefect_private, "SHOWN_AFTER", 0.01)

    async def steps(run: Steps) -> None:
        run.reach("Pending")
        run.reach("Running")
        await asyncio.sleep(0.1)
        run.reach("Failed")

    assert sent(steps) == [("Running", None), ("Failed", "Running")]


def test_retries_of_a_task_run_are_shown_in_order() -> None:
    async def steps(run: Steps) -> None:
        for state in ("Pending", "Running", "AwaitingRetry", "Retrying", "Completed"):
            run.reach(state)

    assert sent(steps) == [("AwaitingRetry", None), ("Retrying", "AwaitingRetry"), ("Completed", "Retrying")]


def test_other_events_are_sent_as_they_come() -> None:
    worker = TaskRunEvents(PrefectEventsClient, ())
    event = Event.model_validate({"event": "prefect.flow-run.Running", "resource": {"prefect.resource.id": "x"}})
    worker.send(event)
    assert worker._queue.get_nowait() is event
