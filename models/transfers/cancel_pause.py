"""What users do to transfers under way: cancel, pause, resume; and what their deadlines do.

What nobody holds is changed at once. What a mover holds is flagged, and the mover does it at its next look, which it
takes each second. A transfer past its commit point (`Transfer.past_commit_point`) is never ended from outside: an
attempt looks first whether its file has its name, and then completes it, or ends it.

Every function wants a writing session, but for `due` and `leaving_partials`.
"""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from datamanager.domain.states import Phase, TransferStatus
from datamanager.errors import Cancelled, DataManagerError, DeadlineExceeded, NotAllowed, Paused, TaskEnded
from models.access.visibility import Visible
from models.core.outbox import post_transfer_event
from models.database import now, wake
from models.tables import Transfer
from models.transfers.lookup import lock_open_transfer
from models.transfers.outcomes import fail_row
from models.transfers.queue import CANCEL, FORBID, PAUSE, keep_paused

WITHDRAWN = "whoever requested it is not permitted this any more"
EXPIRED_AT_ONCE = 200
"""Transfers that one `expire` ends at most: its transaction is to be short."""


def cancel(session: Session, transfer: UUID, visible: Visible, why: str = "cancelled by request") -> Transfer:
    """End a transfer as `cancelled`, now or, when a mover has it, soon. Idempotent while it is being stopped.

    What is past its commit point continues: it may end COMPLETE. Raises: TaskEnded, and what `get_transfer` raises.
    """
    row = lock_open_transfer(session, transfer, visible)
    if row.owner is not None or row.past_commit_point:
        if row.paused:
            row.paused, row.phase = False, Phase.QUEUED.value
        _request(session, row, CANCEL)
    else:
        fail_row(session, row, Cancelled(why))
    return row


def pause(session: Session, transfer: UUID, visible: Visible) -> Transfer:
    """Pause a transfer until it is resumed; what it has moved is kept. Idempotent.

    One that a mover has is stopped soon, unless it is past its commit point: that one continues. Raises:
    TaskEnded, also for one that is being cancelled; what `get_transfer` raises.
    """
    row = _not_cancelled(session, transfer, visible)
    if row.owner is not None:
        _request(session, row, PAUSE)
    elif not row.paused:
        keep_paused(session, row)
    return row


def resume(session: Session, transfer: UUID, visible: Visible) -> Transfer:
    """Resume a paused transfer where it was. Idempotent.

    Raises: TaskEnded, also for one that is being cancelled; what `get_transfer` raises.
    """
    row = _not_cancelled(session, transfer, visible)
    row.stop_requested = None
    if row.paused:
        row.paused, row.phase = False, Phase.QUEUED.value
        post_transfer_event(session, row, "resumed", {})
        wake(session, "queued")
    return row


def stop_reason(session: Session, transfer: UUID) -> DataManagerError | None:
    """Return why a mover is to stop a transfer that it holds, if it is. Only reads."""
    row = session.get(Transfer, transfer, populate_existing=True)
    return None if row is None or row.ended is not None else stop_reason_of(row, now(session))


def stop_reason_of(row: Transfer, time: datetime) -> DataManagerError | None:
    """Return why a mover is to stop a transfer that it holds at this time, if it is."""
    if row.stop_requested == CANCEL:
        return Cancelled("cancelled by request")
    if row.stop_requested == PAUSE:
        return Paused("paused by request")
    if row.stop_requested == FORBID:
        return NotAllowed(WITHDRAWN)
    if row.deadline is not None and row.deadline <= time:
        return _too_late(row.deadline)
    return None


def due(session: Session) -> bool:
    """Say whether `expire` has something to do: a look that needs no writing transaction."""
    return any(session.scalar(select(Transfer.id).where(*due).limit(1)) is not None for due in _due(now(session)))


def expire(session: Session) -> list[Transfer]:
    """End what nobody holds and that is past its deadline, or was cancelled or forbidden while a mover that is gone had
    it.

    Any mover does it, before it takes and with each beat. Returns those that have ended.
    """
    ended, time = list[Transfer](), now(session)
    for due in _due(time):
        query = select(Transfer).where(*due).limit(EXPIRED_AT_ONCE).with_for_update(skip_locked=True)
        ended += [row for row in session.scalars(query) if row not in ended]
    for row in ended:
        fail_row(session, row, stop_reason_of(row, time) or _too_late(row.deadline))
    return ended


def leaving_partials(session: Session, limit: int) -> list[Transfer]:
    """Return up to `limit` ended transfers whose partial files are still to be removed: any, as those on a machine that
    is away must not keep others waiting.
    """
    query = (
        select(Transfer)
        .where(Transfer.leaves_partial, Transfer.ended.is_not(None))
        .order_by(func.random())
        .limit(limit)
    )
    return list(session.scalars(query))


def note_partial(session: Session, transfer: UUID) -> None:
    """Note that a mover which lost a transfer may have left a partial file, unseen by the one that has it now or has
    ended it: it is removed after the end. Not fenced: the one who says so has lost its lease.
    """
    session.execute(update(Transfer).where(Transfer.id == transfer).values(leaves_partial=True))


def note_clean(session: Session, transfer: UUID) -> None:
    """Note that an ended transfer has left nothing behind (any more)."""
    session.execute(update(Transfer).where(Transfer.id == transfer).values(leaves_partial=False))


def _not_cancelled(session: Session, transfer: UUID, visible: Visible) -> Transfer:
    row = lock_open_transfer(session, transfer, visible)
    if row.stop_requested in (CANCEL, FORBID):
        raise TaskEnded(f"task {transfer} is being cancelled")
    return row


def _request(session: Session, row: Transfer, what: str) -> None:
    if row.stop_requested != what:
        row.stop_requested = what
        wake(session, "queued")


def _too_late(deadline: datetime | None) -> DeadlineExceeded:
    return DeadlineExceeded(f"its deadline was {deadline:%Y-%m-%dT%H:%M:%SZ}")


def _due(time: datetime) -> list[tuple[ColumnElement[bool], ...]]:
    """Return the conditions of what is too late, and of what was cancelled or forbidden: apart, so that each has its
    index.
    """
    unheld = (
        Transfer.ended.is_(None),
        Transfer.status == TransferStatus.QUEUED.value,
        Transfer.owner.is_(None),
        Transfer.past_commit_point.is_(False),
    )
    return [
        (*unheld, Transfer.deadline.is_not(None), Transfer.deadline <= time),
        (*unheld, Transfer.stop_requested.is_not(None), Transfer.stop_requested.in_((CANCEL, FORBID))),
    ]
