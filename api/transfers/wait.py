"""Waiting for transfers to end, without a thread and without a query per waiting client.

Movers tell `ended:{transfer}`; a message that is lost costs half a second (POLL), because while anybody waits one query
looks for the ends of all awaited transfers.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from uuid import UUID

import structlog
from anyio import CapacityLimiter
from anyio.to_thread import run_sync

from datamanager.errors import CatalogueUnavailable
from models.database import Database
from models.tables import Transfer
from models.transfers.submission import ended_among

POLL = 0.5  # seconds between two looks at the catalogue while somebody waits
MESSAGE = "ended:"
REMEMBERED = 1024  # ends told before anybody asked: a fast transfer's message overtakes its request
CHUNK = 1000  # identifiers in one query

log = structlog.get_logger(__name__)


class Waiter:
    """The clients of this process that wait for transfers. Belongs to the event loop that runs `run`.

    `poll` is how many seconds pass between two looks at the catalogue that no message has asked for.
    """

    def __init__(self, database: Database, poll: float = POLL) -> None:
        self._database = database
        self._poll = poll
        self._awaited: dict[UUID, set[asyncio.Future[Transfer]]] = {}
        self._told: OrderedDict[UUID, None] = OrderedDict()
        self._rung = asyncio.Event()
        self._somebody = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._limiter = CapacityLimiter(1)

    async def ended(self, transfer: UUID, patience: float | None = None) -> Transfer | None:
        """Return the transfer's row once it has ended; None when `patience` (seconds) has run out before.

        A client that goes away stops nothing: neither the transfer nor the others who wait for it.
        """
        future: asyncio.Future[Transfer] = asyncio.get_running_loop().create_future()
        waiting = self._awaited.setdefault(transfer, set())
        waiting.add(future)
        self._somebody.set()
        if transfer in self._told:
            self._rung.set()
        try:
            return await asyncio.wait_for(future, patience)
        except TimeoutError:
            return None
        finally:
            waiting.discard(future)
            if not waiting and self._awaited.get(transfer) is waiting:
                del self._awaited[transfer]

    def heard(self, message: str) -> None:
        """Take a wake message; may be called from any thread."""
        if not message.startswith(MESSAGE) or self._loop is None:
            return
        try:
            transfer = UUID(message.removeprefix(MESSAGE))
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
            await self._somebody.wait()
            try:
                await asyncio.wait_for(self._rung.wait(), self._poll)
            except TimeoutError:
                pass
            self._rung.clear()
            try:
                await self._look()
            except CatalogueUnavailable as exc:
                log.warning("waiting_without_catalogue", error=exc.detail)
                await asyncio.sleep(self._poll)
            if not self._awaited:
                self._somebody.clear()

    def _note(self, transfer: UUID) -> None:
        self._told[transfer] = None
        while len(self._told) > REMEMBERED:
            self._told.popitem(last=False)
        if transfer in self._awaited:
            self._rung.set()

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
