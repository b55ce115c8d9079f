"""The outbox relay: sends to RabbitMQ what the catalogue's transactions left in the outbox.

Every process that writes to the outbox runs one; a lease in the catalogue lets one at a time work, so messages of one
subject (a transfer, an object) leave in the order in which they were written. A message is marked only when the broker
has confirmed it: it arrives at least once, and after a crash perhaps twice (same CloudEvents id, same `sequence`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

from sqlalchemy.orm import Session

from datamanager.errors import CatalogueUnavailable
from datamanager.messaging.broker import REQUESTS_QUEUE, Broker
from deployments.periodic import every
from models.core.leases import drop_lease, hold_lease
from models.core.outbox import mark_sent, unsent
from models.database import Database, read, write
from models.tables import OutboxMessage

LEASE_NAME = "relay"
LEASE = timedelta(seconds=5)
BATCH = 200
"""Messages that are read at once."""
POLL = 1.0
"""Seconds between two looks at the outbox without a notification."""
RIVAL_PAUSE = 0.1
"""Seconds until the next look while another process holds the lease."""
RETRY_AFTER = 0.1
"""Seconds until the second attempt while the broker or the catalogue is away."""


@dataclass
class Relay:
    """Sends the outbox. `holder` names this process in the lease and must be unique. One event loop, except `notify`.

    `poll` is how many seconds pass between two looks at the outbox without a notification.
    """

    database: Database
    broker: Broker
    holder: str
    lease: timedelta = LEASE
    poll: float = POLL
    _notified: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _loop: asyncio.AbstractEventLoop | None = field(default=None, init=False)

    def notify(self) -> None:
        """Say that something was put into the outbox. Thread-safe, never waits."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop was closed since
                loop.call_soon_threadsafe(self._notified.set)

    async def run(self) -> None:
        """Send what there is, and what comes, until cancelled. Broker and catalogue may come and go."""
        self._loop = asyncio.get_running_loop()
        await every(self.poll, "relay the outbox", self._turn, notified=self._notified, retry_after=RETRY_AFTER)

    async def aclose(self) -> None:
        """Give up the lease, after `run` was cancelled, so that another process needn't wait for its end."""
        with contextlib.suppress(CatalogueUnavailable):
            await write(self.database, self._settle, [])

    async def _turn(self) -> float:
        """Send one batch; return how long to wait for the next. Raises: BrokerUnavailable, CatalogueUnavailable."""
        if not await read(self.database, unsent, 1):
            return self.poll
        await self.broker.connect()  # before the lease: who can't send must not keep others from it
        begun = time.monotonic()
        batch = await write(self.database, self._take)
        if batch is None:
            return RIVAL_PAUSE
        confirmed: list[int] = []
        try:
            await self._send(batch, begun, confirmed)
        finally:
            await write(self.database, self._settle, confirmed)
        return 0 if batch else self.poll

    async def _send(self, batch: list[OutboxMessage], begun: float, confirmed: list[int]) -> None:
        """Publish subject by subject side by side, each subject's messages one after the other.

        All ends before the lease does: nothing is begun after half of it, and nothing waits longer than 0.4 of it.
        """
        lease = self.lease.total_seconds()

        async def send_in_order(messages: list[OutboxMessage]) -> None:
            for message in messages:
                if time.monotonic() > begun + lease * 0.5:
                    return  # the rest is the next turn's
                await self.broker.publish(
                    message.exchange,
                    message.routing_key,
                    json.dumps(message.body, separators=(",", ":")).encode(),
                    message_id=str(message.body["id"]),
                    mandatory=message.routing_key == REQUESTS_QUEUE,
                    timeout=lease * 0.4,
                )
                confirmed.append(message.id)

        outcomes = await asyncio.gather(*map(send_in_order, _by_subject(batch)), return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    def _take(self, session: Session) -> list[OutboxMessage] | None:
        if not hold_lease(session, LEASE_NAME, self.holder, self.lease):
            return None
        return unsent(session, BATCH)

    def _settle(self, session: Session, confirmed: list[int]) -> None:
        # the lease goes in the same transaction: an idle relay holds nothing, so whoever writes next can send at once
        if confirmed:
            mark_sent(session, confirmed)
        drop_lease(session, LEASE_NAME, self.holder)


def _by_subject(batch: list[OutboxMessage]) -> list[list[OutboxMessage]]:
    subjects: defaultdict[UUID | None, list[OutboxMessage]] = defaultdict(list)
    for message in batch:
        subjects[message.subject].append(message)
    return list(subjects.values())
