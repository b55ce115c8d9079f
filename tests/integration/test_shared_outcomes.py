"""Transfers that share a run leave the catalogue as if each had gone alone, each under its own lease."""

from __future__ import annotations

import re
from dataclasses import asdict
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import event, select, update

from datamanager.domain.states import Verified
from datamanager.engine.attempt import Intent
from datamanager.errors import Cancelled, DestinationExists, InternalError, Paused
from models.access.visibility import ALL
from models.database import Database
from models.objects.catalogue import Facts
from models.tables import Claim, DataObject, OutboxMessage, Transfer
from models.transfers import cancel_pause, outcomes, queue, shared_outcomes
from models.transfers.queue import TransferLease
from models.transfers.shared_outcomes import SharedCounts
from tests.support.bookkeeping import LEASE, SHA256, claims, get_transfer, order, register, submit, told

pytestmark = pytest.mark.dialect

FACTS = Facts(7, SHA256, Verified.SHA256, not_kept=("mtime",))
INTENT = asdict(Intent(7, SHA256.removeprefix("sha256:"), 1))


def taken(database: Database, kind: str, count: int = 3) -> list[TransferLease]:
    """Take so many transfers together."""
    objects = [register(database, f"in/{uuid4()}") for _ in range(count)]
    for number, one in enumerate(objects):
        submit(database, order(kind, one, f"out/{number}-{one}"))
    with database.write() as session:
        return queue.take(session, "mover", LEASE, 1, together=True)


def do(database: Database, act: Any, *args: Any) -> Any:
    with database.write() as session:
        return act(session, *args)


def perform_together(database: Database, kind: str, holds: list[TransferLease]) -> None:
    """Do what a shared run does."""
    everything = set(holds)
    assert do(database, shared_outcomes.begin, holds, uuid4()) == everything
    assert do(database, shared_outcomes.claim_canonicals, {hold: f"link/{hold.transfer}" for hold in holds}) == {}
    assert do(database, shared_outcomes.record_intents, dict.fromkeys(holds, INTENT)) == everything
    if kind == "copy":
        assert do(database, shared_outcomes.complete_copies, dict.fromkeys(holds, FACTS)) == everything
    else:
        assert do(database, shared_outcomes.commit_moves, dict.fromkeys(holds, FACTS)) == everything
        assert do(database, shared_outcomes.finish_moves, holds) == everything


def perform_alone(database: Database, kind: str, holds: list[TransferLease]) -> None:
    """Do what runs of their own do."""
    for hold in holds:
        do(database, queue.begin, hold, uuid4())
        do(database, outcomes.claim_also, hold, f"link/{hold.transfer}")
        with database.write() as session:
            queue.remember(session, hold, intent=INTENT)
        if kind == "copy":
            do(database, outcomes.complete_copy, hold, FACTS)
        else:
            do(database, outcomes.commit_move, hold, FACTS)
            do(database, outcomes.finish_move, hold)


def left(database: Database) -> list[str]:
    """Return the rows that the catalogue holds, but for times, identifiers and what differs by the way taken."""
    own = {"flow_run_id", "shared_run"}
    with database.read() as session:
        tables = [model.__table__ for model in (Transfer, DataObject, Claim, OutboxMessage)]
        rows = [row for table in tables for row in session.execute(select(table)).mappings()]
    shown = [str({name: value for name, value in row.items() if name not in own}) for row in rows]
    patterns = {
        r"[0-9a-f]{8}-?([0-9a-f]{4}-?){3}[0-9a-f]{12}": "<id>",
        r"datetime\.datetime\([^)]*\)|20\d\d-\d\d-\d\dT[0-9:.+]*": "<time>",
        r"'id': \d+": "<number>",
    }
    for pattern, name in patterns.items():
        shown = [re.sub(pattern, name, row) for row in shown]
    return sorted(shown)


@pytest.mark.parametrize("kind", ["copy", "move"])
def test_what_is_left_is_the_same_as_of_single_runs(database: Database, kind: str) -> None:
    first = taken(database, kind)
    assert len({get_transfer(database, hold.transfer).shared_run for hold in first}) == 1
    perform_together(database, kind, first)
    together, held = left(database), claims(database)
    with database.write() as session:
        for model in (Transfer, DataObject, Claim, OutboxMessage):
            session.execute(model.__table__.delete())  # type: ignore[attr-defined]
    perform_alone(database, kind, taken(database, kind))
    assert together == left(database)
    assert len(held) == len(claims(database))


@pytest.mark.parametrize("kind", ["copy", "move"])
def test_one_whose_lease_is_lost_is_left_as_it_is(database: Database, kind: str) -> None:
    holds = taken(database, kind)
    lost, kept = holds[1], {holds[0], holds[2]}
    do(database, shared_outcomes.begin, holds, uuid4())
    with database.write() as session:
        queue.requeue(session, lost)
        (again,) = queue.take(session, "mover", LEASE, 1, only=lost.transfer)  # by the same mover
    before, seen = told(database, lost.transfer), row_of(database, lost.transfer)
    assert do(database, shared_outcomes.begin, holds, uuid4()) == kept
    assert do(database, shared_outcomes.record_intents, dict.fromkeys(holds, INTENT)) == kept
    if kind == "copy":
        assert do(database, shared_outcomes.complete_copies, dict.fromkeys(holds, FACTS)) == kept
    else:
        assert do(database, shared_outcomes.commit_moves, dict.fromkeys(holds, FACTS)) == kept
        assert do(database, shared_outcomes.finish_moves, holds) == kept
    assert (told(database, lost.transfer), row_of(database, lost.transfer)) == (before, seen)
    assert {get_transfer(database, hold.transfer).status for hold in kept} == {"COMPLETE"}
    assert do(database, queue.renew, [again, *holds], LEASE) == holds


def row_of(database: Database, transfer: UUID) -> dict[str, Any]:
    row = vars(get_transfer(database, transfer))
    return {name: value for name, value in row.items() if not name.startswith("_")}


def test_one_that_lacks_what_it_must_have_takes_all_back(database: Database) -> None:
    holds = taken(database, "copy")
    do(database, shared_outcomes.begin, holds, uuid4())
    with database.write() as session:
        session.execute(update(Claim).where(Claim.transfer_id == holds[0].transfer).values(place_key="0" * 64))
    with pytest.raises(InternalError):
        do(database, shared_outcomes.complete_copies, dict.fromkeys(holds, FACTS))
    assert {get_transfer(database, hold.transfer).status for hold in holds} == {"RUNNING"}


def test_a_canonical_place_that_is_taken_is_refused_alone(database: Database) -> None:
    holds = taken(database, "copy")
    register(database, "link/there", "beta")
    wanted = {holds[0]: "link/here", holds[1]: "link/there", holds[2]: "link/here too"}
    refused = do(database, shared_outcomes.claim_canonicals, wanted)
    assert refused.keys() == {holds[1]}
    assert isinstance(refused[holds[1]], DestinationExists)
    assert get_transfer(database, holds[2].transfer).notes["canonical"] == "link/here too"


def test_what_users_stop_is_found_and_how_a_run_ended_is_counted(database: Database) -> None:
    holds, run = taken(database, "copy", 4), uuid4()
    do(database, shared_outcomes.begin, holds, run)
    do(database, cancel_pause.cancel, holds[0].transfer, ALL)
    do(database, cancel_pause.pause, holds[1].transfer, ALL)
    with database.read() as session:
        found = shared_outcomes.stops(session, holds)
        assert {hold: type(reason) for hold, reason in found.items()} == {holds[0]: Cancelled, holds[1]: Paused}
        assert shared_outcomes.count_shared(session, [run]) == {run: SharedCounts(held=4)}
    do(database, outcomes.fail, holds[0], Cancelled("by request"))
    do(database, queue.requeue, holds[1])
    do(database, outcomes.fail, holds[2], DestinationExists("taken"))
    do(database, shared_outcomes.complete_copies, {holds[3]: FACTS})
    with database.read() as session:
        counted = shared_outcomes.count_shared(session, [run, uuid4()])
    assert counted == {run: SharedCounts(complete=1, cancelled=1, error=1)}
    assert str(counted[run]) == "1 complete, 1 failed, 1 cancelled"


@pytest.mark.parametrize("kind", ["copy", "move"])
def test_the_statements_do_not_grow_with_the_number(database: Database, kind: str) -> None:
    def statements(count: int) -> int:
        holds, counted = taken(database, kind, count), 0

        def note(*_args: Any) -> None:
            nonlocal counted
            counted += 1

        event.listen(database.engine, "before_cursor_execute", note)
        try:
            do(database, shared_outcomes.begin, holds, uuid4())
            do(database, shared_outcomes.record_intents, dict.fromkeys(holds, INTENT))
            if kind == "copy":
                do(database, shared_outcomes.complete_copies, dict.fromkeys(holds, FACTS))
            else:
                do(database, shared_outcomes.commit_moves, dict.fromkeys(holds, FACTS))
                do(database, shared_outcomes.finish_moves, holds)
            do(database, queue.renew, holds, LEASE)
        finally:
            event.remove(database.engine, "before_cursor_execute", note)
        return counted

    assert statements(30) <= statements(3) + 2
