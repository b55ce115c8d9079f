"""Pages of listings. Their cursors are opaque to clients, and checked like everything that comes from outside."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import Select, and_, or_
from sqlalchemy.orm import Session

from datamanager.domain.fields import SIZE_MAX
from datamanager.errors import InvalidRequest

NEWEST = "-date_created"
"""How a cursor names the order by the time when rows were made, the newest first."""

Row = TypeVar("Row")
SortValue = str | int | datetime


def page_of(
    session: Session, query: Select[Row], column: Any, sort: str, limit: int, cursor: str | None
) -> tuple[list[Row], str | None]:
    """Return one page of `query`, by `column` and identifier, and the cursor of the next one (None at the end).

    `sort` is how the cursor names the order, descending with `-` in front. Raises: InvalidRequest for a bad cursor.
    """
    key, descending = query.column_descriptions[0]["entity"].id, sort.startswith("-")
    if cursor is not None:
        value, last = decode_cursor(cursor, sort)
        after = or_(column > value, and_(column == value, key > last))
        query = query.where(or_(column < value, and_(column == value, key < last)) if descending else after)
    order = (column.desc(), key.desc()) if descending else (column, key)
    rows = session.execute(query.add_columns(column).order_by(*order).limit(limit + 1)).all()
    found = [row[0] for row in rows[:limit]]
    return found, encode_cursor(rows[limit - 1][1], found[-1].id, sort) if len(rows) > limit else None


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
