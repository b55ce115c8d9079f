"""How an attempt that raised leaves its transfer: ended when that is sure, else for the next attempt to look."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from sqlalchemy import update

from datamanager.domain.states import TransferKind
from datamanager.engine.control import Control
from datamanager.errors import (
    Cancelled,
    CatalogueUnavailable,
    ConnectionLost,
    DataManagerError,
    DeadlineExceeded,
    DestinationExists,
    LoginOutput,
    MachineUnavailable,
)
from datamanager.settings import load_settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from flows.runtime.lifecycle import _acquire_lease, _begin, _record_failure
from flows.runtime.services import Services
from models.access.visibility import ALL
from models.batches import results as batch_results
from models.database import Database
from models.migrate import upgrade
from models.tables import Transfer
from models.transfers import queue
from models.transfers.cancel_pause import stop_reason
from models.transfers.lookup import get_transfer
from models.transfers.queue import TransferLease
from tests.support.batches import FACTS, batch
from tests.support.bookkeeping import LEASE, MACHINES, begin, order, register, submit
from tests.support.postgres import Postgres

T = TypeVar("T")
INTENT = {"size": 5, "sha256": None, "mtime": 1}


@pytest.fixture
def parts(database: Database, tmp_path: Path) -> Iterator[Services]:
    """A mover's parts over a real catalogue."""
    parts = parts_of(database, tmp_path)
    yield parts
    parts.storages.close()


def parts_of(database: Database, home: Path) -> Services:
    settings = load_settings(home=home, max_attempts=3)
    return Services(
        settings, MACHINES, database, Storages(MACHINES, home / "run"), EgressGuard(()), "mover", notify=lambda _: None
    )


def begun(parts: Services, *, intent: bool, attempts: int = 1) -> TransferLease:
    """Return the hold on a copy that runs."""
    transfer = submit(parts.database, order("copy", register(parts.database, f"a-{uuid4()}"), f"b-{uuid4()}"))
    with parts.database.write() as session:
        hold = queue.take(session, "mover", LEASE, 1, only=transfer)[0]
    with parts.database.write() as session:
        row = queue.begin(session, hold, uuid4())
        row.attempts = attempts
    if intent:
        with parts.database.write() as session:
            queue.remember(session, hold, intent=INTENT)
    parts.running[hold] = Control()
    return hold


def row_of(parts: Services, hold: TransferLease) -> Transfer:
    with parts.database.read() as session:
        return get_transfer(session, hold.transfer, ALL)


@pytest.mark.parametrize(
    ("error", "intent", "attempts", "status"),
    [
        (DestinationExists("taken"), False, 1, "ERROR"),
        (DestinationExists("taken"), True, 1, "ERROR"),
        (MachineUnavailable("away"), False, 1, "QUEUED"),  # it waits for the machine
        (MachineUnavailable("away"), False, 3, "ERROR"),
        (LoginOutput("hello"), False, 1, "ERROR"),  # an operator is needed
        (ConnectionLost("cut"), False, 1, "ERROR"),  # its tries are spent, and nothing was published
        (ConnectionLost("cut"), True, 1, "QUEUED"),  # perhaps the file has its name: the next probe looks
        (ConnectionLost("cut"), True, 3, "ERROR"),  # but not for ever
        (CatalogueUnavailable("away"), False, 1, "QUEUED"),  # no fault of the transfer
        (CatalogueUnavailable("away"), True, 1, "QUEUED"),
    ],
)
def test_an_error_ends_a_transfer_only_when_that_is_sure(
    parts: Services, error: DataManagerError, intent: bool, attempts: int, status: str
) -> None:
    hold = begun(parts, intent=intent, attempts=attempts)
    _record_failure(parts, hold, error)
    row = row_of(parts, hold)
    assert (row.status, row.owner) == (status, None)
    assert row.faults[-1]["code"] == error.code
    assert (row.error_code, row.error_detail) == ((error.code, error.detail) if status == "ERROR" else (None, None))
    assert hold not in parts.running


@pytest.mark.parametrize(
    ("error", "intent", "attempts", "status"),
    [
        (Cancelled("in Prefect"), False, 1, "ERROR"),
        (Cancelled("in Prefect"), True, 1, "QUEUED"),  # between two tries of items whose files may have their names
        (DeadlineExceeded("late"), True, 1, "QUEUED"),
        (Cancelled("in Prefect"), True, 3, "ERROR"),
    ],
)
def test_a_batch_that_is_to_stop_looks_at_its_intents_first(
    parts: Services, error: DataManagerError, intent: bool, attempts: int, status: str
) -> None:
    database = parts.database
    names = [(register(database, f"{uuid4()}"), f"{uuid4()}") for _ in range(3)]
    hold = begin(database, submit(database, batch("copy", *names)), owner="mover")
    with database.write() as session:
        queue.held(session, hold).attempts = attempts
        batch_results.complete_copies(session, hold, [(0, FACTS)])
        batch_results.record_intents(session, hold, {1: INTENT} if intent else {})
    parts.running[hold] = Control()
    _record_failure(parts, hold, error)
    row = row_of(parts, hold)
    assert (row.status, row.owner) == (status, None)
    with database.write() as session:
        session.execute(update(Transfer).values(retry_at=None))
        again = queue.take(session, "another", LEASE, 1)  # although it is cancelled: to look
        assert [one.transfer for one in again] == ([hold.transfer] if status == "QUEUED" else [])
        asked = stop_reason(session, hold.transfer)
    if status == "QUEUED" and isinstance(error, Cancelled):
        assert isinstance(asked, Cancelled)  # it stops after that, whoever asked for it


@pytest.mark.server
def test_a_run_waits_for_a_catalogue_that_is_away(tmp_path: Path) -> None:
    with Postgres(tmp_path) as server:
        database = Database(server.url())
        upgrade(database)
        services = parts_of(database, tmp_path)
        transfer, run = submit(database, order("copy", register(database, "a"), "b")), uuid4()

        async def as_soon_as_it_is_there(step: Coroutine[Any, Any, T]) -> T:
            server.stop()
            beginning = asyncio.create_task(step)
            done, _ = await asyncio.wait([beginning], timeout=2)
            assert not done, beginning
            await asyncio.to_thread(server.start)
            return await asyncio.wait_for(beginning, 60)

        acquiring = _acquire_lease(services, TransferKind.COPY, transfer, None, run)
        hold = asyncio.run(as_soon_as_it_is_there(acquiring))
        assert hold.transfer == transfer
        assert asyncio.run(as_soon_as_it_is_there(_begin(services, hold, run))).flow_run_id == run
        services.storages.close()
        database.close()


def test_who_lost_the_lease_ends_nothing(parts: Services) -> None:
    hold = begun(parts, intent=True)
    with parts.database.write() as session:
        queue.requeue(session, hold)
    with parts.database.write() as session:
        assert queue.take(session, "another", LEASE, 1, only=hold.transfer)
    _record_failure(parts, hold, DestinationExists("taken"))
    row = row_of(parts, hold)
    assert (row.owner, row.ended, row.faults) == ("another", None, [])
