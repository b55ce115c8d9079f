"""Pages of a listing with filters, read in bounded steps whatever the filters select.

A page is looked for in the order of the listing, by an index that has this order: what many rows have is found after a
few. What few rows have is found by an index of that filter instead, and at most CANDIDATES rows are sorted. If neither
fills the page, it ends after so many rows that were looked at: it is short then, perhaps empty, and its cursor leads
on. So each page costs about the same, in a catalogue of any size; the planner of the database has nothing to choose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import (
    ClauseElement,
    ColumnElement,
    Executable,
    Select,
    and_,
    func,
    literal_column,
    or_,
    select,
    union_all,
)
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import Session
from sqlalchemy.sql.base import ExecutableOption

from models.core.cursors import ROWS, Order, Rendering, filled
from models.database import on_postgresql

LOOKED_FIRST = 1_000
"""Rows that are looked at in the listing's order before the indexes of the filters are asked."""
LOOKED_PER_ROW = 100
"""Rows that are looked at for each that is wanted."""
CANDIDATES = 5_000
"""Rows that an index of a filter may find for the page to be made of them."""
ESTIMATE_MAX = 10 * CANDIDATES
"""Rows that PostgreSQL may expect for an index to be asked that finds all of them at once."""
FETCHED = 100
"""Rows that are in memory at once."""


@dataclass(frozen=True, slots=True)
class Narrow:
    """A filter that an index serves: `found` selects the identifiers of rows that may fit, one by one as it is read;
    `condition` is that a row is one of them. `kept`: they are read once, as it is dear to find them. `at_once`: the
    index (GIN) finds all before the first is read.
    """

    condition: ColumnElement[bool]
    found: Select[Any]
    kept: bool = False
    at_once: bool = False


@dataclass(frozen=True, slots=True)
class Search:
    """What is listed: rows of `entity` in an order, of those that `within`, which the order's index serves too, the
    ones that `fits` all hold for; `narrows` are what other indexes can find of these. `options` are the ORM's, of how
    rows are loaded.
    """

    entity: Any
    order: Order
    within: Sequence[ColumnElement[bool]]
    fits: Sequence[ColumnElement[bool]]
    narrows: Sequence[Narrow] = ()
    options: Sequence[ExecutableOption] = ()


def bounded_page(
    session: Session, search: Search, limit: int, cursor: str | None, rendering: Rendering = ROWS
) -> tuple[list[Any], str | None]:
    """Return one page of a search, and the cursor of the next one (None at the end).

    Raises: InvalidRequest for a bad cursor.
    """
    by_indexes(session)
    start = None if cursor is None else search.order.keys(cursor)
    found, edge = _next(session, search, start, LOOKED_FIRST, limit)
    if edge is not None:
        conditions = (_narrowed(session, search, one) for one in search.narrows)
        narrowed = next((condition for condition in conditions if condition is not None), None)
        if narrowed is not None:
            found, edge = _among(session, search, narrowed, start, limit), None
        else:
            more, edge = _next(session, search, edge, LOOKED_PER_ROW * limit, limit - len(found))
            found += more
    return page_of_keys(session, search, found, edge, limit, rendering)


def page_of_keys(
    session: Session, search: Search, found: Sequence[Any], edge: Sequence[Any] | None, limit: int, rendering: Rendering
) -> tuple[list[Any], str | None]:
    """Return the page of the rows that have these keys, of which there may be one too many, and the cursor of the next
    one. `edge`: the keys that it begins after, if there is no row too many.
    """
    if len(found) > limit:
        found, edge = found[:limit], found[limit - 1]
    shown, end = filled(_rows(session, search, found), limit, rendering)
    last = edge if end is None else end[1:]
    return shown, None if last is None else search.order.cursor(last)


def merged_page(
    session: Session, searches: Sequence[Search], limit: int, cursor: str | None, rendering: Rendering = ROWS
) -> tuple[list[Any], str | None]:
    """Return one page of what several searches find together, and the cursor of the next one. They differ in `within`
    alone, no row is found by two, and nothing else is to fit: each is read by its index for one page at most, and they
    are merged. Raises: InvalidRequest for a bad cursor.
    """
    by_indexes(session)
    order = searches[0].order
    beyond = [] if cursor is None else [order.beyond(order.keys(cursor))]
    parts = []
    for one in searches:
        query = select(*_named(order)).where(*one.within, *beyond)
        if on_postgresql(session):  # SQLite merges as far as it is read; PostgreSQL is not to choose
            query = select(query.order_by(*order.clauses).limit(limit + 1).subquery())
        parts.append(query)
    some = union_all(*parts).subquery()
    keys = [some.c[column.name] for column in _named(order)]
    clauses = [key.desc() if order.descending else key for key in keys]
    found = list(session.execute(select(*keys).order_by(*clauses).limit(limit + 1)))
    whole = replace(searches[0], within=[or_(*(and_(*one.within) for one in searches))])
    return page_of_keys(session, whole, found, None, limit, rendering)


def by_indexes(session: Session) -> None:
    """Keep PostgreSQL from scanning tables in this transaction, and from compiling queries: it believes statistics,
    which are wrong after many insertions.
    """
    if on_postgresql(session):
        session.execute(select(func.set_config("enable_seqscan", "off", True), func.set_config("jit", "off", True)))


def _next(
    session: Session, search: Search, start: Sequence[Any] | None, looked: int, limit: int
) -> tuple[list[Any], Sequence[Any] | None]:
    """Look at so many rows beyond `start`; return the keys of those that fit, up to `limit` and one, and where the look
    ended if there is more to look at.
    """
    order = search.order
    query = select(*order.columns).where(*search.within).order_by(*order.clauses)
    if start is not None:
        query = query.where(order.beyond(start))
    edge = session.execute(query.offset(looked - 1).limit(1)).first()
    if edge is None:
        wanted = query.where(*_unindexed(search.fits))
    elif on_postgresql(session):
        # not up to the edge: PostgreSQL reads on there to the end of all rows with the same first key
        wanted = _of(order, query.with_only_columns(*_named(order), and_(*search.fits).label("fits")).limit(looked))
    else:
        # not of a query: SQLite would sort it again
        wanted = query.where(order.up_to(edge), *_unindexed(search.fits))
    found = list(session.execute(wanted.limit(limit + 1)))
    return found, None if len(found) > limit else edge


def _named(order: Order) -> list[ColumnElement[Any]]:
    return [column.label(f"key{n}") for n, column in enumerate(order.columns)]


def _of(order: Order, rows: Select[Any]) -> Select[Any]:
    """Select the keys of those of the rows that fit, in their order."""
    some = rows.subquery()
    keys = [some.c[column.name] for column in _named(order)]
    return select(*keys).where(some.c.fits).order_by(*(key.desc() if order.descending else key for key in keys))


def _narrowed(session: Session, search: Search, narrow: Narrow) -> ColumnElement[bool] | None:
    """Return the condition of a filter, None if too many rows may fit."""
    if narrow.at_once and _estimate(session, narrow.found) > ESTIMATE_MAX:
        return None
    some = narrow.found.limit(CANDIDATES + 1)
    if narrow.kept:
        ids = session.scalars(some).all()
        return search.order.columns[-1].in_(ids) if len(ids) <= CANDIDATES else None
    count = session.scalar(select(func.count()).select_from(some.subquery())) or 0
    return narrow.condition if count <= CANDIDATES else None


def _among(
    session: Session, search: Search, narrowed: ColumnElement[bool], start: Sequence[Any] | None, limit: int
) -> list[Any]:
    """Return the keys of the rows beyond `start` that fit, up to `limit` and one, of those that an index finds."""
    order = search.order
    fits = [*search.within, *search.fits]
    if start is not None:
        fits.append(order.beyond(start))
    # with a limit it is read as it is written, not by the index of the order; some rows may have come since the count
    rows = select(*_named(order), and_(*fits).label("fits")).where(narrowed).limit(2 * CANDIDATES)
    return list(session.execute(_of(order, rows).limit(limit + 1)))


def _rows(session: Session, search: Search, found: Sequence[Any]) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of these keys that still fit, each with its keys, in their order."""
    key = search.order.columns[-1]
    for start in range(0, len(found), FETCHED):
        chunk = found[start : start + FETCHED]
        query = select(search.entity).options(*search.options).where(key.in_([keys[-1] for keys in chunk]))
        query = query.where(*_unindexed([*search.within, *search.fits]))
        rows = {row.id: row for row in session.scalars(query)}
        yield from ((rows[keys[-1]], *keys) for keys in chunk if keys[-1] in rows)


def _unindexed(conditions: Sequence[ColumnElement[bool]]) -> list[ColumnElement[bool]]:
    """Return conditions that the planner finds no index for."""
    return [condition.is_(literal_column("TRUE")) for condition in conditions]


class _Explain(Executable, ClauseElement):
    """What PostgreSQL would do for a query."""

    inherit_cache = False

    def __init__(self, query: Select[Any]) -> None:
        self.query = query


@compiles(_Explain, "postgresql")
def _compile_explain(element: _Explain, compiler: Any, **options: Any) -> str:
    return f"EXPLAIN (FORMAT JSON) {compiler.process(element.query, **options)}"


def _estimate(session: Session, query: Select[Any]) -> float:
    """Return how many rows PostgreSQL expects of a query, by its statistics."""
    plan = session.execute(_Explain(query)).scalar_one()
    return float(plan[0]["Plan"]["Plan Rows"])
