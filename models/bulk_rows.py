"""Many rows at once: statements whose parameters are columns, each with a value for every row.

SQLAlchemy's own way converts row by row, which for 10,000 rows takes longer than the database does.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import ARRAY, JSON, ColumnElement, Table, any_, bindparam, column, func, literal, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.dml import Insert
from sqlalchemy.types import TypeEngine

from models.database import on_postgresql, table_of

Convert = Callable[[Sequence[Any]], Sequence[Any]]
_SQLITE = sqlite.dialect()


def insert_columns(
    session: Session, model: type[DeclarativeBase], columns: Mapping[str, Sequence[Any]], *, free_only: bool = False
) -> int:
    """Insert rows by one statement, given by their columns, of which each has a value for every row; return how many
    were inserted. `free_only`: those that no unique index has already, as in `insert_free`.

    On PostgreSQL each column is one parameter, an array, so the number of rows has no limit.
    """
    table, count = table_of(model), len(next(iter(columns.values())))
    values = {name: list(given) for name, given in columns.items()}
    for one in table.columns:
        if one.name not in columns and one.default is not None:
            values[one.name] = _defaults(one.default, count)
    connection = session.connection().execution_options(preserve_rowcount=True)
    if on_postgresql(session):
        return connection.execute(_insert_of_arrays(table, tuple(values), free_only), values).rowcount
    text, converters = _insert_of_values(table, tuple(values), free_only)
    converted = [convert(values[name]) for name, convert in converters]
    return connection.exec_driver_sql(text, list(zip(*converted, strict=True))).rowcount


def among(session: Session, where: Any, values: Collection[Any]) -> ColumnElement[bool]:
    """Return the condition that a column has one of the values: one parameter, however many these are."""
    if on_postgresql(session):
        mine: ColumnElement[bool] = where == any_(literal(list(values), ARRAY(where.type)))
        return mine
    listed = json.dumps(_converter(where.type)(list(values)))
    named: ColumnElement[bool] = where.in_(select(func.json_each(literal(listed)).table_valued("value").c.value))
    return named


def _defaults(default: Any, count: int) -> list[Any]:
    """Return what a column has in rows that have no value for it."""
    return [default.arg] * count if default.is_scalar else [default.arg(None) for _ in range(count)]


@lru_cache
def _insert_of_arrays(table: Table, names: tuple[str, ...], free_only: bool) -> Insert:
    """Return PostgreSQL's INSERT of rows that come as arrays, one a column."""
    kinds = {name: table.c[name].type for name in names}
    arrays = func.unnest(*(bindparam(name, type_=ARRAY(kind)) for name, kind in kinds.items()))
    rows = arrays.table_valued(*(column(name, kind) for name, kind in kinds.items()), name="given").render_derived()
    statement = postgresql.insert(table).from_select(names, select(rows), include_defaults=False)
    return statement.on_conflict_do_nothing() if free_only else statement


@lru_cache
def _insert_of_values(table: Table, names: tuple[str, ...], free_only: bool) -> tuple[str, list[tuple[str, Convert]]]:
    """Return SQLite's INSERT of a row, and its columns in their order, each with what converts its values."""
    statement = sqlite.insert(table)
    if free_only:
        statement = statement.on_conflict_do_nothing()
    compiled = statement.compile(dialect=_SQLITE, column_keys=list(names))
    return str(compiled), [(name, _converter(table.c[name].type)) for name in compiled.positiontup or ()]


def _converter(kind: TypeEngine[Any]) -> Convert:
    """Return what makes of a column's values what SQLite takes."""
    process = kind.dialect_impl(_SQLITE).bind_processor(_SQLITE)
    if process is None:
        return lambda values: values
    empty = process({}) if isinstance(kind, JSON) else None

    def convert(values: Sequence[Any]) -> Sequence[Any]:
        first = values[0] if values else None
        if values and values[-1] is first and values.count(first) == len(values):  # one value for all rows
            return [process(first)] * len(values)
        if empty is not None:
            return [empty if value == {} else process(value) for value in values]
        return [process(value) for value in values]

    return convert
