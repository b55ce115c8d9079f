"""Marks: what retention means to do with an object, until it is done, void, or taken back.

    open     `mark`: due after the rule's grace; `models.retention.submission` gives it the transfer that acts
    done     `settle`: its transfer ended well
    void     `void`: the rule does not select the object any more, or somebody holds it
    restored `take_back`: somebody wants the object left alone by this rule for a while

An object has one open mark at most: a unique index says so. Locks are taken in the order object, mark.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import and_, delete, func, select, update
from sqlalchemy.orm import Session

from datamanager.domain.retention_decisions import Decision
from datamanager.domain.retention_rules import Action
from datamanager.domain.states import ObjectStatus, TransferKind, TransferStatus
from models.database import affected, insert_free, now, on_postgresql
from models.tables import DataObject, RetentionMark, Transfer, TransferItem

DETAIL_MAX = 1000
SETTLED_AT_ONCE = 500

_OPEN = RetentionMark.closed.is_(None)


def mark(session: Session, run: UUID, decisions: Sequence[Decision], time: datetime) -> int:
    """Mark objects; those that have an open mark keep it. Returns how many are marked anew."""
    rows = [new_mark(run, decision, time) for decision in sorted(decisions, key=lambda one: one.subject.id)]
    return len(insert_free(session, RetentionMark, rows, "id")) if rows else 0


def new_mark(run: UUID, decision: Decision, time: datetime) -> dict[str, Any]:
    """Return the row of a mark."""
    return {
        "object_id": decision.subject.id,
        "rule": decision.rule.name,
        "action": decision.rule.action.value,
        "marked": time,
        "due": decision.due or time,
        "run_id": run,
        "survivor_id": decision.survivor,
        "bytes": decision.bytes,
        "in_archive": decision.subject.status == ObjectStatus.ARCHIVED,
        "attempts": 0,
    }


def void(session: Session, reasons: Iterable[tuple[UUID, str]]) -> int:
    """Close the open marks of objects that no transfer has, each with its reason. Returns how many."""
    time, closed = now(session), 0
    for object_id, why in sorted(reasons):
        mine = update(RetentionMark).where(
            RetentionMark.object_id == object_id, _OPEN, RetentionMark.transfer_id.is_(None)
        )
        closed += affected(session, mine.values(closed=time, outcome="void", detail=why))
    return closed


def open_mark(session: Session, object_id: UUID) -> RetentionMark | None:
    """Return an object's open mark, locked. The caller has locked the object."""
    query = select(RetentionMark).where(RetentionMark.object_id == object_id, _OPEN)
    return session.scalar(query.with_for_update().execution_options(populate_existing=True))


def settle(session: Session) -> int:
    """Close the marks whose transfers ended well; those whose transfers failed are open again, and still due.

    Up to SETTLED_AT_ONCE; call it again while it returns that many. Idempotent.
    """
    query = (
        select(RetentionMark, Transfer, TransferItem.status, TransferItem.error_code, DataObject.status)
        .outerjoin(Transfer, Transfer.id == RetentionMark.transfer_id)
        .outerjoin(
            TransferItem,
            and_(
                TransferItem.transfer_id == RetentionMark.transfer_id,
                TransferItem.object_id == RetentionMark.object_id,
            ),
        )
        .join(DataObject, DataObject.id == RetentionMark.object_id)
        .where(_OPEN, RetentionMark.transfer_id.is_not(None))
        .where((Transfer.id.is_(None)) | (Transfer.ended.is_not(None)))
        .order_by(RetentionMark.id)
        .limit(SETTLED_AT_ONCE)
    )
    if on_postgresql(session):
        query = query.with_for_update(of=RetentionMark, skip_locked=True)
    time, found = now(session), session.execute(query).all()
    for row, transfer, item, item_error, status in found:
        error = _error(row, transfer, item, item_error, status)
        if error is None:
            row.closed, row.outcome = time, "done"
        else:
            row.detail, row.transfer_id = error[:DETAIL_MAX], None
            row.attempts += 1
    return len(found)


def under_way(session: Session, run: UUID) -> int:
    """Return how many of the objects that a run acted on have transfers that are not settled."""
    query = select(func.count()).where(RetentionMark.acted_run_id == run, _OPEN, RetentionMark.transfer_id.is_not(None))
    return session.scalar(query) or 0


def prune_marks(session: Session, before: datetime, limit: int = 1000) -> int:
    """Forget closed marks older than `before`, and not needed to spare an object; return how many."""
    old = select(RetentionMark.id).where(
        RetentionMark.closed < before, (RetentionMark.spared_until.is_(None)) | (RetentionMark.spared_until < before)
    )
    return affected(session, delete(RetentionMark).where(RetentionMark.id.in_(old.limit(limit))))


def _error(
    mark: RetentionMark, transfer: Transfer | None, item: str | None, item_error: str | None, status: str
) -> str | None:
    """Return why a transfer did not do what the mark wanted, None when it did."""
    if transfer is None:  # forgotten long ago: the object says how it went
        archived = status == ObjectStatus.ARCHIVED.value and mark.action == Action.ARCHIVE.value
        return None if archived or status == ObjectStatus.DELETED.value else "its transfer is no longer stored"
    if TransferKind(transfer.kind).itemised:
        well = item == TransferStatus.COMPLETE.value
        return None if well else f"{item_error or transfer.error_code}: {transfer.error_detail or ''}"
    well = transfer.status == TransferStatus.COMPLETE.value
    return None if well else f"{transfer.error_code}: {transfer.error_detail or ''}"
