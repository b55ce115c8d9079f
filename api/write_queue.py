"""The requests' changes of the catalogue, one transaction at a time on SQLite: those that come while one is committed
share the next one.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from sqlalchemy.orm import Session

from models.core.group_commit import Change, Outcome, commit_group
from models.database import Database

MOST = 64
"""Changes in one transaction."""

T = TypeVar("T")
Entry = tuple[Change, asyncio.Future[Any]]
"""A change and who waits for it."""


class WriteQueue:
    """Changes in the order of their requests. Belongs to one event loop."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[Entry] = deque()
        self._working: asyncio.Task[None] | None = None
        self._limiter = CapacityLimiter(1)

    async def run(self, change: Callable[[Session], T]) -> T:
        """Return what `change` returned, once it is committed. A caller that is cancelled before it begins takes it
        back. Raises: CatalogueUnavailable and what `change` raises; nothing of it was changed then.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        request = contextvars.copy_context()  # what the change logs has the request's identifier

        def of_request(session: Session) -> T:
            return request.run(change, session)

        self._waiting.append((of_request, done))
        if self._working is None:
            self._working = asyncio.create_task(self._work(), context=contextvars.Context())
        return await done

    async def _work(self) -> None:
        try:
            while self._waiting:
                taken = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
                group = [(change, done) for change, done in taken if not done.done()]
                if group:
                    left = await self._commit(group)
                    self._waiting.extendleft(reversed(left))
        finally:
            self._working = None

    async def _commit(self, group: list[Entry]) -> list[Entry]:
        """Commit changes and tell those who wait; return the changes that are left for the next transaction."""
        try:
            outcomes = await run_sync(
                commit_group, self._database, [change for change, _ in group], limiter=self._limiter
            )
        except Exception as error:  # noqa: BLE001  # whatever it is, those who wait get it
            outcomes = [Outcome(error=error)] * len(group)
        for (_, done), outcome in zip(group, outcomes, strict=False):
            if done.done():
                continue  # its caller was cancelled meanwhile
            if outcome.error is not None:
                done.set_exception(outcome.error)
            else:
                done.set_result(outcome.value)
        return group[len(outcomes) :]
