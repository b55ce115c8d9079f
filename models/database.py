"""One catalogue database: connections, transactions (in threads, for event loops), its clock.

SQLite runs in WAL mode and every writing transaction begins IMMEDIATE: a read that turns into a write fails at once
there, whatever the busy timeout. `synchronous=FULL`: what was answered survives a power cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import psycopg
import structlog
from sqlalchemy import Connection, CursorResult, Engine, Executable, Table, create_engine, event, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.sql.dml import Insert

from datamanager.errors import CatalogueFull, CatalogueUnavailable, QueryTooSlow, SettingsError
from models.writer_turns import WriterTurns

CACHE = "cache_size=-8192"
"""What a connection to SQLite keeps of the file at most: 8 MiB. A new object changes a page of each of many indexes:
more than SQLite's own 2 MiB hold."""
BUSY_TIMEOUT = 20.0  # seconds that a writer waits for another one
LET_OTHERS = 0.1
"""Seconds that a loop of writing transactions pauses between two of them on SQLite: a writer of another process looks
for its turn ten times a second, and without pauses it would miss them all."""
WAKE_CHANNEL = "dm_wake"
LOOK_AFTER = 10_000
"""Steps of SQLite's machine between two looks at the clock while a query's time is limited; about 100 µs."""
QUERY_CANCELLED = "57014"
"""PostgreSQL's code for a statement that took too long."""
NO_SPACE = "no_space: the disk of the catalogue (DM_HOME, or the database server's) is full; nothing can be recorded"
ROOM = 2**16
"""Bytes that are written to find out whether a disk is full."""

log = structlog.get_logger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Query = Callable[Concatenate[Session, P], T]


class Database:
    """The catalogue's engine; safe to share between threads, not between forks.

    `url` is a SQLAlchemy URL with driver (`sqlite+pysqlite:///…`, `postgresql+psycopg://…`). Raises: SettingsError for
    a SQLite database in memory, which two connections can't share.
    """

    def __init__(self, url: str, *, pool_size: int = 10) -> None:
        sqlite_file = url.startswith("sqlite")
        options: dict[str, Any] = {"pool_size": pool_size, "max_overflow": pool_size * 2, "pool_timeout": 30}
        if sqlite_file:
            if url.partition(":///")[2].partition("?")[0] in ("", ":memory:"):
                raise SettingsError("the catalogue must be a file: sqlite:////path/catalogue.db")
            options["connect_args"] = {"timeout": BUSY_TIMEOUT, "check_same_thread": False}
            options["json_deserializer"] = _document
        else:
            options["pool_pre_ping"] = True
            lock_timeout = f"-c lock_timeout={int(BUSY_TIMEOUT * 1000)}"  # a writer that was stopped must not stop all
            options["connect_args"] = {"connect_timeout": 5, "client_encoding": "utf8", "options": lock_timeout}
        self.url = url
        self.full = False
        """Whether the last writing that failed or worked found the database's disk full."""
        file = Path(url.partition(":///")[2].partition("?")[0]) if sqlite_file else None
        self._folder = None if file is None else file.parent
        self.is_postgresql = not sqlite_file
        self.engine = create_engine(url, **options)
        if sqlite_file:
            _prepare_sqlite(self.engine)
        else:
            _prepare_postgresql(self.engine)
        self._writing = self.engine.execution_options(dm_write=True)
        self._turns = None if file is None else WriterTurns(file)

    @contextmanager
    def read(self, within: timedelta | None = None) -> Iterator[Session]:
        """Open a session for reading; `within`: how long its queries may take (on SQLite all together, on PostgreSQL
        each), so that none holds the connection for ever. Raises: CatalogueUnavailable, QueryTooSlow.
        """
        with self._translated(within), Session(self.engine, expire_on_commit=False) as session:
            if within is not None:
                session.connection(execution_options={"dm_within": within.total_seconds()})
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a session whose changes are committed together at the end, or not at all on an exception.

        Keep it short and never nest it: on SQLite one writer works at a time. Raises: CatalogueUnavailable (retryable),
        also when PostgreSQL ended the transaction for a deadlock; CatalogueFull when its disk is full.
        """
        with (
            self._translated(),
            self._in_turn(),
            Session(self._writing, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session
        self._note(full=False)

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Open a bare connection in one writing transaction, as `write` does."""
        with self._translated(), self._in_turn(), self._writing.begin() as connection:
            yield connection
        self._note(full=False)

    def close(self) -> None:
        """Close every pooled connection."""
        self.engine.dispose()
        if self._turns is not None:
            self._turns.close()

    def require_space(self) -> None:
        """Find out whether the disk is full, as far as this host can see it. Raises: CatalogueFull."""
        if self._folder is not None and not _has_room(self._folder):
            raise CatalogueFull(NO_SPACE)

    def _in_turn(self) -> AbstractContextManager[None]:
        return nullcontext() if self._turns is None else self._turns.within(BUSY_TIMEOUT)

    @contextmanager
    def _translated(self, within: timedelta | None = None) -> Iterator[None]:
        try:
            with translated(self._folder, within):
                yield
        except CatalogueFull:
            self._note(full=True)
            raise

    def _note(self, *, full: bool) -> None:
        if full != self.full:
            self.full = full
            (log.error if full else log.info)(
                "catalogue_full" if full else "catalogue_has_space", code=CatalogueFull.code
            )


async def read(database: Database, query: Query[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Return `query(session, …)`, run in a thread. Raises: CatalogueUnavailable, and what the query raises."""

    def transaction() -> T:
        with database.read() as session:
            return query(session, *args, **options)

    return await asyncio.to_thread(transaction)


async def write(database: Database, change: Query[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Return `change(session, …)`, run in a thread and committed. Raises: CatalogueUnavailable, and what it raises."""

    def transaction() -> T:
        with database.write() as session:
            return change(session, *args, **options)

    return await asyncio.to_thread(transaction)


def on_postgresql(session: Session) -> bool:
    """Say whether the session's database is PostgreSQL."""
    return session.get_bind().dialect.name == "postgresql"


def now(session: Session) -> datetime:
    """Return the database's clock: what leases and deadlines of several movers are compared by."""
    if on_postgresql(session):
        time: datetime = session.execute(select(func.clock_timestamp())).scalar_one()
        return time.astimezone(UTC)
    return datetime.now(UTC)  # SQLite: one host, one clock


def take_turns(session: Session, lock: int) -> None:
    """Let transactions that name this number proceed one after the other, each until it ends. On SQLite every writing
    transaction excludes others anyway.
    """
    if on_postgresql(session):
        session.execute(select(func.pg_advisory_xact_lock(lock)))


def wake(session: Session, *what: str) -> None:
    """Notify listeners on other hosts at commit; PostgreSQL only, elsewhere the caller uses the Unix socket."""
    if what and on_postgresql(session):
        session.execute(select(*(func.pg_notify(WAKE_CHANNEL, one) for one in what)))


def insert_if_free(session: Session, model: type[DeclarativeBase], values: dict[str, Any]) -> bool:
    """Insert a row unless a unique index has it already; say whether it was inserted. See `insert_free`."""
    return bool(insert_free(session, model, [values], *table_of(model).primary_key.columns.keys()))


def insert_free(
    session: Session, model: type[DeclarativeBase], rows: Sequence[dict[str, Any]], *columns: str
) -> Sequence[Any]:
    """Insert the rows that no unique index has already; return these columns of those that were inserted.

    The unique index decides the race, not a SELECT before it. On PostgreSQL this waits for a rival's transaction to
    end.
    """
    return session.execute(_insert_free(model, columns, postgres=on_postgresql(session)), _given(rows)).all()


@cache  # a statement's key among the compiled ones takes longer than many a statement
def _insert_free(model: type[DeclarativeBase], columns: tuple[str, ...], *, postgres: bool) -> Executable:
    table, dialect = table_of(model), postgresql if postgres else sqlite
    statement: Insert = dialect.insert(table).on_conflict_do_nothing()
    # not by rowcount: it is -1 where SQLAlchemy asks for a generated key itself
    return statement.returning(*(table.c[name] for name in columns))


def insert_rows(session: Session, model: type[DeclarativeBase], rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows by one statement, if there are any."""
    if rows:
        session.execute(_insert(model), _given(rows))


def _given(rows: Sequence[dict[str, Any]]) -> Any:
    """Return rows as a statement takes them: a single one by itself, as a list of one costs SQLAlchemy more."""
    return rows[0] if len(rows) == 1 else rows


@cache
def _insert(model: type[DeclarativeBase]) -> Insert:
    return insert(table_of(model))


def table_of(model: type[DeclarativeBase]) -> Table:
    """Return the table of a class, for statements that pass by the session's objects."""
    return cast(Table, model.__table__)


def affected(session: Session, statement: Any) -> int:
    """Execute an UPDATE or DELETE; return how many rows it touched."""
    result = session.execute(statement)
    if not isinstance(result, CursorResult) or result.rowcount < 0:
        raise TypeError("only UPDATE and DELETE tell how many rows they touch")
    return int(result.rowcount)


def inserted(session: Session, statement: Any) -> int:
    """Execute an INSERT of what a query finds; return how many rows it made."""
    connection = session.connection().execution_options(preserve_rowcount=True)
    return connection.execute(statement).rowcount


def storable(text: str) -> str:
    """Return `text` as every database can store it: NUL and lone surrogates (of a remote machine's message) escaped."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


def _is_full(error: BaseException | None, folder: Path | None) -> bool:
    """Say whether a database's error is that its disk, a quota or a limit of file sizes leaves it no space."""
    if isinstance(error, psycopg.errors.DiskFull):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    if code is None or folder is None:
        return False
    if code == sqlite3.SQLITE_FULL:
        return True
    # SQLite says no more than "I/O error" or "can't open" of a quota, or where its shared memory has no room
    return code & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and not _has_room(folder)


def _has_room(folder: Path) -> bool:
    """Say whether a file can still grow in a folder."""
    try:
        with TemporaryFile(dir=folder) as file:  # buffered: what a full disk takes only a part of is an error
            file.write(bytes(ROOM))
            file.flush()
            os.fsync(file.fileno())
    except OSError as exc:
        return exc.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return True


def _document(text: str) -> Any:
    """Return what a JSON text says; most documents are empty."""
    return {} if text == "{}" else json.loads(text)


def _json_member(document: str | None, key: str) -> str | None:
    """Do in SQLite what PostgreSQL's `->>` does: a member as text, null for null and for what is not there.

    SQLite's own paths can't name keys with quotes or that look like numbers, and it turns true into 1.
    """
    members = json.loads(document) if document else {}
    value = members.get(key) if isinstance(members, dict) else None
    return value if value is None or isinstance(value, str) else json.dumps(value)


def _sha256(text: str) -> str:
    """Do in SQLite what PostgreSQL's functions `encode`, `sha256` and `convert_to` do together."""
    return hashlib.sha256(text.encode()).hexdigest()


def _keep_private(file: str) -> None:
    """Make the database's file, or what there is of it, its owner's alone (0600); SQLite gives its journals that mode.

    What is there is never opened: closing it would release the locks that this process has on it
    (https://sqlite.org/howtocorrupt.html, 2.2).
    """
    with contextlib.suppress(OSError):  # connecting says what is wrong with the place
        try:
            os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            for name in (file, f"{file}-wal", f"{file}-shm"):
                if os.stat(name).st_mode & 0o077:
                    os.chmod(name, 0o600)


def _prepare_sqlite(engine: Engine) -> None:
    # many rows by one statement: for each statement that runs triggers SQLite writes a journal of its own, 20 µs
    engine.dialect.use_insertmanyvalues_wo_returning = True

    @event.listens_for(engine, "do_connect")
    def _make_private(*_what: Any) -> None:
        if engine.url.database is not None:
            _keep_private(engine.url.database)

    @event.listens_for(engine, "connect")
    def _connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        connection.create_function("dm_json_member", 2, _json_member, deterministic=True)
        connection.create_function("dm_sha256", 1, _sha256, deterministic=True)
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "case_sensitive_like=ON", CACHE):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        within = options.get("dm_within")
        # set or taken away at each begin: a connection of the pool may have it from the transaction before
        late = None if within is None else _late_after(within)
        cast(sqlite3.Connection, connection.connection.driver_connection).set_progress_handler(late, LOOK_AFTER)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("dm_write", False) else "BEGIN")


def _late_after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def _prepare_postgresql(engine: Engine) -> None:
    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        within = connection.get_execution_options().get("dm_within")
        if within is not None:  # 0 would be no limit
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {max(1, int(within * 1000))}")


@contextmanager
def translated(folder: Path | None = None, within: timedelta | None = None) -> Iterator[None]:
    """Turn a database that is away, full or locked for too long into CatalogueUnavailable, and a query that took longer
    than `within` into QueryTooSlow; no SQL in their texts. `folder`: where SQLite writes.
    """
    try:
        yield
    except (OperationalError, InterfaceError, PoolTimeout) as exc:
        orig = getattr(exc, "orig", None)
        code = getattr(orig, "sqlite_errorcode", None)
        late = code == sqlite3.SQLITE_INTERRUPT or getattr(orig, "sqlstate", None) == QUERY_CANCELLED
        if within is not None and late:
            raise QueryTooSlow(
                f"the query was ended after {within.total_seconds():g} s; narrow it by machine, group, path, since or "
                "until, or sort it by date_registered"
            ) from exc
        if code == sqlite3.SQLITE_ERROR:
            raise  # wrong SQL or a missing table: a fault of ours, and no waiting will mend it
        if _is_full(orig, folder):
            raise CatalogueFull(NO_SPACE) from exc
        raise CatalogueUnavailable("the catalogue's database does not answer") from exc
    except DBAPIError as exc:
        if exc.connection_invalidated:
            raise CatalogueUnavailable("the catalogue's database closed the connection") from exc
        raise
