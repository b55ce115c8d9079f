"""The broker against a real RabbitMQ, also one that is down, mute or frozen."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from datamanager.errors import BrokerUnavailable, SettingsError
from datamanager.messaging.broker import DEAD_QUEUE, EVENTS_EXCHANGE, REQUESTS_QUEUE, Broker
from models.core import outbox
from tests.support.amqp import (
    client,
    take,
)
from tests.support.ports import free_port
from tests.support.process import open_files, signal_each
from tests.support.rabbitmq import RabbitMq

QUEUE, DEAD = REQUESTS_QUEUE, DEAD_QUEUE


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Broker]:
    broker = Broker(url)
    try:
        yield broker
    finally:
        await broker.close()


def test_outbox_and_broker_mean_the_same_names() -> None:
    assert (outbox.REQUESTS_QUEUE, outbox.EVENTS_EXCHANGE) == (REQUESTS_QUEUE, EVENTS_EXCHANGE)


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
    async def scene() -> None:
        broker = Broker(f"amqp://guest:guest@127.0.0.1:{free_port()}/")
        with pytest.raises(BrokerUnavailable) as failure:
            await broker.publish("", QUEUE, b"", message_id="1")
        assert isinstance(failure.value.__cause__, ConnectionError), "no patience that ran out, and no further try"

    asyncio.run(scene())


def test_a_broker_that_accepts_and_says_nothing_is_given_up_after_five_seconds() -> None:
    async def scene() -> float:
        server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        broker, begun = Broker(f"amqp://guest:guest@127.0.0.1:{port}/"), time.monotonic()
        with pytest.raises(BrokerUnavailable) as failure:
            await broker.connect()
        assert isinstance(failure.value.__cause__, TimeoutError)
        taken = time.monotonic() - begun
        server.close()
        return taken

    assert 4 < asyncio.run(scene()) < 60


@pytest.mark.faults
def test_a_broker_that_freezes_fails_a_publish_within_its_bound(rabbitmq: RabbitMq) -> None:
    url = rabbitmq.fresh_vhost()

    async def scene() -> None:
        async with opened(url) as broker:
            await broker.connect()
            signal_each([rabbitmq.process.pid], signal.SIGSTOP)
            try:
                with pytest.raises(BrokerUnavailable) as failure:
                    await broker.publish("", QUEUE, b"1", message_id="1", mandatory=True, timeout=1)
            finally:
                os.kill(rabbitmq.process.pid, signal.SIGCONT)
            # its own bound ended it: missing heartbeats, much later, would have broken the connection
            assert isinstance(failure.value.__cause__, TimeoutError)

    asyncio.run(scene())
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


def test_nothing_is_left_behind(amqp_url: str, recwarn: pytest.WarningsRecorder) -> None:
    async def scene() -> int:
        async with opened(amqp_url) as broker:
            await broker.publish("", QUEUE, b"1", message_id="1", mandatory=True)
        await broker.close()
        await asyncio.sleep(0.1)
        return len(asyncio.all_tasks()) - 1

    before = Counter(open_files())
    assert asyncio.run(scene()) == 0
    assert not Counter(open_files()) - before
    assert [warning for warning in recwarn if warning.category is ResourceWarning] == []
