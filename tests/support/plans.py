"""The statements that a page is read by, and what a database's planner makes of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, event, text

from models.database import Database


@contextmanager
def statements_on(database: Database, name: str) -> Iterator[dict[str, Any]]:
    """Collect the statements that read a table or what finds its rows, each with its last parameters."""
    found: dict[str, Any] = {}

    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_details: Any) -> None:
        if statement.startswith(f"SELECT {name}.") or "FROM (SELECT" in statement:
            found[statement] = parameters

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


def objections(connection: Connection, statements: dict[str, Any]) -> list[str]:
    """Return the statements that would read a whole table, or sort more than an index of a filter has found."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SET LOCAL enable_seqscan = off"))  # as pages are read
    wrong = []
    for statement, parameters in statements.items():
        plan = _plan_of(connection, statement, parameters)
        bad = re.search(r"Seq Scan|SCAN (objects|transfers)(?! USING)", plan)
        counted = "AS key0" in statement and statement.count("ORDER BY") == 1
        if not counted:  # by an index of a filter, before they are sorted
            bad = bad or re.search(r"TEMP B-TREE|Sort Key", plan)
        if re.search(r"IS TRUE", statement, re.IGNORECASE):  # rows that are looked at are between two bounds
            bad = bad or re.search(r"SCAN (objects|transfers)", plan)
        if bad:
            wrong.append(f"{statement}\n{plan}")
    return wrong


def _plan_of(connection: Connection, statement: str, parameters: Any) -> str:
    how = "EXPLAIN" if connection.dialect.name == "postgresql" else "EXPLAIN QUERY PLAN"
    return "\n".join(str(row[-1]) for row in connection.exec_driver_sql(f"{how} {statement}", parameters))
