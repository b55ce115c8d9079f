"""A mover that lost its lease changes nothing; what it held is taken by another one."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest
from sqlalchemy.orm import Session

from datamanager.domain.states import Verified
from datamanager.errors import NoSpace
from models.database import Database
from models.objects.catalogue import Facts
from models.transfers import outcomes, queue
from models.transfers.queue import TransferLease
from tests.support.bookkeeping import (
    LEASE,
    SHA256,
    assert_lease_lost,
    begin,
    get_transfer,
    order,
    register,
    submit,
    take,
)

pytestmark = pytest.mark.dialect

FACTS = Facts(7, SHA256, Verified.SHA256)

WRITES: dict[str, Callable[[Session, TransferLease], object]] = {
    "begin": lambda session, hold: queue.begin(session, hold, uuid4()),
    "held": lambda session, hold: queue.held(session, hold),
    "note": lambda session, hold: queue.note(session, hold, bytes_done=1),
    "remember": lambda session, hold: queue.remember(session, hold, intent=1),
    "add_fault": lambda session, hold: queue.add_fault(session, hold, "timeout", ""),
    "requeue": lambda session, hold: queue.requeue(session, hold),
    "complete_copy": lambda session, hold: outcomes.complete_copy(session, hold, FACTS),
    "complete_getexternal": lambda session, hold: outcomes.complete_getexternal(session, hold, FACTS, ""),
    "commit_move": lambda session, hold: outcomes.commit_move(session, hold, FACTS),
    "finish_move": lambda session, hold: outcomes.finish_move(session, hold),
    "complete_delete": lambda session, hold: outcomes.complete_delete(session, hold),
    "fail": lambda session, hold: outcomes.fail(session, hold, NoSpace("full")),
}
KIND = {
    "complete_getexternal": "getexternal",
    "commit_move": "move",
    "finish_move": "move",
    "complete_delete": "delete",
}


def lose(database: Database, hold: TransferLease) -> None:
    """Let the hold's lease run out and a reaper come by."""
    with database.write() as session:
        assert queue.renew(session, [hold], timedelta(seconds=-1)) == []
    with database.write() as session:
        assert [row.id for row in queue.reap(session)] == [hold.transfer]


@pytest.mark.parametrize("since", ["reaped", "taken by another", "taken again by ourselves", "ended"])
def test_every_write_of_a_lost_hold_is_refused(database: Database, since: str) -> None:
    for name, write in WRITES.items():
        source = register(database, f"from/{name}")
        transfer = submit(database, order(KIND.get(name, "copy"), source, f"to/{name}"))
        hold = begin(database, transfer)
        if name == "finish_move":
            with database.write() as session:
                outcomes.commit_move(session, hold, FACTS)
        if since == "ended":
            with database.write() as session:
                outcomes.fail(session, hold, NoSpace("full"))
        else:
            lose(database, hold)
            if since != "reaped":
                begin(database, transfer, owner="mover-2" if "another" in since else hold.owner)
        assert_lease_lost(database, hold, write, f"{name}, {since}")


def test_renewing_tells_what_was_lost(database: Database) -> None:
    kept, lost = (begin(database, submit(database, order("getexternal", dest=name))) for name in "ab")
    lose(database, lost)
    with database.write() as session:
        assert queue.renew(session, [kept, lost], LEASE) == [lost]
    row = get_transfer(database, kept.transfer)
    assert row.lease_until is not None
    assert row.lease_until > row.created


def test_reaping(database: Database) -> None:
    waiting = submit(database, order("getexternal", dest="waiting"))
    alive = begin(database, submit(database, order("getexternal", dest="alive")))
    silent = begin(database, submit(database, order("getexternal", dest="silent")))
    (not_begun,) = take(database, submit(database, order("getexternal", dest="not-begun")))
    with database.write() as session:
        queue.renew(session, [silent, not_begun], timedelta(seconds=-1))
    with database.write() as session:
        assert {row.id for row in queue.reap(session)} == {silent.transfer, not_begun.transfer}
    with database.write() as session:
        assert queue.reap(session) == []
    row = get_transfer(database, silent.transfer)
    assert (row.status, row.owner, row.epoch, row.attempts) == ("QUEUED", None, 1, 1)
    assert [fault["code"] for fault in row.faults] == ["lease_lost"]
    assert get_transfer(database, alive.transfer).status == "RUNNING"
    assert get_transfer(database, waiting).faults == []
    assert {hold.epoch for hold in take(database, silent.transfer)} == {2}


def test_a_reaped_transfer_keeps_its_claims_and_notes(database: Database) -> None:
    moved = register(database, "a")
    transfer = submit(database, order("move", moved, "b"))
    hold = begin(database, transfer)
    with database.write() as session:
        queue.remember(session, hold, intent={"size": 7})
        outcomes.commit_move(session, hold, FACTS)
    lose(database, hold)
    again = begin(database, transfer, owner="mover-2")
    with database.read() as session:
        notes = queue.held(session, again).notes
    assert (notes["intent"], notes["committed"]) == ({"size": 7}, True)
    with database.write() as session:
        outcomes.finish_move(session, again)
    assert get_transfer(database, transfer).status == "COMPLETE"
