"""What follows an error, as a table."""

from __future__ import annotations

from datetime import timedelta

import pytest

from datamanager.domain.states import Phase
from datamanager.errors import (
    Cancelled,
    CatalogueUnavailable,
    ChecksumMismatch,
    ConnectionLost,
    DataManagerError,
    DeadlineExceeded,
    DestinationExists,
    DownloadFailed,
    InternalError,
    LeaseLost,
    MachineUnavailable,
    NoSpace,
    Paused,
    RemoteFailure,
    ServerBusy,
    SourceChanged,
    Staging,
    TransportTimeout,
)
from flows.runtime.retry import REQUEUE_AFTER, AttemptState, Decision, Fail, Requeue, Retry, decide, may_pass

STEP = AttemptState(last=False, step_retries=True)
OVER = AttemptState(last=False)
"""The steps are over: what is left is another attempt."""
LAST = AttemptState(last=True)
BUSY = DownloadFailed("answered 503", again=timedelta(seconds=9))
FULL = ServerBusy("has as many connections as the server allows", again=timedelta(seconds=9))
AGAIN = Requeue(REQUEUE_AFTER, spent=True)


@pytest.mark.parametrize(
    ("error", "attempt", "decision"),
    [
        # a step may be retried
        (ConnectionLost("cut"), STEP, Retry()),
        (TransportTimeout("silent"), STEP, Retry()),
        (MachineUnavailable("away"), STEP, Retry()),
        (CatalogueUnavailable("away"), STEP, Retry()),
        (ConnectionLost("cut"), AttemptState(last=True, step_retries=True), Retry()),  # the last attempt has its steps
        (RemoteFailure("full?", retryable=True), STEP, Retry()),
        (RemoteFailure("no"), STEP, Fail()),
        (ChecksumMismatch("differ"), STEP, Fail()),  # the bytes are sent again, not this step alone
        (DestinationExists("taken"), STEP, Fail()),
        (NoSpace("full"), STEP, Fail()),
        (LeaseLost("another mover has it"), STEP, Fail()),
        (ValueError("internal error"), STEP, Fail()),
        (MachineUnavailable("away"), AttemptState(last=False, step_retries=True, fail_fast=True), Fail()),
        (ConnectionLost("cut"), AttemptState(last=False, step_retries=True, fail_fast=True), Retry()),
        (ConnectionLost("cut"), AttemptState(last=False, step_retries=True, machine_away=True), Requeue()),
        # one that shared its run has another attempt alone, which has the retries of steps
        (ConnectionLost("cut"), AttemptState(last=False, shared=True), AGAIN),
        (ChecksumMismatch("differ"), AttemptState(last=False, shared=True), AGAIN),
        (NoSpace("full"), AttemptState(last=False, shared=True), Fail()),
        (NoSpace("whose?"), AttemptState(last=False, shared=True, alone_next=True), AGAIN),
        (Cancelled("by request"), AttemptState(last=False, shared=True, alone_next=True), Fail()),
        (MachineUnavailable("away"), AttemptState(last=False, shared=True, machine_away=True), Requeue()),
        (MachineUnavailable("away"), AttemptState(last=False, shared=True, fail_fast=True), Fail()),
        (ConnectionLost("cut"), AttemptState(last=True, shared=True), Fail()),
        # a source that says when it is to be asked again is waited for in the queue, whatever may be retried
        (BUSY, STEP, Requeue(timedelta(seconds=9), waited=True)),
        (BUSY, LAST, Requeue(timedelta(seconds=9), waited=True)),
        (BUSY, AttemptState(last=False, patience=timedelta(seconds=5)), Requeue(timedelta(seconds=5), waited=True)),
        (BUSY, AttemptState(last=False, may_wait=False), Fail()),
        (FULL, AttemptState(last=True, may_wait=False), Requeue(timedelta(seconds=9))),
        # the steps are over
        (MachineUnavailable("away"), OVER, AGAIN),
        (MachineUnavailable("away"), AttemptState(last=False, fail_fast=True), Fail()),
        (MachineUnavailable("away"), LAST, Fail()),
        (MachineUnavailable("away"), AttemptState(last=True, machine_away=True), Requeue()),
        (CatalogueUnavailable("away"), OVER, AGAIN),
        (CatalogueUnavailable("away"), LAST, Fail()),
        (ConnectionLost("cut"), OVER, Fail()),
        (ConnectionLost("cut"), AttemptState(last=False, intent=True), AGAIN),
        (ChecksumMismatch("differ"), AttemptState(last=False, intent=True), AGAIN),
        (ConnectionLost("cut"), AttemptState(last=True, intent=True), Fail()),
        (DestinationExists("taken"), AttemptState(last=False, intent=True), Fail()),
        (SourceChanged("other bytes"), OVER, Fail()),
        (InternalError("unexpected ValueError"), AttemptState(last=False, intent=True), Fail()),
        (ValueError("internal error"), AttemptState(last=False, intent=True), Fail()),
        # stops by users, and tapes
        (Paused("by request"), OVER, Requeue()),
        (Paused("by request"), LAST, Requeue()),
        (Staging("on tape", again=timedelta(seconds=30)), LAST, Requeue(timedelta(seconds=30), phase=Phase.STAGING)),
        (Cancelled("by request"), OVER, Fail()),
        (Cancelled("by request"), AttemptState(last=False, intent=True), Fail()),
        (Cancelled("by request"), AttemptState(last=False, items_in_doubt=True), AGAIN),
        (DeadlineExceeded("late"), AttemptState(last=False, items_in_doubt=True), AGAIN),
        (Cancelled("by request"), AttemptState(last=True, items_in_doubt=True), Fail()),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_decide(error: Exception, attempt: AttemptState, decision: Decision) -> None:
    assert decide(error, attempt) == decision


@pytest.mark.parametrize(
    ("error", "fail_fast", "resend", "passing"),
    [
        (ConnectionLost("cut"), False, True, True),
        (ConnectionLost("cut"), True, False, True),
        (MachineUnavailable("away"), False, True, True),
        (MachineUnavailable("away"), True, True, False),
        (ChecksumMismatch("differ"), False, True, True),
        (ChecksumMismatch("differ"), False, False, False),
        (ChecksumMismatch("the source has other bytes", retryable=False), False, True, False),
        (NoSpace("full"), False, True, False),
    ],
)
def test_may_pass(error: DataManagerError, fail_fast: bool, resend: bool, passing: bool) -> None:
    assert may_pass(error, fail_fast=fail_fast, resend=resend) is passing
