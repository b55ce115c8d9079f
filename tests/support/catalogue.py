"""A catalogue with its tables, as tests of single parts want it (migrations have tests of their own)."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event

from datamanager.domain.location import Place
from datamanager.domain.requests import NewObject
from datamanager.machines import Machines, parse_machines
from models.core.outbox import EVENTS_EXCHANGE, cloud_event
from models.database import Database, now
from models.objects.catalogue import Facts, register_object
from models.tables import Base, OutboxMessage
from tests.support.postgres import Databases

MACHINES = """
[machines.here]
transport = "local"
base_dir = "/data"
[machines.there]
transport = "local"
base_dir = "/more"
"""


_ENGINES: dict[str, Database] = {}


def kept(url: str) -> Database:
    """Return the catalogue at `url`, the same object each time; what it commits need not survive a power cut.

    SQLAlchemy keeps what it compiled with the engine: a new engine a test costs as much as the rest of many tests.
    """
    if url not in _ENGINES:
        database = _ENGINES[url] = Database(url)
        if not database.is_postgresql:
            event.listen(database.engine, "connect", _commit_lazily)
    return _ENGINES[url]


def _commit_lazily(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF").close()


@contextmanager
def empty_catalogue(request: pytest.FixtureRequest, dialect: str, folder: Path) -> Iterator[str]:
    """Copy the template of the kind of database that `dialect` names; yield its SQLAlchemy URL, one per `folder`."""
    if dialect == "sqlite":
        file = folder / "catalogue.db"
        for left in (file, file.with_name(f"{file.name}-wal"), file.with_name(f"{file.name}-shm")):
            left.unlink(missing_ok=True)
        shutil.copyfile(request.getfixturevalue("sqlite_template"), file)
        yield f"sqlite+pysqlite:///{file}"
        return
    databases: Databases = request.getfixturevalue("postgres")
    name = f"dm_test_{hashlib.sha256(str(folder).encode()).hexdigest()[:32]}"
    if name in databases.made:
        databases.clear(name, [table.name for table in reversed(Base.metadata.sorted_tables)])
    yield databases.url(name, template=request.getfixturevalue("postgres_template"))


@contextmanager
def catalogue(url: str) -> Iterator[Database]:
    """Open the catalogue at `url`, made when it is empty."""
    database = Database(url)
    Base.metadata.create_all(database.engine)
    try:
        yield database
    finally:
        database.close()


def machines() -> Machines:
    """Return two local machines, `here` and `there`."""
    return parse_machines(MACHINES, "test")


def an_object(database: Database, name: str | None = None, group: str = "") -> UUID:
    """Register an object on `here`; no file is looked at."""
    request = NewObject(filename=name or f"{uuid4()}.nc", path="in", machine="here", group=group)
    with database.write() as session:
        return register_object(session, request, Place("here", f"in/{request.filename}"), Facts(7), by=None)


def say(database: Database, subject: UUID, number: int) -> None:
    """Put an event about `subject` into the outbox, with `number` as its sequence."""
    with database.write() as session:
        time = now(session)
        body = cloud_event("dm.transfer.running", subject, time, {"filler": "x" * 200}, sequence=number)
        session.add(
            OutboxMessage(
                exchange=EVENTS_EXCHANGE, routing_key="dm.transfer.running", subject=subject, body=body, created=time
            )
        )


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Note the texts of the statements meanwhile."""
    texts: list[str] = []

    def note(_connection: Any, _cursor: Any, text: str, *_rest: Any) -> None:
        texts.append(text)

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield texts
    finally:
        event.remove(database.engine, "before_cursor_execute", note)
