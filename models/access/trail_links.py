"""The chain of the audit trail in the catalogue: link its rows, verify them, prune the oldest.

Rows are linked by whoever has the mark `last` locked, so one process at a time, after the transactions that wrote them.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from models.access.trail import TrailOutcome, note
from models.access.trail_chain import Flaw, FlawKind, Link, Record, flaws_of, hash_of, record_of
from models.database import affected, insert_if_free, on_postgresql, table_of
from models.many_rows import update_many
from models.tables import TrailEntry, TrailMark

LINKED_AT_ONCE = 1000
"""Rows that one transaction links, or prunes: it is to be short."""
READ_AT_ONCE = 500
"""Rows in memory when all are read."""
FIRST, LAST = "first", "last"
PRUNED = "prune_trail"
"""The action of the row that tells of pruning."""

_trail = table_of(TrailEntry).c


def has_unlinked(session: Session) -> bool:
    """Say whether there are rows to link. Only reads."""
    return session.scalar(select(TrailEntry.id).where(TrailEntry.number.is_(None)).limit(1)) is not None


def link(session: Session, limit: int = LINKED_AT_ONCE) -> int:
    """Link up to `limit` rows to the chain, in the order of their ids; return how many. One process at a time does it:
    others wait until its transaction ends.
    """
    last = mark(session, LAST, lock=True)
    query = select(*_trail).where(TrailEntry.number.is_(None)).order_by(TrailEntry.id).limit(limit)
    linked = list[tuple[int, int, str]]()
    for row in session.execute(query).all():
        number = last.number + 1
        last = Link(number, hash_of(last.hash, record_of(row, number)))
        linked.append((row.id, number, last.hash))
    if linked:
        update_many(session, TrailEntry, ("id",), ("number", "hash"), linked)
        _set(session, LAST, last)
    return len(linked)


def mark(session: Session, name: str, *, lock: bool = False) -> Link:
    """Return an end of the chain; with `lock` nobody else moves it until the transaction ends."""
    query = select(TrailMark.number, TrailMark.hash).where(TrailMark.name == name)
    found = session.execute(query.with_for_update() if lock else query).one_or_none()
    if found is None and lock:
        start = Link()
        insert_if_free(session, TrailMark, {"name": name, "number": start.number, "hash": start.hash})
        found = session.execute(query.with_for_update()).one_or_none()
    return Link() if found is None else Link(found.number, found.hash)


def records(session: Session, since: datetime | None = None, until: datetime | None = None) -> Iterator[Record]:
    """Yield the records of linked rows by number, of those at a time from `since` on and before `until`. However many
    there are, few are in memory.
    """
    query = select(*_trail).where(TrailEntry.number.is_not(None)).order_by(TrailEntry.number)
    query = query if since is None else query.where(TrailEntry.time >= since)
    query = query if until is None else query.where(TrailEntry.time < until)
    with session.execute(query.execution_options(yield_per=READ_AT_ONCE)) as rows:
        yield from map(record_of, rows)


def verify(session: Session, expected: Link | None = None) -> Iterator[Flaw]:
    """Yield what is wrong with the chain as it is in the session's snapshot. `expected`: a link that was noted
    elsewhere, and must be in it still; a chain that was made anew as a whole is known by that alone.
    """
    first, last = mark(session, FIRST), mark(session, LAST)
    yield from flaws_of(records(session), first, last)
    if expected is not None and expected != first:
        yield from _unlike(session, expected)


def snapshot(session: Session) -> None:
    """Have the session read what was committed by now, and nothing later. To be called before it reads; SQLite does it
    by itself.
    """
    if on_postgresql(session):
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})


def prunable(session: Session, before: datetime) -> Link:
    """Return the last row of the prefix that may be pruned: all rows before the first that is not older than `before`.
    That of what was pruned already if there are no more.
    """
    kept = select(func.min(TrailEntry.number)).where(TrailEntry.time >= before)
    number = session.scalar(kept)
    end = mark(session, LAST).number if number is None else number - 1
    found = session.execute(select(TrailEntry.number, TrailEntry.hash).where(TrailEntry.number == end)).one_or_none()
    return mark(session, FIRST) if found is None else Link(found.number, found.hash)


def flaws_before(session: Session, end: Link) -> Iterator[Flaw]:
    """Yield what is wrong with the chain up to a row: what has flaws is not pruned, as they could not be found then."""
    query = select(*_trail).where(TrailEntry.number <= end.number).order_by(TrailEntry.number)
    with session.execute(query.execution_options(yield_per=READ_AT_ONCE)) as rows:
        yield from flaws_of(map(record_of, rows), mark(session, FIRST), end)


def begin_pruning(session: Session, end: Link) -> int:
    """Write the row that tells of pruning up to `end`, and prune the first rows; see `prune`."""
    note(session, PRUNED, TrailOutcome.DONE, subject=f"{end.number}:{end.hash}")
    return prune(session, end)


def prune(session: Session, end: Link, limit: int = LINKED_AT_ONCE) -> int:
    """Remove up to `limit` of the oldest rows, none after `end`, and keep the hash of the last one that goes, which the
    chain begins with then; return how many went.
    """
    first = mark(session, FIRST, lock=True)
    to = min(end.number, first.number + limit)
    if to <= first.number:
        return 0
    closing = session.scalars(select(TrailEntry.hash).where(TrailEntry.number == to)).one()
    gone = affected(session, delete(TrailEntry).where(TrailEntry.number <= to))
    _set(session, FIRST, Link(to, closing or ""))
    return gone


def _unlike(session: Session, expected: Link) -> Iterator[Flaw]:
    query = select(*_trail).where(TrailEntry.number == expected.number)
    row = session.execute(query).one_or_none()
    if row is None or row.hash != expected.hash:
        yield Flaw(FlawKind.CHANGED, expected.number, expected.number, None if row is None else record_of(row))


def _set(session: Session, name: str, to: Link) -> None:
    session.execute(update(TrailMark).where(TrailMark.name == name).values(number=to.number, hash=to.hash))
