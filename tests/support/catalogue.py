"""A catalogue with its tables, as tests of single parts want it (migrations have tests of their own)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID, uuid4

import pytest

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


@contextmanager
def empty_catalogue(request: pytest.FixtureRequest, dialect: str, folder: Path) -> Iterator[str]:
    """Copy the template of the kind of database that `dialect` names; yield the SQLAlchemy URL."""
    if dialect == "sqlite":
        file = folder / "catalogue.db"
        shutil.copyfile(request.getfixturevalue("sqlite_template"), file)
        yield f"sqlite+pysqlite:///{file}"
        return
    databases: Databases = request.getfixturevalue("postgres")
    url = databases.url(template=request.getfixturevalue("postgres_template"))
    yield url
    databases.drop(url)


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


def an_object(database: Database, name: str | None = None) -> UUID:
    """Register an object on `here`; no file is looked at."""
    request = NewObject(filename=name or f"{uuid4()}.nc", path="in", machine="here")
    with database.write() as session:
        return register_object(session, request, Place("here", f"in/{request.filename}"), Facts(7))


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
