"""Named leases: work that one process does at a time (the outbox relay), and which movers are alive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from models.database import Database, insert_if_free, now, write
from models.tables import Lease

MOVER_PREFIX = "mover:"
RUN_PREFIX = "run:"
"""Of a flow run that has no transfer: its mover renews it as long as it works on the run."""


def hold_lease(
    session: Session, name: str, holder: str, duration: timedelta, details: dict[str, Any] | None = None
) -> bool:
    """Take or prolong a lease; False while another holder's has not run out."""
    time = now(session)
    values = {"name": name, "holder": holder, "until": time + duration, "details": details or {}}
    if insert_if_free(session, Lease, values):
        return True
    lease = session.get(Lease, name, with_for_update=True, populate_existing=True)
    if lease is None or (lease.holder != holder and lease.until > time):
        return False
    lease.holder, lease.until = holder, time + duration
    if details is not None:
        lease.details = details
    return True


def drop_lease(session: Session, name: str, holder: str) -> None:
    """Give a lease up, if it is ours."""
    session.execute(delete(Lease).where(Lease.name == name, Lease.holder == holder))


def is_held(session: Session, name: str, holder: str | None = None) -> bool:
    """Say whether somebody (or just `holder`) has a lease that has not run out."""
    query = select(Lease.name).where(Lease.name == name, Lease.until > now(session))
    if holder is not None:
        query = query.where(Lease.holder == holder)
    return session.scalar(query) is not None


def movers_online(session: Session) -> dict[str, bool]:
    """Return the movers that live, by name, and whether each reaches Prefect: so it does unless it says otherwise."""
    query = select(Lease).where(Lease.name.startswith(MOVER_PREFIX), Lease.until > now(session)).order_by(Lease.name)
    return {lease.holder: lease.details.get("prefect") is not False for lease in session.scalars(query)}


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
