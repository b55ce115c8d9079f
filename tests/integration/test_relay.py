"""The outbox relay between a real catalogue and a real RabbitMQ, both of which may go away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, select

from datamanager.messaging.broker import Broker
from deployments.amqp.relay import POLL, Relay
from models.database import Database, now
from models.tables import Lease, OutboxMessage
from tests.support.amqp import away, client, listener, rest, take
from tests.support.catalogue import catalogue, say
from tests.support.ports import free_port
from tests.support.rabbitmq import RabbitMq


@asynccontextmanager
async def relaying(database: Database, url: str, holder: str = "one", *, poll: float = POLL) -> AsyncIterator[Relay]:
    broker = Broker(url)
    relay = Relay(database, broker, holder, poll=poll)
    task = asyncio.create_task(relay.run())
    await asyncio.sleep(0)
    try:
        yield relay
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await relay.aclose()
        await broker.close()


def unsent(database: Database) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).where(OutboxMessage.sent.is_(None))) or 0


async def until_sent(database: Database) -> None:
    async with asyncio.timeout(60):
        while unsent(database):
            await asyncio.sleep(0.05)


def by_subject(bodies: Iterable[bytes]) -> dict[UUID, list[int]]:
    """Return each subject's sequence numbers in the order of arrival."""
    found: defaultdict[UUID, list[int]] = defaultdict(list)
    for event in map(json.loads, bodies):
        found[UUID(event["subject"])].append(event["sequence"])
    return found


def first_seen(numbers: list[int]) -> list[int]:
    return list(dict.fromkeys(numbers))


@pytest.mark.dialect
def test_everything_arrives_once_and_in_the_order_of_each_subject(catalogue_url: str, amqp_url: str) -> None:
    subjects = [uuid4() for _ in range(10)]

    async def scene(database: Database) -> None:
        async with client(amqp_url) as channel:
            queue = await listener(channel)
            async with relaying(database, amqp_url):
                await until_sent(database)
            arrived = by_subject(await rest(channel, queue))
            assert arrived == {subject: list(range(45)) for subject in subjects}

    with catalogue(catalogue_url) as database:
        for number in range(45):
            for subject in subjects:
                say(database, subject, number)
        asyncio.run(scene(database))
        with database.read() as session:
            assert session.scalars(select(Lease)).all() == [], "an idle relay keeps nobody from sending"


def test_a_poked_relay_sends_at_once(catalogue_url: str, amqp_url: str) -> None:
    async def scene(database: Database) -> None:
        async with client(amqp_url) as channel:
            queue = await listener(channel)
            async with relaying(database, amqp_url, poll=3600) as relay:  # of itself it looks once, at the start
                for number in range(5):
                    await asyncio.sleep(0.2)
                    await asyncio.to_thread(say, database, uuid4(), number)
                    await asyncio.to_thread(relay.notify)
                    await take(channel, queue, 1)

    with catalogue(catalogue_url) as database:
        asyncio.run(scene(database))


def test_an_unpoked_relay_looks_by_itself(catalogue_url: str, amqp_url: str) -> None:
    async def scene(database: Database) -> None:
        async with client(amqp_url) as channel, relaying(database, amqp_url):
            queue = await listener(channel)
            await asyncio.sleep(0.5)
            await asyncio.to_thread(say, database, uuid4(), 0)
            await take(channel, queue, 1)

    with catalogue(catalogue_url) as database:
        asyncio.run(scene(database))


@pytest.mark.faults
@pytest.mark.slow
def test_nothing_is_lost_or_marked_while_the_broker_is_away_at_the_start_and_in_between(
    catalogue_url: str, rabbitmq: RabbitMq
) -> None:
    url = rabbitmq.fresh_vhost()
    subjects = [uuid4() for _ in range(5)]

    async def write(database: Database, numbers: range) -> None:
        for number in numbers:
            for subject in subjects:
                await asyncio.to_thread(say, database, subject, number)

    async def scene(database: Database) -> dict[UUID, list[int]]:
        async with client(url) as channel:
            queue = await listener(channel)
        async with contextlib.AsyncExitStack() as stack:
            async with away(rabbitmq):
                relay = await stack.enter_async_context(relaying(database, url))
                await write(database, range(20))
                relay.notify()
                await asyncio.sleep(1)
                assert unsent(database) == 100
            await until_sent(database)

            writing = asyncio.create_task(write(database, range(20, 60)))
            await asyncio.sleep(0.2)
            async with away(rabbitmq):
                await writing
                await write(database, range(60, 70))
                assert unsent(database) >= 50
            await until_sent(database)
        async with client(url) as channel:
            return by_subject(await rest(channel, queue))

    with catalogue(catalogue_url) as database:
        arrived = asyncio.run(scene(database))
    assert set(arrived) == set(subjects)
    for numbers in arrived.values():
        assert first_seen(numbers) == list(range(70))
    rabbitmq.drop_vhost(url)


@pytest.mark.dialect
def test_relays_side_by_side_neither_double_nor_reorder(catalogue_url: str, amqp_url: str) -> None:
    subjects = [uuid4() for _ in range(6)]

    async def scene(database: Database) -> None:
        async with client(amqp_url) as channel:
            queue = await listener(channel)
            async with (
                relaying(database, amqp_url, "one") as one,
                relaying(database, amqp_url, "two") as two,
                relaying(database, amqp_url, "three") as three,
            ):
                for number in range(40):
                    for subject, relay in zip(subjects, (one, two, three) * 2, strict=True):
                        await asyncio.to_thread(say, database, subject, number)
                        relay.notify()
                await until_sent(database)
            assert by_subject(await rest(channel, queue)) == {subject: list(range(40)) for subject in subjects}

    with catalogue(catalogue_url) as database:
        asyncio.run(scene(database))


@pytest.mark.dialect
@pytest.mark.faults
def test_another_relay_takes_over_from_a_killed_one_at_its_leases_end(catalogue_url: str, amqp_url: str) -> None:
    script = (
        "import os, signal, sys\n"
        "from datamanager.messaging.broker import Broker\n"
        "from deployments.amqp.relay import Relay\n"
        "from models.database import Database\n"
        "database = Database(sys.argv[1])\n"
        "relay = Relay(database, Broker(sys.argv[2]), 'the killed one')\n"
        "with database.write() as session:\n"
        "    assert relay._take(session)\n"  # it holds the lease and has read its batch
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )

    async def scene(database: Database) -> None:
        async with client(amqp_url) as channel:
            queue = await listener(channel)
            argv = [sys.executable, "-c", script, catalogue_url, amqp_url]
            assert await asyncio.to_thread(subprocess.call, argv) == -9
            with database.read() as session:
                lease = session.get_one(Lease, "relay")
                assert lease.holder == "the killed one"
            async with relaying(database, amqp_url):
                (message,) = await take(channel, queue, 1)
            assert json.loads(message.body)["subject"] == str(subject)
            with database.read() as session:
                assert now(session) >= lease.until, "not before the lease's end"

    subject = uuid4()
    with catalogue(catalogue_url) as database:
        say(database, subject, 0)
        asyncio.run(scene(database))


def test_a_relay_waits_for_its_catalogue() -> None:
    async def scene() -> None:
        database = Database(f"postgresql+psycopg://nobody@127.0.0.1:{free_port()}/nothing")
        relay = Relay(
            database, Broker(f"amqp://guest:guest@127.0.0.1:{free_port()}/"), "one", lease=timedelta(seconds=1)
        )
        task = asyncio.create_task(relay.run())
        await asyncio.sleep(1)
        assert not task.done()
        relay.notify()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await relay.aclose()
        assert task.cancelled()

    asyncio.run(scene())
