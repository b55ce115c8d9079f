"""RabbitMQ: one connection, what is declared on it, and confirmed publishing (https://www.rabbitmq.com/docs/confirms).

A connection that fails in any way is dropped as a whole and made anew by the next one who needs it: there is no
half-broken state to reason about, and nothing waits for a broker longer than the bounds below. RabbitMQ's own
vocabulary ends here: callers see `BrokerUnavailable` and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

import aio_pika
from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from yarl import URL

from datamanager.errors import BrokerUnavailable, SettingsError

DEFAULT_EXCHANGE = ""
REQUESTS_QUEUE = "dm.requests"
EVENTS_EXCHANGE = "dm.events"
DEAD_EXCHANGE = "dm.dead"
DEAD_QUEUE = "dm.dead-letters"
OWN_PREFIX = "dm."
DIRECT_REPLY_TO = "amq.rabbitmq.reply-to."
"""Begins an address that only the requester's channel can have (https://www.rabbitmq.com/docs/direct-reply-to)."""
DELIVERY_LIMIT = 20
"""How often a message may come back unprocessed until it is a dead letter."""

CONNECT_TIMEOUT = 5.0
"""Seconds for a connection, its channel and the declarations together."""
PUBLISH_TIMEOUT = 5.0
"""Seconds for the broker's confirm."""
CLOSE_TIMEOUT = 2.0
"""Seconds for an orderly close."""
HEARTBEAT = 10
"""Seconds between heartbeats; a broker that stopped answering is noticed after about three of them."""
CLOUD_EVENT = "application/cloudevents+json"


class Broker:
    """One lazily made connection to RabbitMQ. Belongs to one event loop; its methods may run side by side there.

    `url` is `amqp://user:password@host:port/vhost`; the password is never logged. `name` is shown in RabbitMQ's tools.
    Publishing and consuming want a broker object each: short of memory, RabbitMQ stops reading from publishers.
    """

    def __init__(self, url: str, *, name: str = "data-manager") -> None:
        try:
            parsed = URL(url)
            self.address = f"{parsed.host}:{parsed.port or (5671 if parsed.scheme == 'amqps' else 5672)}"
            self._url = parsed.update_query({"heartbeat": str(HEARTBEAT), "name": name})
        except ValueError:
            raise SettingsError("the broker's URL must be like amqp://user:password@host:5672/vhost") from None
        self._connection: AbstractConnection | None = None
        self._publishing: AbstractChannel | None = None
        self._connecting = asyncio.Lock()

    async def connect(self) -> None:
        """Make sure that there is a connection with everything declared. Raises: BrokerUnavailable within 5 s."""
        await self._connected()

    async def close(self) -> None:
        """Close the connection. Idempotent; the next use opens another one."""
        connection, self._connection, self._publishing = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(BrokerUnavailable), translated(self.address):
                await _close(connection)

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        *,
        message_id: str,
        mandatory: bool = False,
        correlation_id: str | None = None,
        reply_to: str | None = None,
        content_type: str | None = CLOUD_EVENT,
        headers: dict[str, str] | None = None,
        timeout: float = PUBLISH_TIMEOUT,
    ) -> None:
        """Publish a persistent message; return when the broker has confirmed it.

        With `mandatory`, a message that no queue takes is a failure, without it is none. After an error the message may
        have arrived nevertheless. Calls may run at once; their order is kept only if each awaits the one before.

        Raises: BrokerUnavailable.
        """
        _, channel = await self._connected()
        message = aio_pika.Message(
            body,
            content_type=content_type,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=message_id,
            correlation_id=correlation_id,
            reply_to=reply_to,
            headers=dict(headers or {}),
        )
        try:
            with translated(self.address):
                target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
                await target.publish(message, routing_key, mandatory=mandatory, timeout=timeout)
        except BrokerUnavailable:
            if self._publishing is channel:  # not a newer one
                await self.close()
            raise

    async def open_channel(self) -> AbstractChannel:
        """Open another channel, for consuming; it ends with the connection. Raises: BrokerUnavailable within 10 s."""
        connection, _ = await self._connected()
        with translated(self.address):
            async with asyncio.timeout(CONNECT_TIMEOUT):
                channel = connection.channel()
                await channel.initialize()
        return channel

    async def _connected(self) -> tuple[AbstractConnection, AbstractChannel]:
        """Return the connection and its channel for publishing, both open, connecting first where needed."""
        async with self._connecting:
            if self._connection is not None and self._publishing is not None and not self._publishing.is_closed:
                return self._connection, self._publishing
            await self.close()
            with translated(self.address):
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    self._connection, self._publishing = await _open(self._url)
            return self._connection, self._publishing


async def _open(url: URL) -> tuple[AbstractConnection, AbstractChannel]:
    connection = await aio_pika.connect(url)
    try:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        await _declare(channel)
    except BaseException:
        with contextlib.suppress(TimeoutError):
            await _close(connection)
        raise
    return connection, channel


async def _declare(channel: AbstractChannel) -> None:
    """Declare exchanges, queues and the binding of the dead letters. Idempotent. Written for RabbitMQ 3.10 and later.

    Everything is durable; queues are quorum queues (https://www.rabbitmq.com/docs/quorum-queues).
    """
    await channel.declare_exchange(EVENTS_EXCHANGE, ExchangeType.TOPIC, durable=True)
    dead = await channel.declare_exchange(DEAD_EXCHANGE, ExchangeType.FANOUT, durable=True)
    dead_letters = await channel.declare_queue(DEAD_QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
    await dead_letters.bind(dead, "")
    await channel.declare_queue(
        REQUESTS_QUEUE,
        durable=True,
        arguments={
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": DEAD_EXCHANGE,
            # a dead letter leaves this queue only when the other has it; that goes only with refusing when full
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        },
    )


async def _close(connection: AbstractConnection) -> None:
    async with asyncio.timeout(CLOSE_TIMEOUT):
        await connection.close()


@contextmanager
def translated(address: str) -> Iterator[None]:
    """Turn whatever the libraries raise into BrokerUnavailable, with its cause. `address`: host:port, for the message.

    To be put around their calls only. A cancellation of the caller's task always comes out as one: the libraries
    sometimes lose it (asyncio.wait_for does until Python 3.12) or make another error of it, and sometimes end a waiting
    call in this way though nobody cancelled it.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task is not None else 0

    def cancelled() -> bool:
        return task is not None and task.cancelling() > before

    try:
        yield
    except asyncio.CancelledError as exc:
        if cancelled():
            raise
        raise BrokerUnavailable(f"RabbitMQ at {address}: the connection was lost") from exc
    except (*CONNECTION_EXCEPTIONS, ValueError, ArithmeticError) as exc:
        # the last two: a frame that can't be decoded ends every call that waits on the connection
        if cancelled():
            raise asyncio.CancelledError from exc
        raise BrokerUnavailable(f"RabbitMQ at {address}: {str(exc) or type(exc).__name__}") from exc
    if cancelled():
        raise asyncio.CancelledError
