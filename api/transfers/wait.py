"""Waiting for transfers to end, without a thread and without a query per waiting client.

Movers send `ended:{transfer}`: as datagrams on this host, with PostgreSQL by LISTEN/NOTIFY from others. A message that
is lost costs half a second (POLL), because while anybody waits one query looks for the ends of all awaited transfers.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from uuid import UUID

import structlog
from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.requests import Request

from api.context import Context
from datamanager.errors import CatalogueUnavailable
from datamanager.messaging.notifications import NotificationSocket
from models.core.listen import Listener
from models.database import Database
from models.tables import Transfer
from models.transfers.lookup import ended_among

POLL = 0.5  # seconds between two looks at the catalogue while somebody waits
ENDED = "ended:"
REMEMBERED = 1024  # ends that nobody waits for yet: a fast transfer's message overtakes its request
CHUNK = 1000  # identifiers in one query

log = structlog.get_logger(__name__)


class Waiter:
    """The clients of this process that wait for transfers. Belongs to the event loop that runs `run`.

    `poll` is how many seconds pass between two looks at the catalogue without a message.
    """

    def __init__(self, database: Database, poll: float = POLL) -> None:
        self._database = database
        self._poll = poll
        self._awaited: dict[UUID, set[asyncio.Future[Transfer]]] = {}
        self._already_ended: OrderedDict[UUID, None] = OrderedDict()
        self._notified = asyncio.Event()
        self._anybody_waits = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limiter = CapacityLimiter(1)

    async def ended(self, transfer: UUID, patience: float | None = None) -> Transfer | None:
        """Return the transfer's row once it has ended; None when `patience` (seconds) has run out before.

        A client that goes away stops nothing: neither the transfer nor the others who wait for it.
        """
        future: asyncio.Future[Transfer] = asyncio.get_running_loop().create_future()
        waiting = self._awaited.setdefault(transfer, set())
        waiting.add(future)
        self._anybody_waits.set()
        if transfer in self._already_ended:
            self._notified.set()
        try:
            return await asyncio.wait_for(future, patience)
        except TimeoutError:
            return None
        finally:
            waiting.discard(future)
            if not waiting and self._awaited.get(transfer) is waiting:
                del self._awaited[transfer]

    def notify(self, message: str) -> None:
        """Take a message; may be called from any thread."""
        if not message.startswith(ENDED) or self._loop is None:
            return
        try:
            transfer = UUID(message.removeprefix(ENDED))
        except ValueError:
            return  # anybody on this host can write into the socket
        try:
            self._loop.call_soon_threadsafe(self._note, transfer)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more

    async def run(self) -> None:
        """Look for ends until cancelled."""
        self._loop = asyncio.get_running_loop()
        while True:
            await self._anybody_waits.wait()
            try:
                await asyncio.wait_for(self._notified.wait(), self._poll)
            except TimeoutError:
                pass
            self._notified.clear()
            try:
                await self._look()
            except CatalogueUnavailable as exc:
                log.warning("waiting_without_catalogue", error=exc.detail)
                await asyncio.sleep(self._poll)
            if not self._awaited:
                self._anybody_waits.clear()

    def _note(self, transfer: UUID) -> None:
        self._already_ended[transfer] = None
        while len(self._already_ended) > REMEMBERED:
            self._already_ended.popitem(last=False)
        if transfer in self._awaited:
            self._notified.set()

    async def _look(self) -> None:
        ids = list(self._awaited)
        for start in range(0, len(ids), CHUNK):
            some = ids[start : start + CHUNK]
            for row in await run_sync(self._ended_among, some, limiter=self._limiter):
                for future in self._awaited.pop(row.id, ()):
                    if not future.done():
                        future.set_result(row)

    def _ended_among(self, ids: list[UUID]) -> list[Transfer]:
        with self._database.read() as session:
            return ended_among(session, ids)


def waiter_of(request: Request) -> Waiter:
    """Return the waiter of the app that serves the request."""
    waiter: Waiter = request.app.state.waiter
    return waiter


@contextmanager
def listening(context: Context, waiter: Waiter) -> Iterator[None]:
    """Pass the messages of movers to the waiter. Raises: OSError when the socket can't be made."""
    with NotificationSocket(context.run_directory, "api") as own, closing(Listener(context.database, waiter.notify)):
        own.listen(waiter.notify)
        yield
