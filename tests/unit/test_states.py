"""States: what Prefect says and what clients see, as one table."""

from __future__ import annotations

import pytest
from prefect.client.schemas import objects as prefect_objects
from prefect.client.schemas.objects import StateType

from datamanager.domain.states import TRANSITIONS, ObjectStatus, Phase, TransferKind, TransferStatus, status_of_run

QUEUED, RUNNING, COMPLETE, ERROR = TransferStatus

# type, name, before the first byte, after it
TABLE = [
    ("SCHEDULED", "Scheduled", QUEUED, QUEUED),
    ("SCHEDULED", "Late", QUEUED, QUEUED),
    ("SCHEDULED", "AwaitingRetry", QUEUED, RUNNING),
    ("SCHEDULED", "AwaitingConcurrencySlot", QUEUED, QUEUED),
    ("SCHEDULED", "Resuming", QUEUED, QUEUED),
    ("PENDING", "Pending", QUEUED, QUEUED),
    ("PENDING", "Submitting", QUEUED, QUEUED),
    ("PENDING", "InfrastructurePending", QUEUED, QUEUED),
    ("PAUSED", "Paused", QUEUED, QUEUED),
    ("PAUSED", "Suspended", QUEUED, QUEUED),
    ("RUNNING", "Running", RUNNING, RUNNING),
    ("RUNNING", "Retrying", RUNNING, RUNNING),
    ("CANCELLING", "Cancelling", RUNNING, RUNNING),
    ("COMPLETED", "Completed", COMPLETE, COMPLETE),
    ("COMPLETED", "Cached", COMPLETE, COMPLETE),
    ("COMPLETED", "RolledBack", COMPLETE, COMPLETE),
    ("FAILED", "Failed", ERROR, ERROR),
    ("FAILED", "TimedOut", ERROR, ERROR),
    ("CRASHED", "Crashed", ERROR, ERROR),
    ("CANCELLED", "Cancelled", ERROR, ERROR),
]


@pytest.mark.parametrize(("kind", "name", "before", "after"), TABLE)
def test_states_of_a_run(kind: str, name: str, before: TransferStatus, after: TransferStatus) -> None:
    assert status_of_run(kind, name, bytes_moved=False) is before
    assert status_of_run(kind, name, bytes_moved=True) is after
    assert status_of_run(kind.lower(), name, bytes_moved=False) is before


def test_every_state_type_of_this_prefect_is_in_the_table() -> None:
    assert {kind for kind, *_ in TABLE} == {state.value for state in StateType}


def test_terminal_is_terminal_on_both_sides() -> None:
    for kind in StateType:
        terminal = kind in prefect_objects.TERMINAL_STATES
        assert status_of_run(kind.value, kind.value.title(), bytes_moved=True).ended is terminal


def test_a_state_type_that_nobody_knows_does_not_pass_unseen() -> None:
    with pytest.raises(ValueError, match="HIBERNATING"):
        status_of_run("HIBERNATING", "Hibernating", bytes_moved=False)


def test_the_words_that_clients_compare() -> None:
    assert list(TransferStatus) == ["QUEUED", "RUNNING", "COMPLETE", "ERROR"]
    assert list(ObjectStatus) == ["ACTIVE", "ARCHIVED", "DELETED", "UNKNOWN"]
    assert list(TransferKind) == [
        *("copy", "move", "getexternal", "delete", "copy_many", "move_many"),
        *("archive", "activate", "archive_many", "activate_many", "getexternal_many"),
    ]
    many = {"copy_many", "move_many", "archive_many", "activate_many", "getexternal_many"}
    assert {kind for kind in TransferKind if kind.many} == many
    assert {kind for kind in TransferKind if kind.itemised and not kind.many} == {"archive", "activate"}


def test_transitions() -> None:
    assert set(TRANSITIONS) == set(TransferStatus)
    assert all(not TRANSITIONS[status] for status in TransferStatus if status.ended)
    assert COMPLETE not in TRANSITIONS[QUEUED]
    assert QUEUED in TRANSITIONS[RUNNING]
    assert all(status not in after for status, after in TRANSITIONS.items())


def test_words_fit_their_columns() -> None:
    assert all(len(word) <= 16 for words in (TransferStatus, ObjectStatus, TransferKind, Phase) for word in words)
