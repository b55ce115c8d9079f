"""Pages of listings: up to so many rows, of so many bytes. Their cursors are opaque to clients, and checked like
everything that comes from outside.
"""

from __future__ import annotations

import base64
import json
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import ColumnElement, Integer, Select, Uuid, and_, literal, tuple_
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

from datamanager.domain.fields import SIZE_MAX
from datamanager.errors import InvalidRequest
from models.tables.base import UtcDateTime

NEWEST = "-date_created"
"""How a cursor names the order by the time when rows were made, the newest first."""
PAGE_BYTES = 8 * 2**20
"""Bytes of a page, however many rows were asked for."""
FETCHED = 50
"""Rows in memory at once: a page that is too large must not be read whole to find that out."""

Row = TypeVar("Row")
SortValue = str | int | datetime


@dataclass(frozen=True, slots=True)
class Rendering:
    """How the rows of a page are shown while they are read, and how many bytes each has then.

    A page ends before it has more than `most` bytes, but has one row at least.
    """

    show: Callable[[Any], Any] = lambda row: row
    weigh: Callable[[Any], int] = lambda _: 0
    most: int = PAGE_BYTES


ROWS = Rendering()
"""The rows themselves, whatever they weigh; for callers that ask for few."""


@dataclass(frozen=True, slots=True)
class Order:
    """The order of a listing: by `columns`, of which the last is the identifier; all ascending, or all descending.

    `name` is how cursors name it, descending with `-` in front.
    """

    name: str
    columns: tuple[Any, ...]

    @property
    def descending(self) -> bool:
        """Whether the order is from the largest to the smallest."""
        return self.name.startswith("-")

    @property
    def clauses(self) -> list[ColumnElement[Any]]:
        """What ORDER BY names."""
        return [column.desc() if self.descending else column.asc() for column in self.columns]

    def beyond(self, keys: Sequence[Any]) -> ColumnElement[bool]:
        """Return the condition that a row comes later than the one with these keys; an index finds the first such."""
        return self._compared(keys, operator.lt if self.descending else operator.gt)

    def up_to(self, keys: Sequence[Any]) -> ColumnElement[bool]:
        """Return the condition that a row is the one with these keys, or comes before it."""
        return self._compared(keys, operator.ge if self.descending else operator.le)

    def _compared(self, keys: Sequence[Any], compare: Callable[[Any, Any], Any]) -> ColumnElement[bool]:
        values = [literal(key, column.type) for key, column in zip(keys, self.columns, strict=True)]
        condition: ColumnElement[bool] = compare(tuple_(*self.columns), tuple_(*values))
        first = self.columns[0]
        if isinstance(first, FunctionElement):  # SQLite uses no index of an expression for a row of values
            condition = and_(_or_equal(compare)(first, values[0]), condition)
        return condition

    def cursor(self, keys: Sequence[Any]) -> str:
        """Return the cursor of the page that ends with the row of these keys."""
        value, *between, last = (key.isoformat() if isinstance(key, datetime) else key for key in keys)
        parts = [self.name, value, last if isinstance(last, int) else str(last), *between]
        return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")

    def keys(self, cursor: str) -> tuple[SortValue | UUID, ...]:
        """Return the keys of the row that a page ended with. Raises: InvalidRequest."""
        try:
            name, value, last, *between = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
            if name != self.name:
                raise ValueError("it belongs to another order")
            pairs = zip((value, *between, last), self.columns, strict=True)
            return tuple(_value(plain, column) for plain, column in pairs)
        except (ValueError, TypeError, OverflowError, RecursionError) as exc:
            wanted = "the value of the page before, with the same sort"
            raise InvalidRequest("cursor: not one that this listing returned", {"cursor": wanted}) from exc


def page_of(
    session: Session,
    query: Select[Row],
    column: Any,
    sort: str,
    limit: int,
    cursor: str | None,
    rendering: Rendering = ROWS,
) -> tuple[list[Any], str | None]:
    """Return one page of `query`, by `column` and identifier, and the cursor of the next one (None at the end).

    `sort` is how the cursor names the order, descending with `-` in front. Raises: InvalidRequest for a bad cursor.
    """
    order = Order(sort, (column, query.column_descriptions[0]["entity"].id))
    return ordered_page(session, query, order, limit, cursor, rendering)


def ordered_page(
    session: Session, query: Select[Row], order: Order, limit: int, cursor: str | None, rendering: Rendering = ROWS
) -> tuple[list[Any], str | None]:
    """Return one page of `query` in an order, and the cursor of the next one (None at the end).

    Raises: InvalidRequest for a bad cursor.
    """
    if cursor is not None:
        query = query.where(order.beyond(order.keys(cursor)))
    query = query.add_columns(*order.columns).order_by(*order.clauses).limit(limit + 1)
    with session.execute(query.execution_options(yield_per=FETCHED)) as rows:
        shown, end = filled(rows, limit, rendering)
    return shown, None if end is None else order.cursor(end[1:])


def numbered_page(
    session: Session, query: Select[Row], limit: int, rendering: Rendering = ROWS
) -> tuple[list[Any], int | None]:
    """Return one page of `query`, whose rows have a `number` and come in its order, and the number that the next page
    begins after (None at the end).
    """
    with session.execute(query.limit(limit + 1).execution_options(yield_per=FETCHED)) as rows:
        shown, end = filled(rows, limit, rendering)
    return shown, None if end is None else end[0].number


def filled(rows: Iterable[Any], limit: int, rendering: Rendering) -> tuple[list[Any], Any]:
    """Show the rows of a page, each a tuple that begins with its entity; return them, and its last row if there are
    more.
    """
    shown: list[Any] = []
    weight, end = 0, None
    for row in rows:
        if len(shown) == limit:
            return shown, end
        one = rendering.show(row[0])
        weight += rendering.weigh(one)
        if shown and weight > rendering.most:
            return shown, end
        shown.append(one)
        end = row
    return shown, None


def _or_equal(compare: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return {operator.lt: operator.le, operator.gt: operator.ge}.get(compare, compare)


def _value(plain: object, column: ColumnElement[Any]) -> SortValue | UUID:
    if isinstance(column.type, Integer):
        if type(plain) is not int or not -1 <= plain <= SIZE_MAX:
            raise ValueError("not a size")
        return plain
    if not isinstance(plain, str) or "\0" in plain:
        raise ValueError("not a text")
    plain.encode("utf-8")  # a lone surrogate raises UnicodeEncodeError, which is a ValueError
    if isinstance(column.type, Uuid):
        return UUID(plain)
    if not isinstance(column.type, UtcDateTime):
        return plain
    time = datetime.fromisoformat(plain)
    if time.tzinfo is None:
        raise ValueError("a time without a zone")
    return time.astimezone(UTC)
