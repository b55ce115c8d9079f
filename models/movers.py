"""What movers do with transfer rows: take one under a lease, say that they live, note progress and faults, give back.

Lease and fencing (design.md): a mover takes a transfer by raising its epoch in one UPDATE; every later write names that
epoch. A runner whose lease was lost finds the epoch moved on (LeaseLost) and touches nothing that is not its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import or_, select, update
from sqlalchemy.orm import Session

from datamanager.domain.states import TRANSITIONS, Phase, TransferStatus
from datamanager.errors import InternalError, LeaseLost
from models.database import affected, now, storable, wake
from models.outbox import post_transfer_event
from models.tables import Transfer

FAULTS_KEPT = 50
DETAIL_MAX = 2000  # characters of a fault's detail that are kept
NOTABLE = frozenset({"phase", "bytes_done", "bytes_total", "flow_run_id"})
"""The columns that a runner may write while it works; status, lease and end have functions of their own."""


@dataclass(frozen=True, slots=True)
class Hold:
    """A mover's hold on a transfer: who, and under which epoch."""

    transfer: UUID
    owner: str
    epoch: int


def take(session: Session, owner: str, lease: timedelta, limit: int, *, only: UUID | None = None) -> list[Hold]:
    """Take up to `limit` queued transfers, oldest first (or just `only`), raising each one's epoch.

    Two movers never take the same one: PostgreSQL locks the rows and others skip them, on SQLite the transaction
    excludes others.
    """
    time = now(session)
    query = (
        select(Transfer)
        .where(*_takeable(time))
        .order_by(Transfer.created, Transfer.id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    if only is not None:
        query = query.where(Transfer.id == only)
    holds = []
    for row in session.scalars(query):
        row.owner = owner
        row.epoch += 1
        row.attempts += 1
        row.lease_until = time + lease
        holds.append(Hold(row.id, owner, row.epoch))
    return holds


def waiting(session: Session) -> bool:
    """Say whether a transfer could be taken now: a look that needs no writing transaction."""
    query = select(Transfer.id).where(*_takeable(now(session))).limit(1)
    return session.scalar(query) is not None


def renew(session: Session, holds: list[Hold], lease: timedelta) -> list[Hold]:
    """Prolong leases; return the holds that were lost."""
    until = now(session) + lease
    return [hold for hold in holds if not _write(session, hold, lease_until=until)]


def held(session: Session, hold: Hold, *, lock: bool = False) -> Transfer:
    """Return the transfer if the hold still stands. Raises: LeaseLost."""
    query = select(Transfer).where(*_fence(hold)).execution_options(populate_existing=True)
    if lock:
        query = query.with_for_update()
    found = session.scalar(query)
    if found is None:
        raise LeaseLost(f"transfer {hold.transfer} is no longer held under epoch {hold.epoch}")
    return found


def begin(session: Session, hold: Hold, flow_run_id: UUID) -> Transfer:
    """Note that the transfer's flow run has begun: RUNNING, and events. Raises: LeaseLost."""
    row = held(session, hold, lock=True)
    row.flow_run_id = flow_run_id
    if row.status == TransferStatus.QUEUED.value:
        advance(row, TransferStatus.RUNNING)
        row.phase = Phase.PROBE.value
        row.started = row.started or now(session)
        row.retry_at = None
        post_transfer_event(session, row, "running", {"attempt": row.attempts})
    return row


def note(session: Session, hold: Hold, **values: Any) -> None:
    """Write columns of a held transfer (NOTABLE). Raises: LeaseLost."""
    if not values.keys() <= NOTABLE:
        raise InternalError(f"a runner may not write {', '.join(sorted(values.keys() - NOTABLE))}")
    if not _write(session, hold, **values):
        raise LeaseLost(f"transfer {hold.transfer} is no longer held under epoch {hold.epoch}")


def remember(session: Session, hold: Hold, **notes: Any) -> None:
    """Add to what a later attempt must know, before an act that can't be repeated. Raises: LeaseLost."""
    row = held(session, hold, lock=True)
    row.notes = {**row.notes, **notes}


def add_fault(session: Session, hold: Hold, code: str, detail: str) -> None:
    """Keep an attempt's fault on the transfer. Raises: LeaseLost."""
    row = held(session, hold, lock=True)
    append_fault(session, row, code, detail)


def append_fault(session: Session, row: Transfer, code: str, detail: str) -> None:
    """Append a fault to a row of the session; the oldest go when there are too many."""
    fault = {"time": now(session).isoformat(), "code": code, "detail": storable(detail)[:DETAIL_MAX]}
    row.faults = [*row.faults, {**fault, "attempt": row.attempts}][-FAULTS_KEPT:]


def requeue(session: Session, hold: Hold, *, after: timedelta = timedelta(0), spent: bool = True) -> None:
    """Give a transfer back to the queue; `spent=False` when the attempt does not count. Raises: LeaseLost."""
    row = held(session, hold, lock=True)
    _to_queue(row)
    row.retry_at = now(session) + after if after else None
    if not spent:
        row.attempts -= 1
    wake(session, "queued")


def reap(session: Session) -> list[Transfer]:
    """Put every transfer whose lease has run out back in the queue, and return them. Any mover may do it."""
    query = (
        select(Transfer)
        .where(Transfer.owner.is_not(None), Transfer.ended.is_(None), Transfer.lease_until < now(session))
        .with_for_update(skip_locked=True)
    )
    lost = list(session.scalars(query))
    for row in lost:
        append_fault(session, row, "lease_lost", f"mover {row.owner} fell silent")
        _to_queue(row)
    if lost:
        wake(session, "queued")
    return lost


def _takeable(time: datetime) -> tuple[Any, ...]:
    return (
        Transfer.status == TransferStatus.QUEUED.value,
        Transfer.owner.is_(None),
        or_(Transfer.retry_at.is_(None), Transfer.retry_at <= time),
    )


def advance(row: Transfer, status: TransferStatus) -> None:
    """Change a row's status as TRANSITIONS allows. Raises: InternalError for any other change."""
    if status not in TRANSITIONS[TransferStatus(row.status)]:
        raise InternalError(f"transfer {row.id} can't go from {row.status} to {status}")
    row.status = status.value


def _to_queue(row: Transfer) -> None:
    if row.status != TransferStatus.QUEUED.value:  # taken, but not begun yet
        advance(row, TransferStatus.QUEUED)
    row.phase = Phase.QUEUED.value
    row.owner = None
    row.lease_until = None


def _fence(hold: Hold) -> tuple[Any, ...]:
    return (
        Transfer.id == hold.transfer,
        Transfer.epoch == hold.epoch,
        Transfer.owner == hold.owner,
        Transfer.ended.is_(None),
    )


def _write(session: Session, hold: Hold, **values: Any) -> bool:
    return affected(session, update(Transfer).where(*_fence(hold)).values(**values)) == 1
