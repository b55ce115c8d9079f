"""Waking over the database, and a database that is away, full, busy or of the wrong kind."""

from __future__ import annotations

import os
import queue
import sqlite3
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import OperationalError, ProgrammingError, StatementError

from datamanager.errors import CatalogueFull, CatalogueUnavailable, NoSpace, SettingsError
from models import migrate
from models.core.listen import RESUMED, Listener
from models.database import Database, now, wake
from models.tables import Base, DataObject, Lease, MachineSeen, OutboxMessage
from tests.support.bookkeeping import order, register, submit
from tests.support.postgres import Databases, Postgres

pytestmark = pytest.mark.dialect


def count(database: Database, model: type[Base]) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(model)) or 0


def see(database: Database) -> None:
    with database.write() as session:
        session.add(MachineSeen(name="alpha", base_dir="/"))


# --- waking ---


def test_listening(database: Database) -> None:
    heard: queue.Queue[str] = queue.Queue()
    listener = Listener(database, heard.put)
    try:
        if not database.is_postgresql:
            submit(database, order("getexternal", dest="a"))
            assert heard.empty()
            return
        assert heard.get(timeout=60) == RESUMED
        submit(database, order("getexternal", dest="a"))
        assert heard.get(timeout=60) == "queued"
        with pytest.raises(NoSpace), database.write() as session:
            wake(session, "rolled back")
            raise NoSpace("")
        with database.write() as session:
            wake(session, "committed")
        assert heard.get(timeout=60) == "committed"
        with database.write() as session:
            cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query ILIKE 'LISTEN%'"
            ours = "datname = current_database()"  # a shared site listens on the same server
            assert session.execute(text(f"{cut} AND {ours}")).all() == [(True,)]
        assert heard.get(timeout=60) == RESUMED
        with database.write() as session:
            wake(session, "again")
        assert heard.get(timeout=60) == "again"
    finally:
        listener.close()
        listener.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "dm-listen"]


# --- a database that is away, full or wrong ---


def test_a_full_disk_of_the_server_is_called_that(database: Database) -> None:
    if not database.is_postgresql:
        return  # see the next one
    full = "DO $$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$"
    with pytest.raises(CatalogueFull) as caught, database.write() as session:
        session.execute(text(full))
    assert isinstance(caught.value.__cause__.orig, psycopg.errors.DiskFull)  # type: ignore[union-attr]
    assert database.full
    see(database)
    assert not database.full


def test_a_full_disk_is_called_that(tmp_path: Path) -> None:
    database = Database(f"sqlite+pysqlite:///{tmp_path / 'small.db'}", pool_size=1)
    migrate.upgrade(database)
    before = count(database, OutboxMessage)
    with pytest.raises(CatalogueFull) as away, database.write() as session:
        session.execute(text("PRAGMA max_page_count = 60"))
        session.add_all(
            OutboxMessage(exchange="", routing_key="x", body={"x": "y" * 4000}, created=now(session))
            for _ in range(200)
        )
    assert "full" in str(away.value.__cause__)
    assert (away.value.code, database.full) == ("no_space", True)
    assert isinstance(away.value, CatalogueUnavailable), "whoever waits for the catalogue waits for space"
    assert away.value.retryable
    assert "INSERT" not in away.value.detail
    assert count(database, OutboxMessage) == before
    database.close()


def test_sqlite_files_are_their_owners_alone(tmp_path: Path) -> None:
    was = os.umask(0)
    try:
        for name in ("new.db", "old.db"):
            if name == "old.db":
                sqlite3.connect(tmp_path / name).close()
                (tmp_path / name).touch()
            database = Database(f"sqlite+pysqlite:///{tmp_path / name}")
            migrate.upgrade(database)
            modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.glob(f"{name}*")}
            database.close()
            names = (name, *(f"{name}-{part}" for part in ("wal", "shm", "next", "turn")))
            assert modes == dict.fromkeys(names, 0o600)
    finally:
        os.umask(was)


def test_a_writer_that_never_ends_is_the_catalogue_being_busy(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.database.BUSY_TIMEOUT", 0.3)
    other = Database(database.url)  # another process would look just so
    with database.write() as session:
        session.add(MachineSeen(name="alpha", base_dir="/"))
        session.flush()
        with pytest.raises(CatalogueUnavailable):
            see(other)
        if not database.is_postgresql:
            with pytest.raises(CatalogueUnavailable):
                see(database)  # and so does another thread of the same process
    assert count(other, MachineSeen) == 1
    with other.write() as session:
        session.add(MachineSeen(name="beta", base_dir="/"))  # and is there again
    other.close()


def test_a_deadlock_is_retryable(database: Database) -> None:
    if not database.is_postgresql:
        with database.write() as session:  # SQLite has one writer: there is no second one to wait for
            assert session.execute(text("PRAGMA journal_mode")).scalar_one() == "wal"
        return
    with database.write() as session:
        session.add_all([MachineSeen(name=name, base_dir="/") for name in "ab"])
    barrier = threading.Barrier(2)

    def lock(first: str, second: str) -> BaseException | None:
        try:
            with database.write() as session:
                session.get_one(MachineSeen, first, with_for_update=True)
                barrier.wait()
                session.get_one(MachineSeen, second, with_for_update=True)
        except CatalogueUnavailable as away:
            return away.__cause__
        return None

    with ThreadPoolExecutor(2) as pool:
        (cause,) = filter(None, pool.map(lock, "ab", "ba"))
    assert isinstance(cause, OperationalError)
    assert isinstance(cause.orig, psycopg.errors.DeadlockDetected)


def test_a_fault_of_ours_is_not_the_catalogue_being_away(database: Database) -> None:
    for wrong in ("SELECT * FROM no_such_table", "SELEC 1"):
        with pytest.raises((OperationalError, ProgrammingError)), database.read() as session:
            session.execute(text(wrong))


def test_a_database_in_memory_is_refused() -> None:
    for url in ("sqlite+pysqlite://", "sqlite+pysqlite:///:memory:"):
        with pytest.raises(SettingsError, match="must be a file"):
            Database(url)


def test_a_database_that_is_not_there() -> None:
    database = Database("postgresql+psycopg://nobody@127.0.0.1:1/nothing")
    with pytest.raises(CatalogueUnavailable) as away:
        count(database, DataObject)
    assert "nobody" not in away.value.detail
    absent = Database("sqlite+pysqlite:////nowhere/at/all.db")
    with pytest.raises(CatalogueUnavailable):
        count(absent, DataObject)


@pytest.fixture
def private(tmp_path: Path) -> Iterator[Postgres]:
    """A PostgreSQL server of the test's own, to be killed."""
    with Postgres(tmp_path) as server:
        yield server


@pytest.mark.faults
@pytest.mark.server
def test_a_killed_server_is_away_and_comes_back(private: Postgres) -> None:
    url = private.url()
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:  # the test server commits lazily
        connection.execute(f'ALTER DATABASE "{url.rpartition("/")[2]}" SET synchronous_commit = on')
    database = Database(url)
    migrate.upgrade(database)
    heard: queue.Queue[str] = queue.Queue()
    listener = Listener(database, heard.put)
    assert heard.get(timeout=60) == RESUMED
    register(database, "before")
    private.kill()
    for act in (lambda: count(database, DataObject), lambda: register(database, "meanwhile")):
        with pytest.raises(CatalogueUnavailable):
            act()
    private.start()
    assert count(database, DataObject) == 1
    register(database, "after")
    assert heard.get(timeout=60) == RESUMED
    assert count(database, DataObject) == 2
    listener.close()
    database.close()


def test_a_latin_database_is_refused(postgres: Databases) -> None:
    url = postgres.url()
    name = url.rpartition("/")[2]
    address = postgres.admin.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(address, autocommit=True) as admin:
        admin.execute(f'DROP DATABASE "{name}"')
        admin.execute(f"CREATE DATABASE \"{name}\" ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
    database = Database(url)
    with pytest.raises(SettingsError, match="UTF8"):
        migrate.upgrade(database)
    database.close()
    postgres.drop(url)


def test_the_clock_is_aware(database: Database) -> None:
    with database.read() as session:
        assert abs(now(session) - datetime.now(UTC)) < timedelta(seconds=30)
    with pytest.raises(StatementError, match="aware"), database.write() as session:
        session.add(Lease(name="x", holder=str(uuid4()), until=datetime(2026, 1, 1), details={}))  # noqa: DTZ001
