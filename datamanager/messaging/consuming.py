"""Consuming a queue of RabbitMQ: every message gets a verdict, and leaves the queue only when that was carried out."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from datamanager.errors import BrokerUnavailable, InternalError
from datamanager.messaging.broker import (
    CLOSE_TIMEOUT,
    CONNECT_TIMEOUT,
    DEAD_EXCHANGE,
    DEFAULT_EXCHANGE,
    DELIVERY_LIMIT,
    Broker,
    translated,
)

DRAIN_TIMEOUT = 10.0
"""Seconds that messages in hand get to be finished when consuming ends."""
RETRY_PAUSE = 1.0
"""Seconds before a message whose handler failed unexpectedly goes back to the queue."""
DETAIL_MAX = 2000
"""Characters of a dead letter's explanation."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A message as it arrived; nothing in it can be trusted."""

    body: bytes
    message_id: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    content_type: str | None = None
    redelivered: bool = False
    user_id: str | None = None
    """The user that sent it; the broker has compared it with the connection's."""
    headers: Mapping[str, object] = field(default_factory=dict, repr=False)
    """May contain a token: they are not logged, and not copied but for what a verdict says."""

    @property
    def is_last(self) -> bool:
        """Whether the broker itself would make a dead letter of the message, with all its headers, when it is returned
        once more."""
        count = self.headers.get("x-delivery-count")
        return isinstance(count, int) and count >= DELIVERY_LIMIT - 1


@dataclass(frozen=True, slots=True)
class Done:
    """The message did what it was sent for (or need not any more)."""


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The message can never be processed: keep it for a person, with the reason (a stable code, and a sentence)."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Later:
    """Something that the message needs is unavailable: put it back after `pause` seconds, as often as it takes, with
    these headers.
    """

    pause: float
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


TOO_OFTEN = DeadLetter(InternalError.code, f"it could not be processed {DELIVERY_LIMIT} times; see the log")
Verdict = Done | DeadLetter | Later
Handler = Callable[[Delivery], Awaitable[Verdict]]


class _RawMessage(Protocol):
    """A message of which aio-pika has interpreted nothing yet; one without a tag says that the queue is empty."""

    @property
    def body(self) -> bytes: ...
    @property
    def header(self) -> Any: ...
    @property
    def delivery_tag(self) -> int | None: ...
    @property
    def redelivered(self) -> bool | None: ...


class _RawChannel(Protocol):
    """The channel below aio-pika's own."""

    def basic_get(self, queue: str, *, timeout: float) -> Awaitable[_RawMessage]: ...
    def basic_ack(self, delivery_tag: int) -> Awaitable[Any]: ...
    def basic_nack(self, delivery_tag: int, *, requeue: bool) -> Awaitable[Any]: ...


class Consumption:
    """Hands the messages of `queue` to `handler`, up to `prefetch` at once. Belongs to the broker's event loop."""

    def __init__(
        self, broker: Broker, queue: str, handler: Handler, *, prefetch: int = 16, retry_pause: float = RETRY_PAUSE
    ) -> None:
        self._broker = broker
        self._queue = queue
        self._handler = handler
        self._prefetch = prefetch
        self._retry_pause = retry_pause
        self._broke_before = False
        self._running: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Consume until the connection breaks; may be called again then.

        A dead letter is confirmed by the broker before its message is acknowledged. Messages in hand are finished (for
        at most 10 s) when the connection breaks or the caller is cancelled; what isn't comes again. A handler that
        fails unexpectedly gets its message again, until that has failed DELIVERY_LIMIT times: then it is a dead letter.

        Raises: BrokerUnavailable, always in the end.
        """
        try:
            await self._consume()
        finally:
            self._broke_before = True

    async def _consume(self) -> None:
        address = self._broker.address
        channel = await self._broker.open_channel()
        broken = asyncio.Event()
        try:
            with translated(address):
                # the raw channel says when it ends, and hands out messages as they are
                raw = await channel.get_underlay_channel()
                raw.closing.add_done_callback(lambda _: broken.set())
                raw.on_consumer_cancel_callbacks.add(lambda _: broken.set())  # the queue was deleted
                if self._broke_before:
                    await self._taste(raw)
                await raw.basic_qos(prefetch_count=self._prefetch, timeout=CONNECT_TIMEOUT)
                consuming = await raw.basic_consume(
                    self._queue, lambda message: self._begin(raw, message), timeout=CONNECT_TIMEOUT
                )
            try:
                await broken.wait()
            finally:
                if not raw.is_closed:
                    with contextlib.suppress(BrokerUnavailable), translated(address):
                        await raw.basic_cancel(consuming.consumer_tag or "", timeout=CLOSE_TIMEOUT)
        finally:
            await self._finish()
            with contextlib.suppress(BrokerUnavailable), translated(address):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await channel.close()
        raise BrokerUnavailable(f"RabbitMQ at {address}: the connection was lost")

    async def _taste(self, raw: _RawChannel) -> None:
        """Take the first messages one by one.

        A message whose properties can't be decoded breaks the connection, and all that was delivered with it counts as
        failed once more. One by one, only the culprit meets the queue's delivery limit.
        """
        for _ in range(self._prefetch):
            message = await raw.basic_get(self._queue, timeout=CONNECT_TIMEOUT)
            if message.delivery_tag is None:
                return
            await self._begin(raw, message)
            await asyncio.gather(*self._running)

    async def _begin(self, raw: _RawChannel, message: _RawMessage) -> None:
        # a task of our own: the channel cancels its own ones when it closes, in the middle of whatever they do
        task = asyncio.create_task(self._settle(raw, message))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _settle(self, raw: _RawChannel, message: _RawMessage) -> None:
        tag = message.delivery_tag
        if tag is None:
            return
        properties = message.header.properties
        delivery = Delivery(
            body=message.body,
            message_id=properties.message_id,
            correlation_id=properties.correlation_id,
            reply_to=properties.reply_to,
            content_type=properties.content_type,
            redelivered=bool(message.redelivered),
            user_id=properties.user_id,
            headers=properties.headers or {},
        )
        try:
            await self._carry_out(await self._handler(delivery), delivery)
            with translated(self._broker.address):
                await raw.basic_ack(tag)
        except BrokerUnavailable as exc:
            _log.info("a message of %s will be redelivered: %s", self._queue, exc.detail)
        except Exception:  # noqa: BLE001 - whatever it is, this message must go back and the others must be processed
            _log.exception("a message of %s could not be processed; it is returned to the queue", self._queue)
            await asyncio.sleep(self._retry_pause)
            with contextlib.suppress(BrokerUnavailable), translated(self._broker.address):
                if delivery.is_last:
                    await self._carry_out(TOO_OFTEN, delivery)
                    await raw.basic_ack(tag)
                else:
                    await raw.basic_nack(tag, requeue=True)

    async def _carry_out(self, verdict: Verdict, delivery: Delivery) -> None:
        match verdict:
            case DeadLetter(reason=reason, detail=detail):
                _log.warning("a message of %s was sent to the dead-letter queue: %s: %s", self._queue, reason, detail)
                # the sentence may quote the message: a lone surrogate would not travel
                shown = detail[:DETAIL_MAX].encode("utf-8", "replace").decode("utf-8")
                headers = {"dm-reason": reason, "dm-detail": shown, "dm-queue": self._queue}
                await self._copy(delivery, DEAD_EXCHANGE, headers)
            case Later(pause=pause, headers=kept):
                await asyncio.sleep(pause)
                # a fresh copy: putting the message back would count against the queue's delivery limit
                await self._copy(delivery, DEFAULT_EXCHANGE, kept)
            case Done():
                pass

    async def _copy(self, delivery: Delivery, exchange: str, headers: Mapping[str, str]) -> None:
        await self._broker.publish(
            exchange,
            self._queue,
            delivery.body,
            message_id=delivery.message_id or uuid4().hex,
            mandatory=True,
            correlation_id=delivery.correlation_id,
            reply_to=delivery.reply_to,
            content_type=delivery.content_type,
            headers=dict(headers),
        )

    async def _finish(self) -> None:
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=DRAIN_TIMEOUT)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
