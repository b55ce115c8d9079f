"""Runs of retention: requested, begun, reported. Their rows are the truth about them; Prefect only runs and shows them.

One run works at a time, under a named lease. A run whose mover died is finished by the next one, from what the
catalogue knows of its transfers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import and_, delete, func, or_, select
from sqlalchemy.orm import Session, defer

from datamanager.errors import LeaseLost, RetentionRunNotFound
from datamanager.identity.grant import Grant
from models.access.permission import kept, kept_of, maker
from models.access.visibility import ALL, Visible, find_seen
from models.core.cursors import NEWEST, ROWS, Rendering, page_of
from models.core.leases import is_held
from models.core.outbox import post_event
from models.database import affected, now, storable, wake
from models.retention.marks import under_way
from models.tables import DataObject, RetentionMark, RetentionRun

DUTY = "retention"
"""What one run does at a time; its lease is `duty:retention`."""
NEVER_BEGUN = timedelta(days=1)
"""A run that was requested and has not begun by then was lost in Prefect."""
FAILED_SHOWN = 100
COMPLETED = "dm.retention.completed"
QUEUED, RUNNING, COMPLETE, ERROR = "QUEUED", "RUNNING", "COMPLETE", "ERROR"
INTERRUPTED = "its mover ended before it; the transfers that it submitted continued"


@dataclass(frozen=True, slots=True)
class RetentionTerms:
    """The terms of a run: `rule` is the only one to carry out ("": all); caps of None are those of the file."""

    dry_run: bool = False
    rule: str = ""
    max_objects: int | None = None
    max_bytes: int | None = None


def ask_for_run(session: Session, terms: RetentionTerms, by: Grant | None) -> UUID:
    """Note that a run is wanted; a mover makes its flow run. It acts on what `by` may retain, archive and delete."""
    row = _new(session, terms, QUEUED, by)
    wake(session, "queued")
    return row.id


def begin_run(
    session: Session, terms: RetentionTerms, run: UUID | None, holder: str, flow_run: UUID | None
) -> RetentionRun:
    """Begin the run that was requested, or (None) a new one. Raises: RetentionRunNotFound; LeaseLost when another has
    begun it.
    """
    if run is None:
        row = _new(session, terms, RUNNING, None)
    else:
        row = get_run(session, run, ALL, lock=True)
        if row.status != QUEUED:
            raise LeaseLost(f"run {run} is {row.status} already")
        row.status = RUNNING
    row.started, row.holder, row.flow_run_id = now(session), holder, flow_run
    session.flush()
    return row


def require_running(session: Session, run: UUID) -> Grant | None:
    """Make sure that a run may still act: a mover that was stopped for long may have lost the lease to another one,
    which then ended its run. Nobody ends it until the transaction is over. Return what whoever requested it is
    permitted, None of the service's own. Raises: LeaseLost, NotAllowed.
    """
    query = select(RetentionRun.status, RetentionRun.grant).where(RetentionRun.id == run)
    found = session.execute(query.with_for_update(read=True)).one_or_none()
    if found is None or found.status != RUNNING:
        raise LeaseLost(f"run {run} of retention was ended by others")
    return kept_of(found.grant)


def end_run(
    session: Session,
    run: UUID,
    *,
    counts: Sequence[Mapping[str, Any]],
    lines: Sequence[Mapping[str, Any]],
    error: str | None = None,
    truncated: bool = False,
) -> RetentionRun:
    """End a run, with an event (`dm.retention.completed`). Bytes are counted from the transfers that ended, and those
    that failed are reported, too. Idempotent: one that has ended stays as it is.
    """
    row = get_run(session, run, ALL, lock=True)
    if row.ended is not None:
        return row
    row.ended = now(session)
    row.status = COMPLETE if error is None else ERROR
    row.error = None if error is None else storable(error)
    failed_counts, failed_lines = _failed(session, run)
    row.counts = [*map(dict, counts), *failed_counts]
    row.lines, row.truncated = [*failed_lines, *map(dict, lines)], truncated
    row.bytes_freed, row.pending = freed(session, run), under_way(session, run)
    data = {
        "run": str(run),
        "status": row.status,
        "dry_run": row.dry_run,
        "rule": row.rule,
        "bytes_freed": row.bytes_freed,
        "pending": row.pending,
        "counts": row.counts,
        "error": row.error,
    }
    post_event(session, COMPLETED, run, data)
    wake(session, f"ended:{run}")
    return row


def give_up(session: Session, run: UUID, error: str) -> None:
    """End a run that was requested and could not begin; one that was begun meanwhile stays as it is."""
    if get_run(session, run, ALL, lock=True).status == QUEUED:
        end_run(session, run, counts=[], lines=[], error=error)


def asked_for(session: Session) -> list[UUID]:
    """Return the runs that were requested and have no flow run yet."""
    query = select(RetentionRun.id).where(RetentionRun.status == QUEUED, RetentionRun.flow_run_id.is_(None))
    return list(session.scalars(query.order_by(RetentionRun.created).limit(10)))


def attach(session: Session, run: UUID, flow_run: UUID) -> None:
    """Note which flow run is to perform a run."""
    row = get_run(session, run, ALL, lock=True)
    if row.status == QUEUED:
        row.flow_run_id = flow_run


def any_lost(session: Session) -> bool:
    """Say whether a run is called RUNNING though nobody has the lease."""
    query = select(RetentionRun.id).where(RetentionRun.status == RUNNING).limit(1)
    return session.scalar(query) is not None and not is_held(session, f"duty:{DUTY}")


def end_lost(session: Session) -> list[UUID]:
    """End the runs that are called RUNNING though nobody has the lease."""
    return end_abandoned(session, None) if any_lost(session) else []


def end_abandoned(session: Session, mine: UUID | None) -> list[UUID]:
    """End the runs that are called RUNNING though the caller has the lease (or nobody): their movers are gone."""
    late = RetentionRun.created < now(session) - NEVER_BEGUN
    query = select(RetentionRun.id).where(
        or_(RetentionRun.status == RUNNING, and_(RetentionRun.status == QUEUED, late))
    )
    if mine is not None:
        query = query.where(RetentionRun.id != mine)
    gone = list(session.scalars(query))
    for run in gone:
        counts = _counted(session, "act", RetentionMark.acted_run_id == run)
        end_run(session, run, counts=counts, lines=[], error=INTERRUPTED)
    return gone


def freed(session: Session, run: UUID) -> int:
    """Return the bytes of files that went by a run: of transfers that ended well, and not out of bundles."""
    query = select(func.sum(RetentionMark.bytes)).where(
        RetentionMark.acted_run_id == run, RetentionMark.outcome == "done", RetentionMark.in_archive.is_(False)
    )
    return int(session.scalar(query) or 0)


def get_run(session: Session, run: UUID, visible: Visible, *, lock: bool = False) -> RetentionRun:
    """Return a run. Raises: RetentionRunNotFound, also when it is not seen."""
    if visible is ALL:
        found = session.get(RetentionRun, run, with_for_update=lock or None, populate_existing=lock)
    else:
        found = find_seen(session, RetentionRun, RetentionRun.id == run, visible, Visible.retention_runs, lock=lock)
    if found is None:
        raise RetentionRunNotFound(f"no retention run has the identifier {run}")
    return found


def list_runs(
    session: Session, visible: Visible, limit: int, cursor: str | None = None, rendering: Rendering = ROWS
) -> tuple[list[Any], str | None]:
    """Return a page of runs, the newest first, shown as `rendering` says, and the cursor of the next one; their lines
    are read when they are asked for. Raises: InvalidRequest (the cursor).
    """
    query = select(RetentionRun).options(defer(RetentionRun.lines)).where(*visible.retention_runs())
    return page_of(session, query, RetentionRun.created, NEWEST, limit, cursor, rendering)


def prune_runs(session: Session, before: datetime, limit: int = 1000) -> int:
    """Forget runs that ended before; return how many."""
    old = select(RetentionRun.id).where(RetentionRun.ended < before).limit(limit)
    return affected(session, delete(RetentionRun).where(RetentionRun.id.in_(old)))


def _failed(session: Session, run: UUID) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return what a run acted on in vain, counted and one by one: those marks are open again."""
    mine = (
        RetentionMark.acted_run_id == run,
        RetentionMark.closed.is_(None),
        RetentionMark.transfer_id.is_(None),
    )
    query = select(RetentionMark, DataObject).join(DataObject, DataObject.id == RetentionMark.object_id).where(*mine)
    lines = [
        {
            "object": str(obj.id),
            "machine": obj.machine,
            "place": obj.place,
            "rule": mark.rule,
            "action": mark.action,
            "verdict": "failed",
            "reason": None,
            "detail": mark.detail,
            "bytes": obj.size,
            "due": mark.due.isoformat(),
            "survivor": None if mark.survivor_id is None else str(mark.survivor_id),
        }
        for mark, obj in session.execute(query.order_by(RetentionMark.id).limit(FAILED_SHOWN))
    ]
    return _counted(session, "failed", *mine), lines


def _counted(session: Session, verdict: str, *mine: Any) -> list[dict[str, Any]]:
    """Count marks by rule and action, as a report does."""
    groups = RetentionMark.rule, RetentionMark.action
    query = select(*groups, func.count(), func.sum(RetentionMark.bytes)).where(*mine).group_by(*groups)
    return [
        {"rule": rule, "action": action, "verdict": verdict, "reason": None, "objects": count, "bytes": int(size or 0)}
        for rule, action, count, size in session.execute(query)
    ]


def _new(session: Session, terms: RetentionTerms, status: str, by: Grant | None) -> RetentionRun:
    row = RetentionRun(
        id=uuid4(),
        status=status,
        dry_run=terms.dry_run,
        rule=terms.rule,
        max_objects=terms.max_objects,
        max_bytes=terms.max_bytes,
        created_by=maker(by),
        grant=kept(by),
        created=now(session),
    )
    session.add(row)
    session.flush()
    return row
