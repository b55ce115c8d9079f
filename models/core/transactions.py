"""The catalogue from an event loop: a transaction in a thread, and a lease that one process holds at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy.orm import Session

from models.core.leases import drop_lease, hold_lease
from models.database import Database

P = ParamSpec("P")
T = TypeVar("T")
Query = Callable[Concatenate[Session, P], T]


async def read(database: Database, query: Query[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Return `query(session, …)`, run in a thread. Raises: CatalogueUnavailable, and what the query raises."""

    def transaction() -> T:
        with database.read() as session:
            return query(session, *args, **options)

    return await asyncio.to_thread(transaction)


async def write(database: Database, change: Query[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Return `change(session, …)`, run in a thread and committed. Raises: CatalogueUnavailable, and what it raises."""

    def transaction() -> T:
        with database.write() as session:
            return change(session, *args, **options)

    return await asyncio.to_thread(transaction)


@asynccontextmanager
async def leased(database: Database, lease: str, owner: str, within: timedelta) -> AsyncIterator[bool]:
    """Hold a lease inside. False: another process holds it; if it dies, the lease is free after `within`."""
    if not await write(database, hold_lease, lease, owner, within):
        yield False
        return
    try:
        yield True
    finally:
        await write(database, drop_lease, lease, owner)
