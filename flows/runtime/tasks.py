"""What makes a function a task of ours: blocking work in a thread, faults kept on the transfer, retries that help.

A task is retried as `flows.runtime.retry` decides, with jittered pauses of under 30 s in all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from datamanager.engine.control import USER_STOPS
from datamanager.errors import DataManagerError, InternalError, MachineUnavailable, ServiceError
from flows.runtime.maintenance import note_abandoned
from flows.runtime.reachability import note_unreachable
from flows.runtime.retry import AttemptState, Retry, decide, may_pass
from flows.runtime.transfer_run import current
from models.transfers import queue

RETRIES = 3
PAUSES = [1.0, 4.0, 12.0]  # seconds; with jitter under 30 in all

P = ParamSpec("P")
T = TypeVar("T")


def worth_retrying(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Say whether the same step may work if it is tried again: Prefect's retry condition."""
    error, run = state.data, current()
    if not isinstance(error, BaseException):
        return False
    attempt = AttemptState(last=False, step_retries=True, fail_fast=run.row.fail_fast, machine_away=run.machine_away)
    return isinstance(decide(error, attempt), Retry)


async def threaded(call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do blocking work in a thread, and keep a fault on the transfer.

    When the mover stops, the thread is stopped and waited for: it must not touch a machine any more. When users cancel
    the run, the thread was stopped before, and is left to itself: see `flows.runtime.monitor`.
    """
    run = current()
    thread = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        if isinstance(run.control.stopping, USER_STOPS):
            thread.add_done_callback(note_abandoned)
        else:
            run.control.stop(InternalError("the mover stops"))
            await asyncio.wait([thread])
        raise
    except DataManagerError as error:
        if (reason := run.control.stopping) is not None and reason is not error:
            raise reason from error  # what it waited for was broken to stop it
        if not error.retryable:
            raise
        if isinstance(error, MachineUnavailable):
            await note_unreachable(run)
        if not may_pass(error, fail_fast=run.row.fail_fast):
            raise  # a client waits: it gets the error at once, and nothing was changed
        run.log.warning("%s: %s", error.code, error.detail)
        if not isinstance(error, ServiceError):
            await run.write(queue.add_fault, error.code, error.detail)
        if run.machine_away:
            run.control.stop(error)  # nothing else of this run needs to be tried
        raise


def require_items_fault(error: DataManagerError) -> None:
    """Check that what a step raised after its last retry is a fault of its items, which end then. Raises: `error` when
    the whole transfer ends by it; what the run is to stop with.
    """
    run = current()
    if isinstance(error, ServiceError):
        raise error
    run.control.check()
    if not may_pass(error, fail_fast=run.row.fail_fast):
        raise error


def step(name: str, run_name: str | None = None) -> Callable[[Callable[P, T]], Task[P, T]]:
    """Make a function a task that is tried again where that helps; `run_name` may name its parameters."""
    return task(
        name=name,
        task_run_name=run_name,
        retries=RETRIES,
        retry_delay_seconds=PAUSES,
        retry_jitter_factor=0.5,
        retry_condition_fn=worth_retrying,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
