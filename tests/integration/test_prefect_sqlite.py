"""The embedded Prefect server's SQLite: writers take turns, a statement is one trip to its connection's thread."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.schema import CreateTable

pytestmark = pytest.mark.server  # the import of Prefect's server takes seconds

NUMBERS = Table("numbers", MetaData(), Column("id", Integer, primary_key=True), Column("value", Integer, unique=True))
Work = Callable[[Any], Awaitable[None]]


def with_database(tmp_path: Path, work: Work) -> None:
    """Do `work` with a database that has a table."""
    from deployments.orchestrator.server_sqlite import WritesInTurn

    async def perform() -> None:
        database = WritesInTurn(f"sqlite+aiosqlite:///{tmp_path / 'prefect.db'}")
        engine = await database.engine()
        async with AsyncSession(engine) as session, database.begin_transaction(session):
            await session.execute(CreateTable(NUMBERS))
        try:
            await work(database)
        finally:
            await engine.dispose()

    asyncio.run(perform())


def test_transactions_take_turns_and_lose_nothing(tmp_path: Path) -> None:
    inside, most = 0, 0

    async def work(database: Any) -> None:
        engine = await database.engine()

        async def add_one() -> None:
            nonlocal inside, most
            async with AsyncSession(engine) as session, database.begin_transaction(session):
                inside += 1
                most = max(most, inside)
                count = (await session.execute(text("SELECT count(*) FROM numbers"))).scalar_one()
                async with AsyncSession(engine) as beside:  # what reads meanwhile waits for nobody
                    await beside.execute(text("SELECT count(*) FROM numbers"))
                await session.execute(text("INSERT INTO numbers (value) VALUES (:value)"), {"value": count})
                inside -= 1

        await asyncio.gather(*(add_one() for _ in range(12)))
        async with AsyncSession(engine) as session:
            assert (await session.execute(text("SELECT max(value) FROM numbers"))).scalar_one() == 11

    with_database(tmp_path, work)
    assert most == 1


def test_statement_outside_a_transaction_has_its_turn_between_two(tmp_path: Path) -> None:
    """Events are written so, while transactions follow each other without a pause."""
    order: list[str] = []

    async def work(database: Any) -> None:
        engine, begun, over = await database.engine(), asyncio.Event(), asyncio.Event()

        async def transaction(name: str) -> None:
            async with await database.session(engine) as session, database.begin_transaction(session):
                begun.set()
                await session.execute(NUMBERS.insert(), [{"value": len(order)}])
                await over.wait()
                order.append(name)

        async def statement() -> None:
            async with await database.session(engine) as session:
                await session.execute(NUMBERS.insert(), [{"value": 100}])
                order.append("statement")

        first = asyncio.create_task(transaction("first"))
        await begun.wait()
        others = [asyncio.create_task(statement()), asyncio.create_task(transaction("second"))]
        await asyncio.sleep(0)  # they stand in line
        over.set()
        await asyncio.gather(first, *others)

    with_database(tmp_path, work)
    assert order == ["first", "statement", "second"]


def test_connection_of_migrations_holds_no_lock_between_two_statements(tmp_path: Path) -> None:
    """Alembic leaves a connection whose driver begins transactions; the server stood still when two writers met so."""

    async def work(database: Any) -> None:
        engine = await database.engine()
        async with engine.connect() as connection:  # as migrations do
            await connection.execution_options(isolation_level="AUTOCOMMIT")
        async with await database.session(engine) as session:
            await session.execute(NUMBERS.insert(), [{"value": 1}])
            async with await database.session(engine) as other, database.begin_transaction(other):
                await other.execute(NUMBERS.insert(), [{"value": 2}])
            await session.execute(NUMBERS.insert(), [{"value": 3}])

    with_database(tmp_path, work)


def test_failed_transaction_gives_its_turn_to_the_next(tmp_path: Path) -> None:
    async def work(database: Any) -> None:
        engine = await database.engine()
        for _ in range(2):
            with pytest.raises(IntegrityError):
                async with AsyncSession(engine) as session, database.begin_transaction(session):
                    for _ in range(2):
                        await session.execute(text("INSERT INTO numbers (value) VALUES (1)"))
        async with AsyncSession(engine) as session:
            assert (await session.execute(text("SELECT count(*) FROM numbers"))).scalar_one() == 0

    with_database(tmp_path, work)


def test_statement_is_one_trip_and_brings_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """`aiosqlite` logs each call that it takes to the thread of a connection."""
    caplog.set_level(logging.DEBUG, "aiosqlite")

    def trips() -> int:
        return sum(record.message.startswith("executing") for record in caplog.records)

    async def work(database: Any) -> None:
        engine = await database.engine()
        async with AsyncSession(engine) as session, database.begin_transaction(session):
            before = trips()
            added = await session.execute(text("INSERT INTO numbers (value) VALUES (5), (6) RETURNING id, value"))
            assert added.all() == [(1, 5), (2, 6)]
            changed: Any = await session.execute(text("UPDATE numbers SET value = value + 10"))
            assert changed.rowcount == 2
            many = text("INSERT INTO numbers (value) VALUES (:value)")
            await session.execute(many, [{"value": 1}, {"value": 2}])
            assert (await session.execute(text("SELECT value FROM numbers ORDER BY 1"))).scalars().all() == [
                1,
                2,
                15,
                16,
            ]
            assert trips() - before == 4
        async with AsyncSession(engine) as session:
            rows = await session.stream(text("SELECT value FROM numbers ORDER BY 1"))
            assert [row async for row in rows.scalars()] == [1, 2, 15, 16]

    with_database(tmp_path, work)
