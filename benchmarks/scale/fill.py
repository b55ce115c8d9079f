"""Fill an empty catalogue as an older Data Manager would have left it, then migrate it.

The rows are loaded into the schema before the migration that is measured, without indexes of objects, which are made
again afterwards: so the migration finds what it finds in a catalogue that has grown for years.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, select, text

from benchmarks.scale.rows import ObjectRow, object_rows
from models import migrate
from models.database import Database
from models.tables import DataObject

MEASURED = "0014_list_indexes"
"""The migration that makes the indexes of lists."""
CHUNK = 5000
COLUMNS = (
    *("id", "machine", "path", "filename", "place", "description", "size", "metadata", "date_registered"),
    *("date_modified", "status", "originator", "group", "checksum", "verified"),
)
Tell = Callable[[str], None]


def fill(database: Database, count: int, tell: Tell) -> float:
    """Fill an empty database with `count` objects; return the seconds that the migration took with them."""
    before = ScriptDirectory(migrate.FOLDER).get_revision(MEASURED).down_revision
    migrate.upgrade(database, str(before))
    with database.connection() as connection:
        made = _drop_indexes(connection, database.is_postgresql)
        _load(connection, database.is_postgresql, object_rows(count), tell)
    for statement in made:
        tell(f"before: {statement}")
        with database.connection() as connection:
            connection.exec_driver_sql(statement)
    tell("the migration")
    began = time.monotonic()
    migrate.upgrade(database)
    took = time.monotonic() - began
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("VACUUM ANALYZE objects" if database.is_postgresql else "PRAGMA wal_checkpoint")
    return took


def is_filled(database: Database) -> bool:
    """Say whether the database has objects, and the newest schema."""
    if migrate.current(database) != migrate.newest():
        return False
    with database.read() as session:
        return session.scalar(select(DataObject.id).limit(1)) is not None


def _drop_indexes(connection: Connection, postgresql: bool) -> list[str]:
    """Drop the indexes of objects but its key; return the statements that make them again."""
    query = (
        "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'objects' AND indexname <> 'pk_objects'"
        if postgresql
        else "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = 'objects' AND sql IS NOT NULL"
    )
    found = connection.execute(text(query)).all()
    for name, _ in found:
        connection.exec_driver_sql(f"DROP INDEX {name}")
    # a few values have most rows: to hash these takes hours, and the migration drops the index
    return [made.replace("USING hash", "") if name == "ix_objects_group" else made for name, made in found]


def _load(connection: Connection, postgresql: bool, rows: Iterator[ObjectRow], tell: Tell) -> None:
    names = ", ".join(f'"{name}"' for name in COLUMNS)
    done = 0
    while chunk := [_values(row) for row in itertools.islice(rows, CHUNK)]:
        if postgresql:
            cursor: Any = connection.connection.cursor()
            with cursor.copy(f"COPY objects ({names}) FROM STDIN") as copy:
                copy.write("".join("\t".join(map(_field, values)) + "\n" for values in chunk))
        else:
            marks = ", ".join("?" * len(COLUMNS))
            connection.exec_driver_sql(f"INSERT INTO objects ({names}) VALUES ({marks})", chunk)
        done += len(chunk)
        if done % 100_000 == 0:
            tell(f"{done:,} objects")


def _values(row: ObjectRow) -> tuple[Any, ...]:
    # as both databases read them: PostgreSQL's session is in UTC
    registered, modified = (f"{time:%Y-%m-%d %H:%M:%S.%f}" for time in (row.registered, row.modified))
    return (
        *(row.id, row.machine, row.path, row.filename, row.place, "", row.size, row.metadata, registered),
        *(modified, row.status, row.originator, row.group, row.checksum, "stat"),
    )


def _field(value: object) -> str:
    """Write a value as COPY reads it; no text here has what must be escaped."""
    return "\\N" if value is None else str(value)
