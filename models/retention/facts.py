"""What retention knows of objects: rows of the catalogue as the pure core wants them, read page by page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, case, false, func, or_, select, true
from sqlalchemy.orm import Session

from datamanager.domain.retention_decisions import Mark, Reason, Subject, keeper_of
from datamanager.domain.retention_rules import RetentionRules
from datamanager.domain.states import ObjectStatus, Verified
from models.access.visibility import ALL, Visible
from models.objects.bulk_claims import chunks, claims_on, rows_in
from models.tables import DataObject, MachineHealth, RetentionMark, Transfer
from models.tables.objects import CHECKSUM_DIGITS, CHECKSUM_KEY

PAGE = 500
LIVE = (ObjectStatus.ACTIVE.value, ObjectStatus.ARCHIVED.value)


def candidates(
    session: Session,
    rules: RetentionRules,
    now: datetime,
    after: tuple[datetime, UUID] | None,
    limit: int = PAGE,
    visible: Visible = ALL,
) -> list[DataObject]:
    """Return up to `limit` objects that are seen and that some rule may select, the oldest registered first; more than
    those are never left out. `after` is the last one of the page before.
    """
    selected = or_(*(and_(*_roughly(rule, now)) for rule in rules.rule))
    # as CASE no index serves it: by one of machines or groups each page would have to sort all that are beyond it
    query = select(DataObject).where(case((and_(selected, *visible.objects()), true()), else_=false()))
    if after is not None:
        time, last = after
        column = DataObject.date_registered
        # by the first condition an index finds where the page begins
        query = query.where(column >= time, or_(column > time, DataObject.id > last))
    query = query.order_by(DataObject.date_registered, DataObject.id).limit(limit)
    return list(session.scalars(query.execution_options(populate_existing=True)))


def subjects(session: Session, rows: Sequence[DataObject], now: datetime) -> list[Subject]:
    """Return what is to be known of objects, in their order."""
    ids = [row.id for row in rows]
    claims = claims_on(session, ids)
    marks, restored = open_marks(session, ids), _restored(session, ids, now)
    return [
        Subject(
            id=row.id,
            machine=row.machine,
            place=row.place,
            bytes_on=bytes_on(row),
            status=ObjectStatus(row.status),
            size=row.size,
            checksum=row.checksum,
            verified=row.verified,
            group=row.group,
            originator=row.originator,
            metadata=row.meta,
            registered=row.date_registered,
            last_used=row.last_used,
            expires=row.expires_at,
            held=row.held_since is not None,
            claim=claims.get(row.id),
            mark=marks.get(row.id),
            restored=frozenset(restored.get(row.id, ())),
        )
        for row in rows
    ]


def keepers(
    session: Session,
    rules: RetentionRules,
    checksums: Iterable[str],
    now: datetime,
    away: Mapping[str, Reason],
    visible: Visible = ALL,
) -> dict[str, UUID | None]:
    """Return the copy that is kept of each group of copies, of those that are seen. A group may be large; it is never
    held in memory.
    """
    found: dict[str, UUID | None] = {}
    for some in chunks(sorted(set(checksums))):
        query = (
            select(DataObject)
            .where(
                CHECKSUM_KEY.in_({one[CHECKSUM_DIGITS] for one in some}),
                DataObject.checksum.in_(some),
                DataObject.verified == Verified.SHA256.value,
                DataObject.status.in_(LIVE),
                *visible.objects(),
            )
            .order_by(DataObject.checksum, DataObject.date_registered, DataObject.id)
        )
        for checksum, members in groupby(_in_pages(session, query, now), key=lambda one: one.checksum):
            if checksum is not None:
                found[checksum] = keeper_of(rules, members, now, away)
    return found


def machines_away(session: Session) -> dict[str, Reason]:
    """Return the machines that are drained or can't be reached."""
    query = select(MachineHealth.name, MachineHealth.drained, MachineHealth.opened)
    return {
        name: Reason.MACHINE_DRAINED if drained is not None else Reason.MACHINE_UNAVAILABLE
        for name, drained, opened in session.execute(query)
        if drained is not None or opened is not None
    }


def open_marks(session: Session, ids: Sequence[UUID]) -> dict[UUID, Mark]:
    """Return the open marks of objects. One whose transfer has ended, and that no run has settled yet, is as if it were
    not acted on.
    """
    query = (
        select(RetentionMark, Transfer.id)
        .outerjoin(Transfer, and_(Transfer.id == RetentionMark.transfer_id, Transfer.ended.is_(None)))
        .where(RetentionMark.closed.is_(None))
    )
    rows = rows_in(session, query, RetentionMark.object_id, ids)
    return {row.object_id: Mark(row.rule, row.action, row.due, under_way) for row, under_way in rows}


def bytes_on(row: DataObject) -> str:
    """Return the machine that has an object's bytes."""
    if row.status == ObjectStatus.ARCHIVED and row.archived_in:
        return row.archived_in.partition(":")[0]
    return row.machine


def _in_pages(session: Session, query: Any, now: datetime) -> Iterator[Subject]:
    """Yield subjects of a query, a page in memory at a time."""
    options = {"yield_per": PAGE, "populate_existing": True}
    with session.execute(query.execution_options(**options)) as result:
        for rows in result.scalars().partitions(PAGE):
            yield from subjects(session, rows, now)
            for row in rows:
                session.expunge(row)


def _restored(session: Session, ids: Sequence[UUID], now: datetime) -> dict[UUID, set[str]]:
    found: dict[UUID, set[str]] = {}
    query = select(RetentionMark.object_id, RetentionMark.rule).where(RetentionMark.spared_until > now)
    for object_id, rule in rows_in(session, query, RetentionMark.object_id, ids):
        found.setdefault(object_id, set()).add(rule)
    return found


def _roughly(rule: Any, now: datetime) -> list[ColumnElement[bool]]:
    """Return conditions that hold at least for what a rule selects; the core decides exactly."""
    conditions: list[ColumnElement[bool]] = [DataObject.status.in_(rule.status)]
    if rule.group is not None:
        conditions.append(DataObject.group.in_(rule.group))
    if rule.machine is not None:
        conditions.append(DataObject.machine.in_(rule.machine))
    ages = [age for age in (rule.older_than, rule.unused_for) if age is not None]
    if ages:
        conditions.append(DataObject.date_registered < now - max(ages))
    if rule.unused_for is not None:
        used = func.coalesce(DataObject.last_used, DataObject.date_registered)
        conditions.append(used < now - rule.unused_for)
    if rule.larger_than is not None:
        conditions.append(DataObject.size > rule.larger_than)
    if rule.smaller_than is not None:
        conditions.append(DataObject.size < rule.smaller_than)
    if rule.expired:
        conditions.append(DataObject.expires_at <= now)
    return conditions
