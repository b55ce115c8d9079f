"""Consuming from a real RabbitMQ: verdicts, poison, cancellation, a broker that goes away."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aio_pika.abc import AbstractChannel

from datamanager.errors import BrokerUnavailable
from datamanager.messaging.broker import DEAD_QUEUE, DELIVERY_LIMIT, REQUESTS_QUEUE, Broker
from datamanager.messaging.consuming import Consumption, DeadLetter, Delivery, Done, Handler, Later, Verdict
from tests.support.amqp import (
    REPLY_TO_NOT_UTF8,
    TIMESTAMP_BEYOND_TIME,
    RawProperties,
    away,
    client,
    put,
    put_raw,
    rest,
    take,
)
from tests.support.rabbitmq import RabbitMq

QUEUE, DEAD = REQUESTS_QUEUE, DEAD_QUEUE


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Broker]:
    broker = Broker(url)
    try:
        yield broker
    finally:
        await broker.close()


@asynccontextmanager
async def consuming(broker: Broker, handler: Handler, *, prefetch: int = 16) -> AsyncIterator[asyncio.Task[None]]:
    """Consume for ever, beginning anew at once when the connection broke."""
    consumption = Consumption(broker, QUEUE, handler, prefetch=prefetch, retry_pause=0.02)

    async def forever() -> None:
        while True:
            with contextlib.suppress(BrokerUnavailable):
                await consumption.run()
            await asyncio.sleep(0.05)

    task = asyncio.create_task(forever())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_each_verdict_is_carried_out(amqp_url: str) -> None:
    seen: list[Delivery] = []

    async def judge(delivery: Delivery) -> Verdict:
        seen.append(delivery)
        first = sum(other.body == delivery.body for other in seen) == 1
        match delivery.body:
            case b"hopeless":
                return DeadLetter("malformed_body", "it is \ud800 hopeless")
            case b"later":
                return Later(0.05) if first else Done()
            case b"raises" if first:
                raise ZeroDivisionError("internal error")
            case _:
                return Done()

    async def scene() -> None:
        async with opened(amqp_url) as broker, client(amqp_url) as channel:
            await broker.connect()
            for body in (b"fine", b"hopeless", b"later", b"raises"):
                await put(channel, QUEUE, body, correlation_id="c", reply_to="r", message_id=f"m-{body.decode()}")
            async with consuming(broker, judge):
                (dead,) = await take(channel, DEAD, 1)
                async with asyncio.timeout(60):
                    while len(seen) < 6:
                        await asyncio.sleep(0.02)
                await asyncio.sleep(0.2)
            assert (dead.body, dead.message_id, dead.correlation_id) == (b"hopeless", "m-hopeless", "c")
            assert dead.headers["dm-reason"] == "malformed_body"
            assert dead.headers["dm-detail"] == "it is ? hopeless"
            assert dead.headers["dm-queue"] == QUEUE
            assert await rest(channel, QUEUE) == []
            assert await rest(channel, DEAD) == []

    asyncio.run(scene())
    assert sorted(delivery.body for delivery in seen) == [
        b"fine",
        b"hopeless",
        b"later",
        b"later",
        b"raises",
        b"raises",
    ]
    assert {(delivery.correlation_id, delivery.reply_to) for delivery in seen} == {("c", "r")}


def test_a_message_may_wait_longer_than_the_delivery_limit(amqp_url: str) -> None:
    seen = 0

    async def not_yet(_: Delivery) -> Verdict:
        nonlocal seen
        seen += 1
        return Later(0) if seen <= 2 * DELIVERY_LIMIT else Done()

    async def scene() -> None:
        async with opened(amqp_url) as broker, client(amqp_url) as channel:
            await broker.connect()
            await put(channel, QUEUE, b"patient")
            async with consuming(broker, not_yet):
                async with asyncio.timeout(60):
                    while seen <= 2 * DELIVERY_LIMIT:
                        await asyncio.sleep(0.02)
                await asyncio.sleep(0.2)
            assert await rest(channel, DEAD) == []
            assert await rest(channel, QUEUE) == []

    asyncio.run(scene())


def test_a_message_that_always_fails_becomes_a_dead_letter_by_the_delivery_limit(amqp_url: str) -> None:
    failed = 0

    async def fail(_: Delivery) -> Verdict:
        nonlocal failed
        failed += 1
        raise ZeroDivisionError

    async def scene() -> None:
        async with opened(amqp_url) as broker, client(amqp_url) as channel:
            await broker.connect()
            await put(channel, QUEUE, b"cursed", token="dm_of_whoever_sent_it")
            async with consuming(broker, fail):
                (dead,) = await take(channel, DEAD, 1)
            assert dead.body == b"cursed"
            assert (dead.headers["dm-reason"], dead.headers["dm-queue"]) == ("internal", QUEUE)
            assert "dm_of_whoever_sent_it" not in repr(dead.headers)
            assert failed == DELIVERY_LIMIT

    asyncio.run(scene())


@pytest.mark.slow
@pytest.mark.parametrize("poison", [REPLY_TO_NOT_UTF8, TIMESTAMP_BEYOND_TIME])
def test_properties_that_cannot_be_read_make_one_dead_letter_and_hurt_no_other(
    amqp_url: str, poison: RawProperties
) -> None:
    handled: list[bytes] = []

    async def note(delivery: Delivery) -> Verdict:
        handled.append(delivery.body)
        await asyncio.sleep(0.5)  # so that others are in hand when the connection breaks
        return Done()

    async def dead(channel: AbstractChannel) -> int:
        queue = await channel.declare_queue(DEAD, passive=True)
        return queue.declaration_result.message_count or 0

    async def scene() -> None:
        async with opened(amqp_url) as broker, client(amqp_url) as channel:
            await broker.connect()
            good = [b"good %d" % number for number in range(10)]
            for body in good[:5]:
                await put(channel, QUEUE, body)
            await put_raw(channel, QUEUE, b"poison", poison)
            for body in good[5:]:
                await put(channel, QUEUE, body)
            async with consuming(broker, note), asyncio.timeout(90):
                while await dead(channel) == 0 or not set(handled) >= set(good):
                    await asyncio.sleep(0.1)
                await asyncio.sleep(1)
            assert set(handled) == set(good)
            assert await dead(channel) == 1
            assert await rest(channel, QUEUE) == []

    asyncio.run(scene())


def test_a_message_in_hand_is_finished_when_consuming_is_cancelled(amqp_url: str) -> None:
    begun, finished = asyncio.Event(), False

    async def slow(_: Delivery) -> Verdict:
        nonlocal finished
        begun.set()
        await asyncio.sleep(0.5)
        finished = True
        return Done()

    async def scene() -> None:
        async with opened(amqp_url) as broker, client(amqp_url) as channel:
            await broker.connect()
            await put(channel, QUEUE, b"slow")
            async with consuming(broker, slow):
                await asyncio.wait_for(begun.wait(), 60)
            assert finished
            assert await rest(channel, QUEUE) == []

    asyncio.run(scene())


@pytest.mark.faults
@pytest.mark.slow
def test_consuming_goes_on_after_the_broker_was_stopped_and_a_message_in_hand_is_not_cut(rabbitmq: RabbitMq) -> None:
    url = rabbitmq.fresh_vhost()
    seen: list[bytes] = []
    cancelled = 0

    async def slow(delivery: Delivery) -> Verdict:
        nonlocal cancelled
        seen.append(delivery.body)
        try:
            await asyncio.sleep(1 if delivery.body == b"before" else 0)
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return Done()

    async def scene() -> None:
        async with opened(url) as broker:
            await broker.connect()
            async with consuming(broker, slow):
                async with client(url) as channel:
                    await put(channel, QUEUE, b"before")
                    await asyncio.sleep(0.3)
                async with away(rabbitmq):
                    await asyncio.sleep(0.1)
                async with client(url) as channel:
                    await put(channel, QUEUE, b"after")
                    async with asyncio.timeout(60):
                        while b"after" not in seen:
                            await asyncio.sleep(0.05)
            async with client(url) as channel:
                assert await rest(channel, QUEUE) == []

    asyncio.run(scene())
    assert seen[0] == b"before"
    assert cancelled == 0
    rabbitmq.drop_vhost(url)


@pytest.mark.slow
def test_consuming_that_is_cancelled_at_any_moment_ends_soon(amqp_url: str) -> None:
    async def done(_: Delivery) -> Verdict:
        return Done()

    async def one_after_the_other(chance: random.Random) -> None:
        for _ in range(25):
            async with opened(amqp_url) as broker, consuming(broker, done) as task:
                await asyncio.sleep(chance.random() * 0.12)  # in the middle of connecting, declaring, beginning …
                task.cancel()
                await asyncio.wait({task}, timeout=60)
                assert task.done(), "the cancellation was lost"

    async def scene() -> None:
        await asyncio.gather(*(one_after_the_other(random.Random(seed)) for seed in range(8)))

    asyncio.run(scene())
