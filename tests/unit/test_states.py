"""States: the words that clients compare, and which may follow which."""

from __future__ import annotations

from datamanager.domain.states import TRANSITIONS, ObjectStatus, Phase, TransferKind, TransferStatus

QUEUED, RUNNING, COMPLETE, _ = TransferStatus


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
