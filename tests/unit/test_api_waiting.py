"""Waiting: woken by messages, safe without them, and idle when nobody waits. The catalogue is a real one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event

from api.transfers.wait import POLL, Waiter
from datamanager.domain.location import Place
from datamanager.domain.requests import DeleteRequest, RegisterRequest
from datamanager.domain.states import TransferKind
from datamanager.machines import Machine, Machines, TransportKind
from models.database import Database
from models.migrate import upgrade
from models.objects.catalogue import Facts, register_object
from models.submission import SealedRequest, submit
from models.transfers import outcomes, queue

HOUR = 3600.0
"""A poll that no test lives to see: what happens with it, a message has brought about."""
GUARD = 60.0
"""Seconds until what never ends fails its test."""
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
        request = RegisterRequest(machine="here", filename=name)
        new = register_object(session, request, Place("here", name), Facts(1), by=None)
    with database.write() as session:
        return submit(session, MACHINES, SealedRequest(TransferKind.DELETE, DeleteRequest(), new, grant=None)).id


def end(database: Database, transfer: UUID) -> None:
    with database.write() as session:
        (hold,) = queue.take(session, "m", LEASE, 1, only=transfer)
        queue.begin(session, hold, uuid4())
        outcomes.complete_delete(session, hold)


@asynccontextmanager
async def working(database: Database, poll: float) -> AsyncIterator[tuple[Waiter, Callable[[], int]]]:
    """Run a waiter with this poll; yield it and a function that says how often it has looked at the catalogue."""
    its_own, looks = Database(database.engine.url.render_as_string()), 0

    @event.listens_for(its_own.engine, "before_cursor_execute")
    def note(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        nonlocal looks
        looks += statement.startswith("SELECT")

    waiter = Waiter(its_own, poll)
    running = asyncio.create_task(waiter.run())
    try:
        await asyncio.sleep(0)  # it runs
        async with asyncio.timeout(GUARD):
            yield waiter, lambda: looks
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        its_own.close()


async def quiet(looks: Callable[[], int]) -> None:
    """Wait until nobody looks any more for many polls. (Times out if somebody looks for ever.)"""
    seen = -1
    while seen != (seen := looks()):
        await asyncio.sleep(0.5)


def test_a_message_ends_the_waiting(database: Database) -> None:
    transfer = queued(database)

    async def scene() -> None:
        async with working(database, HOUR) as (waiter, looks):
            waits = asyncio.create_task(waiter.ended(transfer))
            await asyncio.sleep(0.2)
            assert looks() == 0  # with such a poll only a message makes it look
            end(database, transfer)
            waiter.notify(f"ended:{transfer}")
            row = await waits
        assert row is not None
        assert row.status == "COMPLETE"
        assert looks() == 1

    asyncio.run(scene())


def test_a_lost_message_costs_one_poll(database: Database) -> None:
    transfer = queued(database)

    async def scene() -> None:
        async with working(database, HOUR) as (waiter, looks):
            waits = asyncio.create_task(waiter.ended(transfer))
            await asyncio.sleep(0)
            end(database, transfer)
            for message in ("ended:nonsense", "queued", "ended:", "resumed"):
                waiter.notify(message)
            await asyncio.sleep(0.2)
            assert (waits.done(), looks()) == (False, 0)  # these are no messages of its end
            waits.cancel()
        async with working(database, POLL) as (waiter, _):
            rows = await asyncio.gather(*(waiter.ended(transfer) for _ in range(3)))
        assert {row.status if row else None for row in rows} == {"COMPLETE"}

    asyncio.run(scene())


def test_a_poll_that_finds_nothing_is_followed_by_another(database: Database) -> None:
    transfer = queued(database)

    async def scene() -> None:
        async with working(database, 0.01) as (waiter, looks):
            waits = asyncio.create_task(waiter.ended(transfer))
            while looks() < 3:
                await asyncio.sleep(0.01)
            assert not waits.done()
            end(database, transfer)
            assert await waits is not None

    asyncio.run(scene())


def test_a_message_may_overtake_its_request(database: Database) -> None:
    transfer = queued(database)
    end(database, transfer)

    async def scene() -> None:
        async with working(database, HOUR) as (waiter, looks):
            waiter.notify(f"ended:{transfer}")
            await asyncio.sleep(0.05)
            assert looks() == 0
            assert await waiter.ended(transfer) is not None

    asyncio.run(scene())


def test_patience_ends_and_then_nobody_asks_the_catalogue(database: Database) -> None:
    transfer = queued(database)

    async def scene() -> None:
        async with working(database, 0.05) as (waiter, looks):
            assert await waiter.ended(transfer, 0.1) is None
            await quiet(looks)
            end(database, transfer)
            assert await waiter.ended(transfer) is not None
            await quiet(looks)

    asyncio.run(scene())
