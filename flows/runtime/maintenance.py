"""Work of flows that are no transfers: in a thread, under a lease that is renewed, stopped when that is lost.

The mover gives such a run a `Control` (`Services.maintenance`), by which a cancel in Prefect or a stopping mover
ends it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from prefect.runtime import flow_run as running
from sqlalchemy.orm import Session

from datamanager.engine.control import Control
from datamanager.errors import CatalogueUnavailable, DataManagerError, DutyTaken, InternalError, LeaseLost
from flows.runtime.services import Services
from models.core.leases import drop_lease, hold_lease
from models.database import write

LOOK_EVERY = 1.0  # seconds
STOP_WITHIN = 10.0
"""Seconds that a thread gets to end when the mover stops; then it is left to itself: it only reads, or was fenced."""

log = logging.getLogger(__name__)
P = ParamSpec("P")
T = TypeVar("T")


def this_run() -> UUID:
    """Return the identifier of the flow run that calls."""
    return UUID(str(running.get_id()))


def control_of(parts: Services) -> Control:
    """Return what stops the current run."""
    return parts.maintenance.setdefault(this_run(), Control())


@asynccontextmanager
async def sole_run(parts: Services, name: str) -> AsyncIterator[Control]:
    """Hold the lease of a kind of maintenance while the body works. Raises: DutyTaken when another run has it."""
    holder, lease = f"{parts.owner}:{this_run()}", parts.settings.lease

    def hold(session: Session) -> None:
        if not hold_lease(session, f"duty:{name}", holder, lease):
            raise LeaseLost(f"another run performs {name} now")

    control = control_of(parts)
    try:
        await write(parts.database, hold)
    except LeaseLost as taken:
        raise DutyTaken(taken.detail) from None
    try:
        async with kept(parts, hold, control):
            yield control
    finally:
        await asyncio.shield(write(parts.database, drop_lease, f"duty:{name}", holder))


@asynccontextmanager
async def kept(parts: Services, renew: Callable[[Session], None], control: Control) -> AsyncIterator[None]:
    """Call `renew` in a transaction with each heartbeat while the body works; LeaseLost of it stops the work."""
    keeping = asyncio.create_task(_keep(parts, renew, control))
    try:
        yield
    finally:
        keeping.cancel()
        await asyncio.wait([keeping])


async def threaded(control: Control, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Do blocking work in a thread. Raises: what `control` was stopped with, whatever the work raises then."""
    thread = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
    try:
        return await asyncio.shield(thread)
    except asyncio.CancelledError:
        control.stop(InternalError("the mover stops"))
        control.abort()
        thread.add_done_callback(note_abandoned)
        await asyncio.wait([thread], timeout=STOP_WITHIN)
        raise
    except DataManagerError as error:
        reason = control.stopping
        if reason is not None and reason is not error:
            raise reason from error  # what it waited for was broken to stop it
        raise


async def pause(control: Control, seconds: float) -> None:
    """Wait without a thread. Raises: what the work is to stop with."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        control.check()
        await asyncio.sleep(min(LOOK_EVERY, left))
    control.check()


async def _keep(parts: Services, renew: Callable[[Session], None], control: Control) -> None:
    every = parts.settings.heartbeat.total_seconds()
    renewed = time.monotonic()
    while True:
        await asyncio.sleep(min(LOOK_EVERY, every))
        if control.stopping is not None:
            control.abort()
            continue
        if time.monotonic() - renewed < every:
            continue
        renewal = asyncio.ensure_future(write(parts.database, renew))
        try:
            await asyncio.shield(renewal)
        except asyncio.CancelledError:
            # its thread can't be stopped: a renewal that comes after the lease was dropped would take it again
            renewal.add_done_callback(note_abandoned)
            await asyncio.wait([renewal])
            raise
        except LeaseLost as lost:
            control.stop(lost)
        except CatalogueUnavailable:
            continue  # what is written later reads it anyway
        renewed = time.monotonic()


def note_abandoned(thread: asyncio.Future[Any]) -> None:
    """Log how a thread ended that nobody waits for."""
    if not thread.cancelled() and (error := thread.exception()) is not None:
        log.info("an abandoned thread ended: %r", error)
