"""What a mover does with the messages of `dm.requests`: take a transfer, or enter a workflow system's request.

A message is acknowledged as soon as its work is recorded, never after a transfer: RabbitMQ's consumer timeout and
heartbeats must not meet a long one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import assert_never
from uuid import UUID

from datamanager.errors import (
    BrokerUnavailable,
    NotAllowed,
    NotAuthenticated,
    ObjectNotFound,
    QuotaExceeded,
    SecretsUnreadable,
    ServiceError,
)
from datamanager.identity.grant import Grant, Means
from datamanager.identity.quotas import NO_QUOTAS, Quotas
from datamanager.machines import Machines
from datamanager.messaging.broker import DEFAULT_EXCHANGE, DIRECT_REPLY_TO, OWN_PREFIX, REQUESTS_QUEUE, Broker
from datamanager.messaging.consuming import Consumption, DeadLetter, Delivery, Done, Later, Verdict
from datamanager.sealing import Sealer
from deployments.amqp.senders import MessageSenders, grant_of_sender
from deployments.amqp.submission import Call, Event, Refusal, enter, read_message
from deployments.periodic import every
from models.access.refusals import Refusals, RefusedRequest
from models.access.requester import identify, requested, requester
from models.database import Database
from models.submission import SourceCheck

PREFETCH = 16
"""Messages in hand at once."""
LATER = 2.0
"""Seconds until a message is tried again whose catalogue or orchestrator is away."""
RETRY_AFTER = 0.1
"""Seconds until the second attempt while the broker is away."""
REFUSED = frozenset(cls.code for cls in (NotAuthenticated, NotAllowed, ObjectNotFound, QuotaExceeded))
"""Codes of refusals that the audit trail records."""
SETTLED = 5.0
"""Seconds after which a connection counts as having worked."""

_log = logging.getLogger(__name__)

OnTransfer = Callable[[UUID], Awaitable[bool]]


@dataclass
class RequestConsumer:
    """Consumes `dm.requests`. Belongs to the broker's event loop; the broker is best one of its own.

    `on_transfer` takes a transfer; it returns when the flow run exists, or the transfer can't be taken (now, or ever).
    A ServiceError of it brings the message back later. `check` is what HTTP checks of a request besides its fields.
    `senders` knows who sends a request; None: whoever sends may do everything. `sealer` seals what is secret in their
    URLs. Answers go to `reply_to` only where that begins with `reply_prefix`, or is a reply address that RabbitMQ made
    for the requester. `on_entered` is called after something was put into the outbox (the relay's `notify`). `refusals`
    are those that the audit trail does not have yet.
    """

    database: Database
    machines: Machines
    broker: Broker
    on_transfer: OnTransfer
    reply_prefix: str
    senders: MessageSenders | None
    check: SourceCheck | None = None
    sealer: Sealer | None = None
    on_entered: Callable[[], None] | None = None
    quotas: Quotas = NO_QUOTAS
    refusals: Refusals = field(default_factory=Refusals)
    later: float = LATER

    async def run(self) -> None:
        """Consume until cancelled; the broker may be away at the start and at any time."""
        self._consumption = Consumption(self.broker, REQUESTS_QUEUE, self._handle, prefetch=PREFETCH)
        self._threads = ThreadPoolExecutor(PREFETCH, thread_name_prefix="requests")
        try:
            await every(RETRY_AFTER, "consume requests", self._consume, retry_after=RETRY_AFTER)
        finally:
            self._threads.shutdown(wait=False)

    async def _consume(self) -> None:
        begun = time.monotonic()
        try:
            await self._consumption.run()
        except BrokerUnavailable as exc:
            if time.monotonic() - begun < SETTLED:
                raise
            _log.warning("no messages are consumed: %s", exc.detail)

    async def _handle(self, delivery: Delivery) -> Verdict:
        message = read_message(delivery.body)
        try:
            match message:
                case DeadLetter():
                    return message
                case UUID():
                    await self.on_transfer(message)
                case Call():
                    await self._answer(delivery, message)
                case _:
                    assert_never(message)
        except BrokerUnavailable:
            raise
        except ServiceError as exc:
            _log.info("a message of %s waits: %s", REQUESTS_QUEUE, exc.detail)
            return Later(self.later, {} if self.senders is None else self.senders.kept(delivery))
        return Done()

    async def _answer(self, delivery: Delivery, call: Call) -> None:
        # not in the mover's shared threads: a name server that is silent would keep them from its transfers
        entering = partial(self._enter, delivery, call)
        event = await asyncio.get_running_loop().run_in_executor(self._threads, entering)
        if self.on_entered is not None:
            self.on_entered()
        if not delivery.reply_to:
            return
        allowed = (self.reply_prefix, DIRECT_REPLY_TO)
        if delivery.reply_to.startswith(OWN_PREFIX) or not delivery.reply_to.startswith(allowed):
            # who may send us requests may not be allowed to write to every queue that we can write to
            _log.warning(
                "reply_to %r does not begin with %r (DM_REPLY_PREFIX); the answer is on dm.events only",
                delivery.reply_to,
                self.reply_prefix,
            )
            return
        await self.broker.publish(
            DEFAULT_EXCHANGE,
            delivery.reply_to,
            json.dumps(event).encode(),
            message_id=event["id"],
            correlation_id=delivery.correlation_id,
        )

    def _enter(self, delivery: Delivery, call: Call) -> Event:
        """Enter a request of who sent it; blocks. Raises: CatalogueUnavailable."""
        grant: Grant | Refusal
        with requested(f"queue {REQUESTS_QUEUE}", call.id, Means.BROKER):
            try:
                grant = grant_of_sender(self.senders, delivery)
                identify(grant)
            except (NotAuthenticated, NotAllowed, SecretsUnreadable) as exc:
                grant = exc
            event = enter(self.database, self.machines, call, grant, self.check, self.sealer, self.quotas)
            code = event["data"].get("code")
            if code in REFUSED:
                self.refusals.note(RefusedRequest(requester(), code, call.kind.value, call.source))
            return event
