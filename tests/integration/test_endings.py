"""How an attempt that raised leaves its transfer: ended when that is sure, else for the next attempt to look."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from datamanager.engine.control import Control
from datamanager.errors import (
    CatalogueUnavailable,
    ConnectionLost,
    DataManagerError,
    DestinationExists,
    MachineUnavailable,
)
from datamanager.settings import load_settings
from datamanager.sources import Guard
from datamanager.transports.factory import Storages
from flows.running.services import Services
from flows.running.work import _end_in_error
from models import movers
from models.database import Database
from models.movers import Hold
from models.tables import Transfer
from models.transfers import get_transfer
from tests.support.bookkeeping import LEASE, MACHINES, order, register, submit

INTENT = {"size": 5, "sha256": None, "mtime": 1}


@pytest.fixture
def parts(database: Database, tmp_path: Path) -> Iterator[Services]:
    """A mover's parts over a real catalogue."""
    storages = Storages(MACHINES, tmp_path / "run")
    settings = load_settings(home=tmp_path, max_attempts=3)
    yield Services(settings, MACHINES, database, storages, Guard(()), "mover", ring=lambda _: None)
    storages.close()


def begun(parts: Services, *, intent: bool, attempts: int = 1) -> Hold:
    """Return the hold on a copy that runs."""
    transfer = submit(parts.database, order("copy", register(parts.database, f"a-{uuid4()}"), f"b-{uuid4()}"))
    with parts.database.write() as session:
        hold = movers.take(session, "mover", LEASE, 1, only=transfer)[0]
    with parts.database.write() as session:
        row = movers.begin(session, hold, uuid4())
        row.attempts = attempts
    if intent:
        with parts.database.write() as session:
            movers.remember(session, hold, intent=INTENT)
    parts.running[hold] = Control()
    return hold


def row_of(parts: Services, hold: Hold) -> Transfer:
    with parts.database.read() as session:
        return get_transfer(session, hold.transfer)


@pytest.mark.parametrize(
    ("error", "intent", "attempts", "status"),
    [
        (DestinationExists("taken"), False, 1, "ERROR"),
        (DestinationExists("taken"), True, 1, "ERROR"),
        (MachineUnavailable("away"), False, 1, "ERROR"),  # its tries are spent, and nothing was published
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
    _end_in_error(parts, hold, error)
    row = row_of(parts, hold)
    assert (row.status, row.owner) == (status, None)
    assert row.faults[-1]["code"] == error.code
    assert row.error_code == (error.code if status == "ERROR" else None)
    assert hold not in parts.running


def test_who_lost_the_lease_ends_nothing(parts: Services) -> None:
    hold = begun(parts, intent=True)
    with parts.database.write() as session:
        movers.requeue(session, hold)
    with parts.database.write() as session:
        assert movers.take(session, "another", LEASE, 1, only=hold.transfer)
    _end_in_error(parts, hold, DestinationExists("taken"))
    row = row_of(parts, hold)
    assert (row.owner, row.ended, row.faults) == ("another", None, [])
