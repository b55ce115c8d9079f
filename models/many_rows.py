"""Many rows in one parameter: statements that cost one call of the driver, however many rows they write.

The rows go as one JSON text, which the database reads as a table (`json_each`, `jsonb_array_elements`). SQLite works on
all of them without the interpreter's lock, so that other threads go on meanwhile.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import JSON, ColumnElement, Select, String, cast, column, func, insert, literal_column, select, update
from sqlalchemy import bindparam as parameter
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.types import TypeEngine

from models.database import on_postgresql, table_of


def insert_many(session: Session, model: type[DeclarativeBase], rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows, which have the same columns, in their order."""
    if rows:
        names, table = list(rows[0]), table_of(model)
        given = _query(session, [table.c[name] for name in names], ([row[name] for name in names] for row in rows))
        session.execute(insert(table).from_select(names, given))


def update_many(
    session: Session, model: type[DeclarativeBase], key: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write columns of rows, which are found by the columns `key`; all of `rows` have the same columns."""
    if rows:
        names, table = list(rows[0]), table_of(model)
        query = _query(session, [table.c[name] for name in names], ([row[name] for name in names] for row in rows))
        # with all of the key in it, and kept apart: SQLite would look through it for each row of the table instead
        given = query.cte("given").prefix_with("MATERIALIZED")
        mine = (table.c[name] == given.c[name] for name in key)
        session.execute(update(table).where(*mine).values({name: given.c[name] for name in names if name not in key}))


def among(session: Session, where: Any, values: Collection[Any]) -> ColumnElement[bool]:
    """Return the condition that a column has one of the values."""
    condition: ColumnElement[bool] = where.in_(_query(session, [where], ([value] for value in values)))
    return condition


def _query(session: Session, columns: Sequence[Any], rows: Iterable[Sequence[Any]]) -> Select[*tuple[Any, ...]]:
    writers = [_writer(session, one.type) for one in columns]
    text = json.dumps(
        [[value if write is None else write(value) for value, write in zip(row, writers, strict=True)] for row in rows]
    )
    if on_postgresql(session):
        each = func.jsonb_array_elements(cast(parameter(None, text, String), JSONB)).table_valued("value")
        cells = [cast(each.c.value.op("->>")(literal_column(str(at))), one.type) for at, one in enumerate(columns)]
    else:
        each = func.json_each(parameter(None, text, String)).table_valued(column("value", String))
        cells = [
            func.json_extract(each.c.value, literal_column(f"'$[{at}]'"), type_=one.type)
            for at, one in enumerate(columns)
        ]
    return select(*(cell.label(one.name) for cell, one in zip(cells, columns, strict=True))).select_from(each)


def _writer(session: Session, kind: TypeEngine[Any]) -> Callable[[Any], Any] | None:
    """Return what turns a value of this type into what JSON can carry, and the database then reads as the type; None
    for what JSON has itself."""
    if isinstance(kind, JSON):
        none_as_null = kind.none_as_null
        return lambda value: None if value is None and none_as_null else json.dumps(value)
    if on_postgresql(session):
        return None if kind.python_type in (str, int, bool) else lambda value: None if value is None else str(value)
    dialect = session.get_bind().dialect
    return kind.dialect_impl(dialect).bind_processor(dialect)
