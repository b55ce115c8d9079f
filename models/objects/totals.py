"""How many objects there are, and how large, without counting them: the rollup that triggers keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select, type_coerce, union_all, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from datamanager.domain.states import ObjectStatus
from models.access.visibility import Columns, Visible
from models.database import affected, insert_rows, on_postgresql, take_turns
from models.tables import ObjectChange, ObjectTotal
from models.tables.base import Sum

FOLDED_AT_ONCE = 10_000
"""Noted changes that are added to the totals by one transaction."""
_LOCK = 0x646D746F7461  # "dmtota", of `take_turns`; no other number of ours
_PART = 2**32
_KEY = ("machine", "group", "status")
_SUMS = ("objects", "bytes", "hashed")


def totals_by(session: Session, visible: Visible, *columns: InstrumentedAttribute[Any], **equal: str) -> Sequence[Any]:
    """Return objects, bytes and hashed objects (`objects`, `bytes`, `hashed`) by `columns` of ObjectTotal (machine,
    group, status), of the keys that are `equal`, as far as they are seen; what this transaction changed is in it.
    """
    tables, names = (ObjectTotal, ObjectChange), (*_KEY, *_SUMS)
    noted = union_all(
        *(
            select(*(getattr(table, name) for name in names))
            .filter_by(**equal)
            .where(*visible.where(Columns(table.group, table.machine)))
            for table in tables
        )
    ).subquery()
    keys = [noted.c[column.key] for column in columns]
    sums = [_sum(session, noted.c[name]) for name in _SUMS]
    query = select(*keys, *sums).group_by(*keys).having(sums[0] != 0).order_by(*keys)
    return session.execute(query).all()


def active_by_machine(session: Session, visible: Visible) -> dict[str, tuple[int, int]]:
    """Return how many ACTIVE objects each machine has, and their bytes, of those that are seen. Of a directory or of a
    person there are no totals: a filter for these sees none.
    """
    rows = totals_by(session, visible, ObjectTotal.machine, status=ObjectStatus.ACTIVE.value)
    return {row.machine: (row.objects, row.bytes) for row in rows}


def fold(session: Session, limit: int = FOLDED_AT_ONCE) -> int:
    """Add up to `limit` noted changes to the totals; return how many. One at a time does it; readers see the same sums
    before and after. On SQLite nothing is noted.
    """
    if not on_postgresql(session) or session.scalar(select(ObjectChange.id).limit(1)) is None:
        return 0
    take_turns(session, _LOCK)
    some = select(ObjectChange.id).order_by(ObjectChange.id).limit(limit)
    key, sums = ([getattr(ObjectChange, name) for name in names] for names in (_KEY, _SUMS))
    gone = delete(ObjectChange).where(ObjectChange.id.in_(some)).returning(*key, *sums).cte("gone")
    added = [func.count().label("folded"), *(_sum(session, gone.c[name]) for name in _SUMS)]
    keys = [gone.c[name] for name in _KEY]
    folded = 0
    for row in session.execute(select(*keys, *added).group_by(*keys)).mappings().all():
        folded += row["folded"]
        mine = [getattr(ObjectTotal, name) == row[name] for name in _KEY]
        more = {name: getattr(ObjectTotal, name) + row[name] for name in _SUMS}
        if not affected(session, update(ObjectTotal).where(*mine).values(more)):
            insert_rows(session, ObjectTotal, [{name: row[name] for name in (*_KEY, *_SUMS)}])
    return folded


def _sum(session: Session, column: ColumnElement[int]) -> ColumnElement[int]:
    """Sum a column. On SQLite in parts: it refuses a sum beyond 64 bits."""
    summed: ColumnElement[int] = func.sum(column)
    if not on_postgresql(session):
        summed = func.sum(column.op("/")(_PART)) * _PART + func.sum(column.op("%")(_PART))
    return type_coerce(summed, Sum).label(column.key)
