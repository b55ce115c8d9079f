"""The broker against a real RabbitMQ, also one that is down, mute or frozen."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aio_pika.abc import AbstractChannel

from datamanager.errors import BrokerUnavailable, SettingsError
from datamanager.messaging import topology
from datamanager.messaging.broker import Broker
from datamanager.messaging.consuming import Consumption, DeadLetter, Delivery, Done, Handler, Later, Verdict
from models import outbox
from tests.support.amqp import (
    REPLY_TO_NOT_UTF8,
    TIMESTAMP_BEYOND_TIME,
    RawProperties,
    client,
    put,
    put_raw,
    rest,
    take,
)
from tests.support.ports import free_port
from tests.support.rabbitmq import RabbitMq

QUEUE, DEAD = topology.REQUESTS_QUEUE, topology.DEAD_QUEUE


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


def test_outbox_and_broker_mean_the_same_names() -> None:
    assert (outbox.REQUESTS_QUEUE, outbox.EVENTS_EXCHANGE) == (topology.REQUESTS_QUEUE, topology.EVENTS_EXCHANGE)


def test_what_is_declared_is_durable_quorum_and_has_a_delivery_limit(rabbitmq: RabbitMq) -> None:
    url = rabbitmq.fresh_vhost()

    async def scene() -> None:
        async with opened(url) as broker:
            await broker.connect()

    asyncio.run(scene())
    listed = rabbitmq.ctl("-p", url.rpartition("/")[2], "list_queues", "name", "type", "durable", "arguments")
    queues = {line.split("\t")[0]: line for line in listed.splitlines()}
    assert set(queues) >= {QUEUE, DEAD}
    for name in (QUEUE, DEAD):
        assert "quorum\ttrue" in queues[name]
    for argument in (
        '"x-delivery-limit",20',
        '"at-least-once"',
        '"reject-publish"',
        '"x-dead-letter-exchange","dm.dead"',
    ):
        assert argument in queues[QUEUE].replace(", ", ",")
    rabbitmq.drop_vhost(url)


def test_a_published_message_is_persistent_and_whole(amqp_url: str) -> None:
    async def scene() -> None:
        async with opened(amqp_url) as broker, client(amqp_url) as channel:
            body = os.urandom(500_000)
            await broker.publish("", QUEUE, body, message_id="one", correlation_id="c", reply_to="r", mandatory=True)
            (message,) = await take(channel, QUEUE, 1)
            assert (message.body, message.message_id, message.correlation_id) == (body, "one", "c")
            assert (message.reply_to, message.delivery_mode) == ("r", 2)

    asyncio.run(scene())


def test_only_a_mandatory_message_needs_a_queue(amqp_url: str) -> None:
    async def scene() -> None:
        async with opened(amqp_url) as broker, client(amqp_url) as channel:
            await broker.publish("dm.events", "dm.object.copied", b"{}", message_id="1")
            with pytest.raises(BrokerUnavailable):
                await broker.publish("", "nobody's queue", b"{}", message_id="2", mandatory=True)
            with pytest.raises(BrokerUnavailable):
                await broker.publish("no.such.exchange", "x", b"{}", message_id="3")
            await broker.publish("", QUEUE, b"after", message_id="4", mandatory=True)
            assert [message.body for message in await take(channel, QUEUE, 1)] == [b"after"]

    asyncio.run(scene())


def test_a_deleted_queue_is_declared_anew(amqp_url: str) -> None:
    async def scene() -> None:
        async with opened(amqp_url) as broker, client(amqp_url) as channel:
            await broker.connect()
            await channel.queue_delete(QUEUE)
            with pytest.raises(BrokerUnavailable):
                await broker.publish("", QUEUE, b"1", message_id="1", mandatory=True)
            await broker.publish("", QUEUE, b"1", message_id="1", mandatory=True)
            assert len(await take(channel, QUEUE, 1)) == 1

    asyncio.run(scene())


def test_a_broker_that_is_down_is_said_to_be_at_once() -> None:
    async def scene() -> float:
        broker, begun = Broker(f"amqp://guest:guest@127.0.0.1:{free_port()}/"), time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await broker.publish("", QUEUE, b"", message_id="1")
        return time.monotonic() - begun

    assert asyncio.run(scene()) < 1


def test_a_broker_that_accepts_and_says_nothing_is_given_up_after_five_seconds() -> None:
    async def scene() -> float:
        server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        broker, begun = Broker(f"amqp://guest:guest@127.0.0.1:{port}/"), time.monotonic()
        with pytest.raises(BrokerUnavailable):
            await broker.connect()
        taken = time.monotonic() - begun
        server.close()
        return taken

    assert 4 < asyncio.run(scene()) < 6


@pytest.mark.faults
def test_a_broker_that_freezes_fails_a_publish_within_its_bound(rabbitmq: RabbitMq) -> None:
    url = rabbitmq.fresh_vhost()

    async def scene() -> float:
        async with opened(url) as broker:
            await broker.connect()
            os.kill(rabbitmq.process.pid, signal.SIGSTOP)
            begun = time.monotonic()
            try:
                with pytest.raises(BrokerUnavailable):
                    await broker.publish("", QUEUE, b"1", message_id="1", mandatory=True, timeout=1)
                return time.monotonic() - begun
            finally:
                os.kill(rabbitmq.process.pid, signal.SIGCONT)

    assert asyncio.run(scene()) < 4
    rabbitmq.drop_vhost(url)


def test_no_log_line_and_no_error_has_the_password(amqp_url: str, caplog: pytest.LogCaptureFixture) -> None:
    password = "kept-to-ourselves"
    address = amqp_url.partition("@")[2]

    async def scene() -> None:
        for url in (f"amqp://guest:{password}@{address}", f"amqp://guest:{password}@127.0.0.1:{free_port()}/"):
            with pytest.raises(BrokerUnavailable) as failure:
                await Broker(url).connect()
            chain: BaseException | None = failure.value
            while chain is not None:
                assert password not in repr(chain) + str(chain)
                chain = chain.__cause__
        with pytest.raises(SettingsError) as refused:
            Broker(f"amqp://guest:{password}@127.0.0.1:port/")
        assert password not in str(refused.value)

    with caplog.at_level(logging.DEBUG):
        asyncio.run(scene())
    assert "127.0.0.1" in caplog.text, "nothing was logged: the test proves nothing"
    assert password not in caplog.text


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
                raise ZeroDivisionError("a fault of ours")
            case _:
                return Done()

    async def scene() -> None:
        async with opened(amqp_url) as broker, client(amqp_url) as channel:
            await broker.connect()
            for body in (b"fine", b"hopeless", b"later", b"raises"):
                await put(channel, QUEUE, body, correlation_id="c", reply_to="r", message_id=f"m-{body.decode()}")
            async with consuming(broker, judge):
                (dead,) = await take(channel, DEAD, 1)
                async with asyncio.timeout(5):
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
        return Later(0) if seen <= 2 * topology.DELIVERY_LIMIT else Done()

    async def scene() -> None:
        async with opened(amqp_url) as broker, client(amqp_url) as channel:
            await broker.connect()
            await put(channel, QUEUE, b"patient")
            async with consuming(broker, not_yet):
                async with asyncio.timeout(10):
                    while seen <= 2 * topology.DELIVERY_LIMIT:
                        await asyncio.sleep(0.02)
                await asyncio.sleep(0.2)
            assert await rest(channel, DEAD) == []
            assert await rest(channel, QUEUE) == []

    asyncio.run(scene())


def test_a_message_that_always_fails_becomes_a_dead_letter_by_the_delivery_limit(amqp_url: str) -> None:
    async def fail(_: Delivery) -> Verdict:
        raise ZeroDivisionError

    async def scene() -> None:
        async with opened(amqp_url) as broker, client(amqp_url) as channel:
            await broker.connect()
            await put(channel, QUEUE, b"cursed")
            async with consuming(broker, fail):
                (dead,) = await take(channel, DEAD, 1, timeout=30)
            assert dead.body == b"cursed"
            assert dead.headers["x-first-death-reason"] == "delivery_limit"

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
                await asyncio.wait_for(begun.wait(), 5)
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
                await asyncio.to_thread(rabbitmq.stop_app)
                await asyncio.to_thread(rabbitmq.start_app)
                async with client(url) as channel:
                    await put(channel, QUEUE, b"after")
                    async with asyncio.timeout(20):
                        while b"after" not in seen:
                            await asyncio.sleep(0.05)
            async with client(url) as channel:
                assert await rest(channel, QUEUE) == []

    asyncio.run(scene())
    assert seen[0] == b"before"
    assert cancelled == 0
    rabbitmq.drop_vhost(url)


def test_nothing_is_left_behind(amqp_url: str, recwarn: pytest.WarningsRecorder) -> None:
    async def scene() -> int:
        async with opened(amqp_url) as broker:
            await broker.publish("", QUEUE, b"1", message_id="1", mandatory=True)
        await broker.close()
        await asyncio.sleep(0.1)
        return len(asyncio.all_tasks()) - 1

    before = len(os.listdir("/proc/self/fd"))
    assert asyncio.run(scene()) == 0
    assert len(os.listdir("/proc/self/fd")) == before
    assert [warning for warning in recwarn if warning.category is ResourceWarning] == []
