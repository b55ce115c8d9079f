"""The watch over a run while it works: notes its progress, keeps its limits in force, and makes it stop when it is to.

A stop is a flag first: the work ends at its next step. If it has not after a moment, the sessions that it uses are
broken, so that a thread which waits for a silent machine wakes up; and if even that does not help (a system call that
hangs, a connection that is being made), or nothing works but a pause between two tries, the run is cancelled, and the
thread left to end by itself: whatever it opens then raises at once (`engine.control`).
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from datamanager.domain.states import Phase
from datamanager.engine.control import USER_STOPS
from datamanager.errors import CatalogueUnavailable, DataManagerError, LeaseLost
from flows.runtime.progress import SHOW_AFTER, ProgressArtifact
from flows.runtime.transfer_run import TransferRun
from models.transfers import queue

NOTE_EVERY = 1.0  # seconds between two looks at a transfer's row, and two notes of its progress there
PATIENCE = 0.5  # seconds that the work gets to stop, before the next means is used


SPAN = 5.0
"""Seconds that `Speed` looks back: so it follows, but does not jump with each block."""


class Speed:
    """How fast a transfer's bytes move, from how many are done at each look. Used by one thread at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, done: int) -> int | None:
        """Note that `done` bytes are done by now; return the bytes per second of late, None while it can't be known."""
        now = self._clock()
        if self._seen and done < self._seen[-1][1]:  # they are moved once more
            self._seen.clear()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= SPAN:
            self._seen.popleft()
        since, before = self._seen[0]
        return int((done - before) / (now - since)) if now > since else None


@asynccontextmanager
async def watched(run: TransferRun) -> AsyncIterator[None]:
    """Watch the work while the body runs, in the task that runs it. Raises: what the work is to stop with already."""
    await asyncio.to_thread(_look, run)
    run.control.check()
    runner = asyncio.current_task()
    watching = [
        asyncio.create_task(part, name=f"watch {run.transfer}") for part in (_note(run), _stop_when_due(run, runner))
    ]
    try:
        yield
    finally:
        for task in watching:
            task.cancel()
        await asyncio.wait(watching)


def user_stop(run: TransferRun) -> DataManagerError | None:
    """Return why users had this run stop, and take the cancel back; None if the mover stops."""
    runner, reason = asyncio.current_task(), run.control.stopping
    return reason if isinstance(reason, USER_STOPS) and runner is not None and runner.uncancel() == 0 else None


async def _stop_when_due(run: TransferRun, runner: asyncio.Task[Any] | None) -> None:
    """Look each second whether the work is to stop, and stop it by the next means while it does not."""
    while True:
        await asyncio.sleep(NOTE_EVERY)
        with suppress(CatalogueUnavailable):
            await asyncio.to_thread(_look, run)
        if run.control.stopping is None:
            continue
        await asyncio.sleep(PATIENCE)
        if run.control.stopping is not None:
            run.control.abort()
        await asyncio.sleep(PATIENCE)
        if isinstance(run.control.stopping, USER_STOPS) and runner is not None:
            runner.cancel()
            return


def _look(run: TransferRun) -> None:
    """Apply the limits in force, and read whether the work is to stop."""
    run.apply_limits()
    reason = run.stop_reason()
    if reason is not None:
        run.control.stop(reason)


async def _note(run: TransferRun) -> None:
    """Note progress in the catalogue, at most once a second, and show it in the Prefect UI after a while."""
    noted: dict[str, Any] = {}
    artifact, speed, control = ProgressArtifact(), Speed(), run.control
    while True:
        await asyncio.sleep(NOTE_EVERY)
        rate = speed.of(control.bytes_done)
        values: dict[str, Any] = {
            "phase": control.phase.value,
            "bytes_done": control.bytes_done,
            "bytes_per_second": rate if control.phase is Phase.TRANSFER else None,
        }
        if control.bytes_total is not None:
            values["bytes_total"] = control.bytes_total
        if values == noted:
            continue
        try:
            await run.write(queue.note, **values)
            noted = values
        except LeaseLost as lost:
            control.stop(lost)
            return
        except CatalogueUnavailable:
            continue  # the next note says more; publishing reads the catalogue anyway
        if run.seconds > SHOW_AFTER:
            await artifact.show(control, run.seconds)
