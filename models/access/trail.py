"""Rows of the audit trail, each written in the transaction of what it tells.

A task has two: one for the request, and one for its end, with counts where it has items; items have none of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from models.access.requester import SERVICE, Requester, requester
from models.database import insert_rows, now, storable
from models.many_rows import insert_many
from models.tables import TrailEntry

SUBJECT_MAX = 1000
"""Characters of a subject."""


class TrailOutcome(StrEnum):
    """What came of it."""

    ALLOWED = "allowed"
    """It was permitted and entered: a task, whose end is another row."""
    REFUSED = "refused"
    """It was not permitted; nothing was changed."""
    DONE = "done"
    """It is changed."""
    FAILED = "failed"
    """The task ended in ERROR."""


def note(
    session: Session,
    action: str,
    outcome: TrailOutcome,
    *,
    object_id: UUID | None = None,
    transfer_id: UUID | None = None,
    subject: str | None = None,
    code: str | None = None,
    acted_as: str | None = None,
    certificate: str | None = None,
    counts: Mapping[str, int] | None = None,
    by: Requester | None = None,
    time: datetime | None = None,
) -> None:
    """Write what was done, or may be done, by one INSERT in the caller's transaction. `by`: who asked for it; None:
    whoever asks now (`requester`). `time`: the database's clock, if it was read already.
    """
    by = requester() if by is None else by
    row = {
        "time": time or now(session),
        "person": _short(by.person),
        "means": by.means,
        "credential": _short(by.credential),
        "origin": storable(by.origin),
        "request_id": _short(by.request_id),
        "action": action,
        "object_id": object_id,
        "transfer_id": transfer_id,
        "subject": _short(subject),
        "outcome": outcome.value,
        "code": code,
        "acted_as": _short(acted_as),
        "certificate": certificate,
        "counts": None if counts is None else dict(counts),
    }
    insert_rows(session, TrailEntry, [row])


def note_end(session: Session, row: Any, outcome: TrailOutcome, counts: Mapping[str, int] | None = None) -> None:
    """Write how a task ended; `row` has the columns of Transfer."""
    note_ends(session, [row], outcome, row.ended, counts)


def note_ends(
    session: Session,
    rows: Iterable[Any],
    outcome: TrailOutcome,
    time: datetime,
    counts: Mapping[str, int] | None = None,
) -> None:
    """Write that tasks have ended, by one statement. Each has who requested it."""
    same = {"time": time, "means": SERVICE, "origin": "", "outcome": outcome.value}
    same["counts"] = None if counts is None else dict(counts)
    insert_many(session, TrailEntry, _OF_AN_END, [_end(row) for row in rows], **same)


_OF_AN_END = ("person", "action", "object_id", "transfer_id", "code")


def _end(row: Any) -> tuple[Any, ...]:
    return (
        row.created_by,
        row.kind,
        row.object_id,
        row.id,
        getattr(row, "error_code", None),
    )


def _short(text: str | None) -> str | None:
    return None if text is None else storable(text)[:SUBJECT_MAX]
