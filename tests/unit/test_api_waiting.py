"""Waiting: woken by messages, safe without them, and idle when nobody waits. The catalogue is a real one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event

from api.waiting import POLL, Waiter
from datamanager.domain.location import Place
from datamanager.domain.requests import DeleteRequest, RegisterRequest
from datamanager.domain.states import TransferKind
from datamanager.machines import Machine, Machines, TransportKind
from models import movers, outcomes
from models.database import Database
from models.migrate import upgrade
from models.objects import Facts, register_object
from models.transfers import Order, submit

LEASE = timedelta(seconds=30)
MACHINES = Machines({"here": Machine(name="here", transport=TransportKind.LOCAL, base_dir="/data")})


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = Database(f"sqlite+pysqlite:///{tmp_path / 'catalogue.db'}")
    upgrade(made)
    yield made
    made.close()


def queued(database: Database) -> UUID:
    name = uuid4().hex
    with database.write() as session:
        new = register_object(session, RegisterRequest(machine="here", filename=name), Place("here", name), Facts(1))
    with database.write() as session:
        return submit(session, MACHINES, Order(TransferKind.DELETE, DeleteRequest(), new)).id


def end(database: Database, transfer: UUID) -> None:
    with database.write() as session:
        (hold,) = movers.take(session, "m", LEASE, 1, only=transfer)
        movers.begin(session, hold, uuid4())
        outcomes.complete_delete(session, hold)


def test_a_message_ends_the_waiting(database: Database) -> None:
    transfer = queued(database)

    async def scene() -> float:
        waiter = Waiter(database)
        running = asyncio.create_task(waiter.run())
        waits = asyncio.create_task(waiter.ended(transfer))
        await asyncio.sleep(POLL * 1.2)  # just after a look, so that the next one is far
        end(database, transfer)
        begun = time.monotonic()
        waiter.heard(f"ended:{transfer}")
        row = await waits
        assert row is not None
        assert row.status == "COMPLETE"
        running.cancel()
        return time.monotonic() - begun

    assert asyncio.run(scene()) < POLL * 0.6


def test_a_lost_message_costs_one_poll(database: Database) -> None:
    transfer = queued(database)

    async def scene() -> None:
        waiter = Waiter(database)
        running = asyncio.create_task(waiter.run())
        waits = [asyncio.create_task(waiter.ended(transfer)) for _ in range(3)]
        await asyncio.sleep(0.1)
        end(database, transfer)
        for message in ("ended:nonsense", "queued", "ended:", "resumed"):
            waiter.heard(message)
        async with asyncio.timeout(POLL * 4):
            assert {row.status if row else None for row in await asyncio.gather(*waits)} == {"COMPLETE"}
        running.cancel()

    asyncio.run(scene())


def test_a_message_may_overtake_its_request(database: Database) -> None:
    transfer = queued(database)
    end(database, transfer)

    async def scene() -> float:
        waiter = Waiter(database)
        running = asyncio.create_task(waiter.run())
        await asyncio.sleep(0)
        waiter.heard(f"ended:{transfer}")
        await asyncio.sleep(0.05)
        begun = time.monotonic()
        assert await waiter.ended(transfer) is not None
        running.cancel()
        return time.monotonic() - begun

    assert asyncio.run(scene()) < POLL * 0.6


def test_patience_ends_and_then_nobody_asks_the_catalogue(database: Database) -> None:
    transfer = queued(database)
    statements: list[str] = []

    @event.listens_for(database.engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        statements.append(statement)

    async def scene() -> None:
        waiter = Waiter(database)
        running = asyncio.create_task(waiter.run())
        assert await waiter.ended(transfer, 0.1) is None
        await asyncio.sleep(POLL * 1.5)
        statements.clear()
        await asyncio.sleep(POLL * 2.5)
        assert not statements
        end(database, transfer)
        assert await waiter.ended(transfer, POLL * 4) is not None
        running.cancel()

    asyncio.run(scene())
