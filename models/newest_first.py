"""Pages of rows, the newest first: the listing that audits and runs of retention share."""

from __future__ import annotations

from typing import Any, TypeVar

from sqlalchemy import Select, and_, or_
from sqlalchemy.orm import Session

from models.core.cursors import decode_cursor, encode_cursor
from models.tables import Audit, RetentionRun

ORDER = "-date_created"
"""How a cursor names the order."""

Row = TypeVar("Row", Audit, RetentionRun)


def page_of_newest(
    session: Session, query: Select[Row], table: type[Row], limit: int, cursor: str | None
) -> tuple[list[Row], str | None]:
    """Return one page of `query`, and the cursor of the next one (None at the end). Raises: InvalidRequest for a bad
    cursor.
    """
    created: Any = table.created
    key: Any = table.id
    if cursor is not None:
        value, last = decode_cursor(cursor, ORDER)
        query = query.where(or_(created < value, and_(created == value, key < last)))
    rows = list(session.scalars(query.order_by(created.desc(), key.desc()).limit(limit + 1)))
    if len(rows) <= limit:
        return rows, None
    rows.pop()
    return rows, encode_cursor(rows[-1].created, rows[-1].id, ORDER)
