"""What a step does with an error: which faults are recorded, what is retried, and what ends the run."""

from __future__ import annotations

import asyncio
import logging
from contextvars import copy_context
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prefect.client.schemas.objects import TaskRun
from prefect.states import Failed

from datamanager.engine.control import Control
from datamanager.errors import (
    CatalogueUnavailable,
    ChecksumMismatch,
    ConnectionLost,
    DataManagerError,
    DestinationExists,
    MachineUnavailable,
    NoSpace,
)
from flows.runtime import tasks
from flows.runtime.tasks import require_items_fault, threaded, worth_retrying
from flows.runtime.transfer_run import TransferRun, make_current


class FakeRun(SimpleNamespace):
    """What `threaded` uses of a TransferRun; `faults` has what was recorded."""

    def __init__(self, *, fail_fast: bool = False, opens_circuit: bool = False) -> None:
        super().__init__(
            row=SimpleNamespace(fail_fast=fail_fast),
            control=Control(),
            log=logging.getLogger("test"),
            machine_away=False,
            opens_circuit=opens_circuit,
            faults=[],
        )

    async def write(self, _change: object, code: str, _detail: str) -> None:
        self.faults.append(code)


@pytest.fixture(autouse=True)
def _no_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    async def note_unreachable(run: Any) -> None:
        run.machine_away = run.opens_circuit

    monkeypatch.setattr(tasks, "note_unreachable", note_unreachable)


def failing(run: FakeRun, error: DataManagerError) -> tuple[DataManagerError, bool, bool]:
    """Have a step fail: return what it raises, whether it is retried, and whether its items end by it otherwise."""

    def step() -> None:
        raise error

    async def perform() -> DataManagerError:
        make_current(cast(TransferRun, run))
        with pytest.raises(DataManagerError) as caught:
            await threaded(step)
        return caught.value

    def judge() -> tuple[DataManagerError, bool, bool]:
        raised = asyncio.run(perform())
        make_current(cast(TransferRun, run))
        retried = worth_retrying(cast(Any, None), cast(TaskRun, None), Failed(data=raised))
        try:
            require_items_fault(raised)
        except DataManagerError:
            return raised, retried, False
        return raised, retried, True

    return copy_context().run(judge)


@pytest.mark.parametrize(
    ("error", "faults", "retried", "items_end"),
    [
        (ConnectionLost("cut"), ["connection_lost"], True, True),
        (MachineUnavailable("away"), ["machine_unavailable"], True, True),
        (ChecksumMismatch("differ"), ["checksum_mismatch"], False, True),
        (CatalogueUnavailable("away"), [], True, False),
        (NoSpace("full"), [], False, False),
        (DestinationExists("taken"), [], False, False),
    ],
    ids=lambda value: value.code if isinstance(value, DataManagerError) else None,
)
def test_threaded_records_faults_that_may_pass(
    error: DataManagerError, faults: list[str], retried: bool, items_end: bool
) -> None:
    run = FakeRun()
    assert failing(run, error) == (error, retried, items_end)
    assert run.faults == faults
    assert run.control.stopping is None


def test_threaded_ends_at_once_where_a_client_waits_for_a_machine() -> None:
    run, error = FakeRun(fail_fast=True), MachineUnavailable("away")
    assert failing(run, error) == (error, False, False)
    assert run.faults == []
    assert error.retryable  # the error is as it was made
    assert failing(FakeRun(fail_fast=True), ConnectionLost("cut"))[1:] == (True, True)


def test_threaded_stops_the_run_when_the_circuit_is_open() -> None:
    run, error = FakeRun(opens_circuit=True), MachineUnavailable("away")
    assert failing(run, error) == (error, False, False)
    assert run.faults == ["machine_unavailable"]
    assert run.control.stopping is error
