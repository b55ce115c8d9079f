"""Why a queued transfer waits, as the status tells it: by the catalogue's own word, one reason at a time."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID

import pytest
from sqlalchemy import update

from models.access.visibility import ALL
from models.database import Database, now
from models.machines import health, limits
from models.machines.health import FAILURES
from models.machines.wait_reasons import reasons
from models.tables import Transfer
from models.transfers import cancel_pause, queue
from tests.support.bookkeeping import MACHINES, begin, get_transfer, order, register, submit

pytestmark = pytest.mark.dialect


def waits_for(database: Database, transfer: UUID) -> str | None:
    with database.read() as session:
        return reasons(session, MACHINES, [get_transfer(database, transfer)]).get(transfer)


def change(database: Database, transfer: UUID, **seconds: int) -> None:
    """Set times of a transfer, in seconds from now."""
    with database.write() as session:
        values = {name: now(session) + timedelta(seconds=value) for name, value in seconds.items()}
        session.execute(update(Transfer).where(Transfer.id == transfer).values(**values))


def to_beta(database: Database, name: str = "a") -> UUID:
    return submit(database, order("copy", register(database, name), machine="beta", dest=f"x/{name}"))


def test_what_may_be_taken_waits_for_nothing(database: Database) -> None:
    transfer = to_beta(database)
    assert waits_for(database, transfer) is None
    begin(database, transfer)
    assert waits_for(database, transfer) is None


def test_a_paused_one_waits_for_its_resume(database: Database) -> None:
    transfer = to_beta(database)
    with database.write() as session:
        cancel_pause.pause(session, transfer, ALL)
    assert waits_for(database, transfer) == "resume"
    with database.write() as session:
        cancel_pause.resume(session, transfer, ALL)
    assert waits_for(database, transfer) is None


def test_times_are_waited_for(database: Database) -> None:
    transfer = to_beta(database)
    change(database, transfer, not_before=60, retry_at=90)
    row = get_transfer(database, transfer)
    assert waits_for(database, transfer) == f"not_before {row.not_before:%Y-%m-%dT%H:%M:%SZ}"
    change(database, transfer, not_before=-1)
    assert waits_for(database, transfer) == f"retry at {row.retry_at:%Y-%m-%dT%H:%M:%SZ}"
    change(database, transfer, retry_at=-1)
    assert waits_for(database, transfer) is None


def test_machines_are_waited_for(database: Database) -> None:
    transfer, other = to_beta(database), to_beta(database, "b")
    here = submit(database, order("copy", register(database, "c"), machine="alpha", dest="x/c"))
    with database.write() as session:
        limits.change(session, MACHINES["beta"], bandwidth=None, max_transfers=1)
    assert waits_for(database, transfer) is None
    hold = begin(database, other)
    assert waits_for(database, transfer) == "machine beta: its limit of 1 transfers is reached"
    with database.write() as session:
        queue.requeue(session, hold)
        for _ in range(FAILURES):
            health.failed(session, "beta")
        circuit = health.current(session)["beta"].circuit
        assert circuit is not None
    assert waits_for(database, transfer) == f"machine beta: unreachable since {circuit.opened:%Y-%m-%dT%H:%M:%SZ}"
    with database.write() as session:
        drained = health.drain(session, "beta").drained
    assert waits_for(database, transfer) == f"machine beta: drained since {drained:%Y-%m-%dT%H:%M:%SZ}"
    assert waits_for(database, here) is None
