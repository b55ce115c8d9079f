"""Prefect's SQLite database: writing transactions that take turns instead of failing, statements of one trip each."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from contextvars import ContextVar
from typing import Any, Self

from aiosqlite import Connection
from prefect.server.database.configurations import SQLITE_BEGIN_MODE, AioSqliteConfiguration
from sqlalchemy import Executable, Result, UpdateBase, event
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, AsyncSessionTransaction

FETCHED = 64
"""Rows that `aiosqlite` fetches at once where somebody iterates over a cursor of its own."""
_writes: ContextVar[bool] = ContextVar("writes", default=False)
"""Whether a writing transaction is under way here: what begins within it can't wait for it."""


class WritesInTurn(AioSqliteConfiguration):
    """Every explicit transaction begins IMMEDIATE, when it is its turn; what only reads begins none, as before. So a
    statement that writes outside of one is a transaction of its own, and has a turn too.

    SQLite by itself makes a writer wait by looking for its turn after pauses of up to 100 ms, in which it misses it.
    """

    def __init__(self, connection_url: str, **options: Any) -> None:
        super().__init__(connection_url, **options)
        self._turn = asyncio.Lock()

    async def engine(self) -> AsyncEngine:
        """Return the engine of this event loop; its connections are `OneTripConnection`, which begin nothing alone."""
        engine = await super().engine()
        if not event.contains(engine.sync_engine, "do_connect", _use_one_trip):
            event.listen(engine.sync_engine, "do_connect", _use_one_trip)
            event.listen(engine.sync_engine, "checkout", _begin_nothing)
        return engine

    async def session(self, engine: AsyncEngine) -> AsyncSession:
        """Return a session whose statements take turns."""
        session = TurnTakingSession(engine, expire_on_commit=False)
        session.in_turn = self._in_turn
        return session

    @asynccontextmanager
    async def begin_transaction(
        self,
        session: AsyncSession,
        with_for_update: bool = False,  # noqa: ARG002 - Prefect's signature
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        """Begin a transaction that has the right to write from its start (https://sqlite.org/lang_transaction.html)."""
        async with self._in_turn(), super().begin_transaction(session, with_for_update=True) as transaction:
            await session.connection()  # it begins now
            token = SQLITE_BEGIN_MODE.set(None)  # not what reads beside it: that would wait for this one for ever
            try:
                yield transaction
            finally:
                SQLITE_BEGIN_MODE.reset(token)

    @asynccontextmanager
    async def _in_turn(self) -> AsyncGenerator[None, None]:
        if _writes.get():
            yield
            return
        async with self._turn:
            token = _writes.set(True)
            try:
                yield
            finally:
                _writes.reset(token)


class TurnTakingSession(AsyncSession):
    """A session; `in_turn` is the context in which a statement that writes is executed."""

    in_turn: Callable[[], AbstractAsyncContextManager[None]]

    async def execute(self, statement: Executable, *arguments: Any, **options: Any) -> Result[Any]:
        """Execute a statement, when it is its turn if it writes."""
        if not isinstance(statement, UpdateBase):
            return await super().execute(statement, *arguments, **options)
        async with self.in_turn():
            return await super().execute(statement, *arguments, **options)


class OneTripConnection(Connection):
    """A connection in a thread of its own, as `aiosqlite` has it, whose cursors go there once for each statement.

    SQLAlchemy with the cursors of `aiosqlite` goes there four times: to make the cursor, execute, fetch and close it.
    A flow run takes dozens of statements.
    """

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, FETCHED)
        self._thread.daemon = True  # as SQLAlchemy has those that it makes

    def cursor(self) -> OneTripCursor:  # type: ignore[override]
        """Return a cursor; nothing is done yet."""
        return OneTripCursor(self)

    async def perform(self, work: Callable[[sqlite3.Cursor], object], cursor: OneTripCursor) -> None:
        """Do `work` with a cursor in the connection's thread, and leave all that it brought in `cursor`."""
        await self._execute(self._perform, work, cursor)  # type: ignore[no-untyped-call]

    def _perform(self, work: Callable[[sqlite3.Cursor], object], cursor: OneTripCursor) -> None:
        with closing(self._conn.cursor()) as own:
            work(own)
            cursor.description = own.description
            cursor.rows = deque(own.fetchall() if own.description else ())
            cursor.rowcount, cursor.lastrowid = own.rowcount, own.lastrowid


class OneTripCursor:
    """What SQLAlchemy needs of a cursor of `aiosqlite`. All rows are here once the statement was executed."""

    def __init__(self, connection: OneTripConnection) -> None:
        self._connection = connection
        self.description: Any = None
        self.rows: deque[Any] = deque()
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1

    async def execute(self, sql: str, parameters: Any = ()) -> Self:
        """Execute a statement."""
        await self._connection.perform(lambda cursor: cursor.execute(sql, parameters), self)
        return self

    async def executemany(self, sql: str, parameters: Any) -> Self:
        """Execute a statement for each set of parameters."""
        await self._connection.perform(lambda cursor: cursor.executemany(sql, parameters), self)
        return self

    async def fetchone(self) -> Any:
        """Return the next row; None when there are no more."""
        return self.rows.popleft() if self.rows else None

    async def fetchmany(self, size: int | None = None) -> list[Any]:
        """Return the next `size` rows (None: `arraysize`), or as many as there are."""
        return [self.rows.popleft() for _ in range(min(size or self.arraysize, len(self.rows)))]

    async def fetchall(self) -> list[Any]:
        """Return the rows that are left."""
        return await self.fetchmany(len(self.rows) or 1)

    async def close(self) -> None:
        """Do nothing: it is closed."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


def _use_one_trip(_dialect: Any, _record: Any, _arguments: Any, options: dict[str, Any]) -> None:
    """Have SQLAlchemy connect by `_connect` (its event `do_connect`)."""
    options["async_creator_fn"] = _connect


def _begin_nothing(connection: Any, _record: Any, _proxy: Any) -> None:
    """Have the driver begin no transaction by itself, as Prefect sets it for a new connection.

    Alembic leaves the one of its migrations otherwise. A statement outside of a transaction would then hold SQLite's
    lock after its turn, until its session commits, while the next in turn waits for that lock.
    """
    if connection.isolation_level is not None:
        connection.isolation_level = None


def _connect(database: str, **options: Any) -> OneTripConnection:
    return OneTripConnection(lambda: sqlite3.connect(database, **options))
