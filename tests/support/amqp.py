"""A stranger's view of RabbitMQ: a plain client that shares no code with the Data Manager's own."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from pamqp.commands import Basic

from tests.support.rabbitmq import RabbitMq


@asynccontextmanager
async def client(url: str) -> AsyncIterator[AbstractChannel]:
    """Connect; yield a channel with confirms."""
    connection = await aio_pika.connect(url, timeout=60)
    async with connection:
        yield await connection.channel()


async def put(
    channel: AbstractChannel, queue: str, body: bytes, *, token: str | None = None, **properties: str
) -> None:
    """Publish straight to a queue; `token` is who asks."""
    message = aio_pika.Message(
        body,
        correlation_id=properties.get("correlation_id"),
        reply_to=properties.get("reply_to"),
        message_id=properties.get("message_id"),
        user_id=properties.get("user_id"),
        headers={} if token is None else {"dm-token": token},
    )
    await channel.default_exchange.publish(message, queue, mandatory=True, timeout=60)


async def take(
    channel: AbstractChannel, queue: str, count: int, *, timeout: float = 60
) -> list[AbstractIncomingMessage]:
    """Take `count` messages, in order. Raises: TimeoutError with what came instead."""
    source = await channel.get_queue(queue, ensure=False)
    taken: list[AbstractIncomingMessage] = []
    try:
        async with asyncio.timeout(timeout):
            while len(taken) < count:
                message = await source.get(fail=False)
                if message is None:
                    await asyncio.sleep(0.02)
                else:
                    await message.ack()
                    taken.append(message)
    except TimeoutError:
        raise TimeoutError(
            f"{queue} had {len(taken)} of {count}: {[message.body[:100] for message in taken]}"
        ) from None
    return taken


async def rest(channel: AbstractChannel, queue: str) -> list[bytes]:
    """Take what is left, without waiting."""
    source = await channel.get_queue(queue, ensure=False)
    bodies = []
    while (message := await source.get(fail=False)) is not None:
        await message.ack()
        bodies.append(message.body)
    return bodies


class RawProperties(Basic.Properties):
    """Properties of any bytes at all, as a hostile client would send them."""

    def __init__(self, flag: int, value: bytes) -> None:
        super().__init__()
        self._raw = struct.pack(">H", 1 << flag) + value

    def marshal(self) -> bytes:
        """Return the bytes given."""
        return self._raw


REPLY_TO_NOT_UTF8 = RawProperties(9, b"\x02\xff\xfe")
TIMESTAMP_BEYOND_TIME = RawProperties(6, b"\xff" * 8)


async def put_raw(channel: AbstractChannel, queue: str, body: bytes, properties: RawProperties) -> None:
    """Publish straight to a queue with such properties."""
    raw = await channel.get_underlay_channel()
    await raw.basic_publish(body, routing_key=queue, properties=properties, timeout=60)


async def listener(channel: AbstractChannel, name: str = "listener") -> str:
    """Bind a durable queue of its own to all of the Data Manager's events; return its name."""
    queue = await channel.declare_queue(name, durable=True)
    exchange = await channel.declare_exchange("dm.events", "topic", durable=True)
    await queue.bind(exchange, "#")
    return name


@asynccontextmanager
async def away(node: RabbitMq) -> AsyncIterator[None]:
    """Stop the broker, and start it again at the end, whatever happens."""
    try:
        await asyncio.to_thread(node.stop_app)
        yield
    finally:
        await asyncio.to_thread(node.start_app)
