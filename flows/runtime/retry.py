"""What follows an error: the step is retried, the transfer is requeued, or it fails. Pure, and decided only here.

An error says itself whether the same thing may work later (`retryable`). What its attempt has done and what may still
be tried is `AttemptState`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from datamanager.domain.states import Phase
from datamanager.engine.control import USER_STOPS
from datamanager.errors import ChecksumMismatch, DataManagerError, MachineUnavailable, Paused, ServiceError, Staging

REQUEUE_AFTER = timedelta(seconds=2)
"""When a transfer is taken again whose attempt failed, and counts."""
WAITS = 3
"""How often a source may have a download wait, unless the request's `retries` says otherwise."""


@dataclass(frozen=True, slots=True)
class AttemptState:
    """What the decision needs to know of an attempt."""

    last: bool
    """No further attempt is allowed."""
    step_retries: bool = False
    """The step that failed may be retried within this run."""
    fail_fast: bool = False
    """A client waits: a machine that is away is an error at once."""
    machine_away: bool = False
    """A machine's circuit is open: the transfer waits for it, and no attempt is counted."""
    intent: bool = False
    """The intent to publish is recorded: the file may have its name, whatever the error says."""
    items_in_doubt: bool = False
    """The same of items of a batch that are not done."""
    patience: timedelta = timedelta(seconds=60)
    """How long a source may have a download wait: its `timeout`."""
    shared: bool = False
    """It shared its run: alone it has another try, as a step has that is retried."""
    alone_next: bool = False
    """The same, whatever the error says: it is not known to be its own."""
    may_wait: bool = True
    """A source may have this download wait once more: its `retries`."""


@dataclass(frozen=True, slots=True)
class Retry:
    """The step is retried within this run."""


@dataclass(frozen=True, slots=True)
class Requeue:
    """The transfer returns to the queue, for `after` at least; `spent`: the attempt counts, and keeps its fault."""

    after: timedelta = timedelta(0)
    spent: bool = False
    phase: Phase = Phase.QUEUED
    waited: bool = False
    """A source asked for the wait, which counts as a retry of the download."""


@dataclass(frozen=True, slots=True)
class Fail:
    """The transfer ends in ERROR."""


Decision = Retry | Requeue | Fail


def decide(error: BaseException, attempt: AttemptState) -> Decision:
    """Decide what follows an error.

    A catalogue that is away is no fault of the transfer, nor is a machine: both are waited for in the queue. Once an
    intent is recorded, a broken connection leaves open whether the file has its name: the next attempt's probe finds
    out. So do the items of a batch that users stop. A source that says when it is to be asked again is waited for in
    the queue too, not within a step, which holds a slot.
    """
    if isinstance(error, Staging):
        return Requeue(error.again or timedelta(0), phase=Phase.STAGING)
    if isinstance(error, Paused) or attempt.machine_away:
        return Requeue()
    if not isinstance(error, DataManagerError):
        return Fail()
    if error.again is not None:
        known = isinstance(error, ServiceError)  # the source was not asked
        return Requeue(min(error.again, attempt.patience), waited=not known) if known or attempt.may_wait else Fail()
    passing = may_pass(error, fail_fast=attempt.fail_fast)
    if attempt.step_retries and passing and not isinstance(error, ChecksumMismatch):
        return (
            Retry()
        )  # after a mismatch the bytes are sent again, which is more than the step: see `flows.steps.single`
    if attempt.last:
        return Fail()
    if attempt.shared and (passing or attempt.alone_next) and not isinstance(error, USER_STOPS):
        return Requeue(REQUEUE_AFTER, spent=True)
    waited_for = isinstance(error, ServiceError | MachineUnavailable) or attempt.intent
    if (passing and waited_for) or (isinstance(error, USER_STOPS) and attempt.items_in_doubt):
        return Requeue(REQUEUE_AFTER, spent=True)
    return Fail()


def may_pass(error: DataManagerError, *, fail_fast: bool = False, resend: bool = True) -> bool:
    """Say whether the same work may succeed when it is done again.

    `resend`: doing it again also sends damaged bytes again; where it does not, they stay damaged.
    """
    if isinstance(error, MachineUnavailable) and fail_fast:
        return False
    return error.retryable and (resend or not isinstance(error, ChecksumMismatch))
