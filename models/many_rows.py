"""Many rows in one parameter: statements that cost one call of the driver, however many rows they write.

The rows go as one JSON text, which the database reads as a table (`json_each`, `jsonb_array_elements`). SQLite works on
all of them without the interpreter's lock, so that a mover's other threads go on meanwhile; `models.bulk_rows` is for
who has no other threads at work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from types import MappingProxyType
from typing import Any

from sqlalchemy import (
    CTE,
    JSON,
    ColumnElement,
    Select,
    String,
    bindparam,
    cast,
    column,
    func,
    insert,
    literal,
    literal_column,
    select,
    type_coerce,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.types import TypeEngine

from models.database import insert_rows, on_postgresql, table_of

Row = Sequence[Any]


def insert_many(
    session: Session, model: type[DeclarativeBase], names: Sequence[str], rows: Sequence[Row], **same: Any
) -> None:
    """Insert rows in their order, each with a value for each of the columns `names`; `same` is what all have."""
    if len(rows) == 1:  # to make the statement of many costs more than all the rest
        insert_rows(session, model, [dict(zip(names, rows[0], strict=True)) | same])
    elif rows:
        table = table_of(model)
        given = _query(session, [table.c[name] for name in names], rows)
        given = given.add_columns(*(literal(value, table.c[name].type).label(name) for name, value in same.items()))
        session.execute(insert(table).from_select([*names, *same], given))


def update_many(
    session: Session, model: type[DeclarativeBase], key: Sequence[str], names: Sequence[str], rows: Sequence[Row]
) -> None:
    """Write columns of rows: `key` are the columns by which each is found, `names` those that are written."""
    if rows:
        table = table_of(model)
        given = given_rows(session, [table.c[name] for name in (*key, *names)], rows)
        mine = (table.c[name] == given.c[name] for name in key)
        session.execute(update(table).where(*mine).values({name: given.c[name] for name in names}))


def given_rows(
    session: Session, columns: Sequence[Any], rows: Sequence[Row], same: Mapping[Any, Any] = MappingProxyType({})
) -> CTE:
    """Return rows as a table with these columns' names and types, to be joined with the one that they belong to.
    `same`: columns that have one value in all rows.

    All of the key is to be in it, and it is kept apart: SQLite would look through it for each row of the table instead.
    """
    same_in_all = (literal(value, one.type).label(one.name) for one, value in same.items())
    return _query(session, columns, rows).add_columns(*same_in_all).cte("given").prefix_with("MATERIALIZED")


def with_member(session: Session, document: Any, name: str, member: ColumnElement[Any]) -> ColumnElement[Any]:
    """Return a JSON column's documents with a member (JSON too) in place of what they have by that name."""
    if on_postgresql(session):
        added = func.jsonb_build_object(name, cast(member, JSONB))
        return cast(cast(document, JSONB).op("||")(added), JSON)
    return func.json_set(document, f"$.{name}", func.json(member), type_=document.type)


def json_of(session: Session, document: Mapping[str, Any]) -> ColumnElement[Any]:
    """Return the JSON document that the database makes of texts, columns, and documents of these."""
    make = func.json_build_object if on_postgresql(session) else func.json_object
    members = list[Any]()
    for name, value in document.items():
        members += [literal(name, String), json_of(session, value) if isinstance(value, Mapping) else value]
    return make(*members)


def uuid_text(session: Session, identifier: ColumnElement[Any]) -> ColumnElement[str]:
    """Return an identifier as it is written, with hyphens, which SQLite does not store."""
    if on_postgresql(session):
        return cast(identifier, String)
    digits = type_coerce(identifier, String)
    parts = [func.substr(digits, start, count) for start, count in ((1, 8), (9, 4), (13, 4), (17, 4), (21, 12))]
    return reduce(lambda before, part: before.concat("-").concat(part), parts)


def _query(session: Session, columns: Sequence[Any], rows: Sequence[Row]) -> Select[*tuple[Any, ...]]:
    by_column = [list(values) for values in zip(*rows, strict=True)]
    for at, one in enumerate(columns):
        if by_column and (write := _writer(session, one.type)) is not None:
            by_column[at] = [None if value is None else write(value) for value in by_column[at]]
    text = json.dumps(list(zip(*by_column, strict=True)))
    cells: list[ColumnElement[Any]]
    if on_postgresql(session):
        each = func.jsonb_array_elements(cast(bindparam(None, text, String), JSONB)).table_valued("value")
        cells = [cast(each.c.value.op("->>")(literal_column(str(at))), one.type) for at, one in enumerate(columns)]
    else:
        each = func.json_each(bindparam(None, text, String)).table_valued(column("value", String))
        cells = [
            func.json_extract(each.c.value, literal_column(f"'$[{at}]'"), type_=one.type)
            for at, one in enumerate(columns)
        ]
    return select(*(cell.label(one.name) for cell, one in zip(cells, columns, strict=True))).select_from(each)


def _writer(session: Session, kind: TypeEngine[Any]) -> Callable[[Any], Any] | None:
    """Return what turns a value of this type into what JSON can carry, and the database then reads as the type; None
    for what JSON has itself."""
    if isinstance(kind, JSON):
        return json.dumps
    if kind.python_type in (str, int, bool):
        return None
    if on_postgresql(session):
        return str
    dialect = session.get_bind().dialect
    return kind.dialect_impl(dialect).bind_processor(dialect)


def columns_of(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Row]:
    """Return the values of these columns, row by row."""
    return [[row[name] for name in names] for row in rows]
