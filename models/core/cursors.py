"""Pages of listings: up to so many rows, of so many bytes. Their cursors are opaque to clients, and checked like
everything that comes from outside.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Select, and_, or_
from sqlalchemy.orm import Session

from datamanager.domain.fields import SIZE_MAX
from datamanager.errors import InvalidRequest

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
    key, descending = query.column_descriptions[0]["entity"].id, sort.startswith("-")
    if cursor is not None:
        value, last = decode_cursor(cursor, sort)
        # by the first condition an index finds where the page begins
        after = and_(column >= value, or_(column > value, key > last))
        query = query.where(and_(column <= value, or_(column < value, key < last)) if descending else after)
    order = (column.desc(), key.desc()) if descending else (column, key)
    query = query.add_columns(column, key).order_by(*order).limit(limit + 1)
    with session.execute(query.execution_options(yield_per=FETCHED)) as rows:
        shown, end = _filled(rows, limit, rendering)
    return shown, None if end is None else encode_cursor(end[1], end[2], sort)


def numbered_page(
    session: Session, query: Select[Row], limit: int, rendering: Rendering = ROWS
) -> tuple[list[Any], int | None]:
    """Return one page of `query`, whose rows have a `number` and come in its order, and the number that the next page
    begins after (None at the end).
    """
    with session.execute(query.limit(limit + 1).execution_options(yield_per=FETCHED)) as rows:
        shown, end = _filled(rows, limit, rendering)
    return shown, None if end is None else end[0].number


def _filled(rows: Iterable[Any], limit: int, rendering: Rendering) -> tuple[list[Any], Any]:
    """Show the rows of a page; return them, and its last row if there are more."""
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


def encode_cursor(value: SortValue, last: UUID, sort: str) -> str:
    """Return the cursor of the page that ends with the object `last`, whose sort key is `value`."""
    plain = value.isoformat() if isinstance(value, datetime) else value
    return base64.urlsafe_b64encode(json.dumps([sort, plain, str(last)]).encode()).decode().rstrip("=")


def decode_cursor(cursor: str, sort: str) -> tuple[SortValue, UUID]:
    """Return the sort key and the object that a page ended with. Raises: InvalidRequest."""
    try:
        made_for, plain, last = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
        if made_for != sort or not isinstance(last, str):
            raise ValueError("it belongs to another sort")
        return _value(plain, sort.removeprefix("-")), UUID(last)
    except (ValueError, TypeError, OverflowError, RecursionError) as exc:
        wanted = "the value of the page before, with the same sort"
        raise InvalidRequest("cursor: not one that this listing returned", {"cursor": wanted}) from exc


def _value(plain: object, key: str) -> SortValue:
    if key == "size":
        if type(plain) is not int or not -1 <= plain <= SIZE_MAX:
            raise ValueError("not a size")
        return plain
    if not isinstance(plain, str) or "\0" in plain:
        raise ValueError("not a text")
    plain.encode("utf-8")  # a lone surrogate raises UnicodeEncodeError, which is a ValueError
    if not key.startswith("date_"):
        return plain
    time = datetime.fromisoformat(plain)
    if time.tzinfo is None:
        raise ValueError("a time without a zone")
    return time.astimezone(UTC)
