"""What batches have done, in the catalogue: results, fencing, races, and how long items are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from threading import Barrier
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from datamanager.domain.location import Place
from datamanager.domain.states import ObjectStatus, TransferStatus
from datamanager.errors import (
    ConnectionLost,
    DestinationExists,
    NoSpace,
    PathReplaced,
    SourceNotRemoved,
)
from models import migrate
from models.batches import results as batch_results
from models.database import Database
from models.housekeeping import Tidied, tidy
from models.objects.bulk_claims import claim_places
from models.objects.claims import claim_place
from models.submission import SealedRequest
from models.tables import Claim, Transfer, TransferItem
from models.transfers import outcomes, queue
from models.transfers.items import count_items, select_items
from models.transfers.queue import TransferLease
from tests.support.batches import INTENT, batch, do, ends, items_of, perform, register_many, results
from tests.support.bookkeeping import (
    SHA256,
    assert_lease_lost,
    begin,
    claims,
    get_object,
    get_transfer,
    messages,
    order,
    place,
    register,
    snapshot,
    submit,
    told,
)

pytestmark = pytest.mark.dialect


# --- working ----------------------------------------------------------------------------------------------------------


def test_copies_become_objects(database: Database) -> None:
    source = register(database, "in/a", group="fire", originator="here", description="d", metadata={"k": 1})
    transfer = submit(database, batch("copy", (source, "/data/beta/out/a"), (source, "b")))
    hold = begin(database, transfer)
    do(database, batch_results.record_intents, hold, {0: INTENT, 1: INTENT})
    with database.read() as session:
        items = batch_results.items_to_do(session, hold, -1, 10)
        assert [item.notes for item in items] == [{"intent": INTENT}] * 2
        assert [item.number for item in batch_results.items_to_do(session, hold, 0, 10)] == [1]
        assert [item.number for item in batch_results.items_to_do(session, hold, -1, 1)] == [0]
    do(database, batch_results.complete_copies, hold, results(0))
    new = items_of(database, transfer)[0].result_object_id
    assert new is not None
    assert ends(database, transfer) == ["COMPLETE", "QUEUED"]
    copy = get_object(database, new)
    assert (copy.machine, copy.path, copy.filename, copy.place) == ("beta", "/data/beta/out", "a", "out/a")
    assert (copy.group, copy.originator, copy.description, copy.meta) == ("fire", "here", "d", {"k": 1})
    assert (copy.size, copy.checksum, copy.verified, copy.derived_from) == (7, SHA256, "sha256", source)
    assert copy.status == ObjectStatus.ACTIVE
    assert told(database, new) == ["dm.object.copied"]
    assert messages(database, new)[0].body["data"]["place"] == "out/a"
    assert ("place", "beta:out/a", new, None) in claims(database)
    assert ("read", None, source, transfer) in claims(database)  # the other item still reads it
    before = snapshot(database)
    do(database, batch_results.complete_copies, hold, results(0))  # a commit that was in doubt
    do(database, batch_results.fail_items, hold, [(0, NoSpace("full"))])
    assert snapshot(database) == before
    do(database, batch_results.complete_copies, hold, results(1))
    assert not [claim for claim in claims(database) if claim[3] == transfer]
    assert do(database, batch_results.finish_batch, hold) == "2 items done"
    row = get_transfer(database, transfer)
    assert (row.status, row.phase, row.result, row.bytes_done) == ("COMPLETE", "done", "2 items done", 14)
    assert told(database, transfer)[-1] == "dm.transfer.complete"


def test_a_move_keeps_its_old_place_until_the_source_is_gone(database: Database) -> None:
    moved, linked = register(database, "in/a"), register(database, "in/b")
    with database.write() as session:
        claim_place(session, Place("alpha", "real/in/b"), object_id=linked)  # its canonical place
    transfer = submit(database, batch("move", (moved, "out/a"), (linked, "out/b")))
    hold = begin(database, transfer)
    do(database, batch_results.commit_moves, hold, results(0, 1))
    assert get_object(database, moved).place == "out/a"
    assert get_object(database, linked).machine == "beta"
    places = {(name, holder) for mode, name, _, holder in claims(database) if mode == "place"}
    assert places == {
        ("beta:out/a", None),
        ("beta:out/b", None),
        ("alpha:in/a", transfer),
        ("alpha:in/b", transfer),
        ("alpha:real/in/b", transfer),
    }
    with pytest.raises(DestinationExists):
        register(database, "real/in/b")
    with database.read() as session:
        assert [item.notes["committed"] for item in batch_results.items_to_do(session, hold, -1, 9)] == [True, True]
    before = snapshot(database)
    do(database, batch_results.commit_moves, hold, results(0, 1))
    assert snapshot(database) == before
    do(database, batch_results.end_committed, hold, [1])
    assert {(name, holder) for mode, name, _, holder in claims(database) if mode == "place"} == {
        ("beta:out/a", None),
        ("beta:out/b", None),
        ("alpha:in/a", transfer),
    }
    assert ("write", None, moved, transfer) in claims(database)
    assert ("write", None, linked, transfer) not in claims(database)
    do(database, batch_results.fail_items, hold, [(0, SourceNotRemoved("in/a is still there"))])
    assert ends(database, transfer) == ["source_not_removed", "COMPLETE"]
    assert not [claim for claim in claims(database) if claim[3] == transfer]
    assert get_object(database, moved).place == "out/a"
    assert told(database, moved) == ["dm.object.registered", "dm.object.moved"]
    event = messages(database, moved)[-1].body["data"]
    assert event["from"] == {"machine": "alpha", "place": "in/a"}


def test_a_replaced_path_of_an_item_is_a_security_event(database: Database) -> None:
    first = register(database, "a")
    transfer = submit(database, batch("copy", (first, "out/a"), (first, "out/b")))
    hold = begin(database, transfer)
    do(database, batch_results.fail_items, hold, [(0, NoSpace("full")), (1, PathReplaced("'/x' leads to '/etc' now"))])
    assert ends(database, transfer) == ["no_space", "path_replaced"]
    [event] = [one for one in messages(database, transfer) if one.routing_key == "dm.security.path_replaced"]
    assert (event.body["data"]["item"], event.body["data"]["detail"]) == (1, "'/x' leads to '/etc' now")


def test_what_a_failed_item_held_is_free_at_once(database: Database) -> None:
    first, second = register(database, "a"), register(database, "b")
    transfer = submit(database, batch("copy", (first, "out/a"), (first, "out/a2"), (second, "out/b")))
    hold = begin(database, transfer)
    do(database, batch_results.fail_items, hold, [(0, NoSpace("full \udcff\0")), (2, NoSpace("full"))])
    assert ends(database, transfer) == ["no_space", "QUEUED", "no_space"]
    submit(database, order("move", second, "out/a"))
    with pytest.raises(Exception, match="being read"):
        submit(database, order("delete", first))
    do(database, batch_results.fail_items, hold, [(1, NoSpace("full"))])
    submit(database, order("delete", first))
    moving = submit(database, batch("move", (register(database, "c"), "out/c")))
    do(database, batch_results.fail_items, begin(database, moving), [(0, NoSpace("full"))])
    assert ("place", "alpha:c", items_of(database, moving)[0].object_id, None) in claims(database)
    assert not [claim for claim in claims(database) if claim[3] == moving]


def test_canonical_places_are_claimed_too(database: Database) -> None:
    source = register(database, "a")
    register(database, "real/taken", "beta")
    wanted = ["link/x", "link/taken", "link/y", "other/y", "plain"]
    transfer = submit(database, batch("copy", *((source, dest) for dest in wanted)))
    hold = begin(database, transfer)
    canonicals = {0: "real/x", 1: "real/taken", 2: "real/y", 4: "plain"}
    assert do(database, batch_results.claim_canonicals, hold, canonicals) == [1]
    assert do(database, batch_results.claim_canonicals, hold, canonicals) == []
    assert do(database, batch_results.claim_canonicals, hold, {3: "real/y"}) == [3]
    assert ends(database, transfer) == ["QUEUED", "destination_exists", "QUEUED", "destination_exists", "QUEUED"]
    with pytest.raises(DestinationExists):
        register(database, "real/x", "beta")
    register(database, "link/taken", "beta")  # free again
    do(database, batch_results.complete_copies, hold, results(0, 2, 4))
    new = items_of(database, transfer)[0].result_object_id
    mine = {name for mode, name, holder, held in claims(database) if (mode, holder, held) == ("place", new, None)}
    assert mine == {"beta:link/x", "beta:real/x"}


def test_a_batch_that_is_given_up_ends_what_is_left(database: Database) -> None:
    objects = [register(database, f"in/{i}") for i in range(3)]
    transfer = submit(database, batch("move", *((uuid, f"out/{i}") for i, uuid in enumerate(objects))))
    hold = begin(database, transfer)
    do(database, batch_results.commit_moves, hold, results(0, 1))
    do(database, batch_results.end_committed, hold, [0])
    do(database, outcomes.fail, hold, ConnectionLost("gone"))
    assert ends(database, transfer) == ["COMPLETE", "source_not_removed", "connection_lost"]
    row = get_transfer(database, transfer)
    assert (row.status, row.error_code) == ("ERROR", "connection_lost")
    assert not [claim for claim in claims(database) if claim[3] == transfer]


def test_a_batch_with_something_left_to_do_is_not_ended(database: Database) -> None:
    transfer = submit(database, batch("copy", (register(database, "a"), "b")))
    hold = begin(database, transfer)
    with pytest.raises(Exception, match="1 items"):
        do(database, batch_results.finish_batch, hold)
    assert get_transfer(database, transfer).status == "RUNNING"


# --- fencing and races ------------------------------------------------------------------------------------------------

WRITES: dict[str, Callable[[Session, TransferLease], object]] = {
    "items_to_do": lambda session, hold: batch_results.items_to_do(session, hold, -1, 10),
    "claim_canonicals": lambda session, hold: batch_results.claim_canonicals(session, hold, {0: "x"}),
    "record_intents": lambda session, hold: batch_results.record_intents(session, hold, {0: INTENT}),
    "complete_copies": lambda session, hold: batch_results.complete_copies(session, hold, results(0)),
    "commit_moves": lambda session, hold: batch_results.commit_moves(session, hold, results(0)),
    "end_committed": lambda session, hold: batch_results.end_committed(session, hold, [0]),
    "fail_items": lambda session, hold: batch_results.fail_items(session, hold, [(0, NoSpace("full"))]),
    "finish_batch": lambda session, hold: batch_results.finish_batch(session, hold),
}


def test_every_write_of_a_lost_hold_is_refused(database: Database) -> None:
    for name, write in WRITES.items():
        kind = "move" if name in ("commit_moves", "end_committed") else "copy"
        transfer = submit(database, batch(kind, (register(database, f"from/{name}"), f"to/{name}")))
        hold = begin(database, transfer)
        if name == "end_committed":
            do(database, batch_results.commit_moves, hold, results(0))
        with database.write() as session:
            queue.renew(session, [hold], timedelta(seconds=-1))
        with database.write() as session:
            queue.reap(session)
        again = begin(database, transfer, owner="mover-2")
        items = [vars(item) for item in items_of(database, transfer)]
        assert_lease_lost(database, hold, write, name)
        now = [vars(item) for item in items_of(database, transfer)]
        assert [{**item, "_sa_instance_state": None} for item in now] == [
            {**item, "_sa_instance_state": None} for item in items
        ]
        assert (again.epoch, len(items)) == (2, 1)


def at_once(database: Database, orders: Sequence[SealedRequest]) -> list[UUID]:
    start = Barrier(len(orders))

    def run(wanted: SealedRequest) -> UUID:
        start.wait()
        return submit(database, wanted)

    with ThreadPoolExecutor(len(orders)) as pool:
        return list(pool.map(run, orders))


def test_batches_that_race_for_places_win_each_place_once(database: Database) -> None:
    sources = [register_many(database, 200, f"from{i}") for i in range(4)]
    rivals = []
    for turn, objects in enumerate(sources):
        wanted = [(uuid, f"out/{number}") for number, uuid in enumerate(objects)]
        rivals.append(batch("copy", *(reversed(wanted) if turn % 2 else wanted)))
    transfers_ = at_once(database, rivals)
    found = [item for transfer in transfers_ for item in items_of(database, transfer)]
    won = Counter(item.destination_place for item in found if item.status == "QUEUED")
    assert won == {f"out/{number}": 1 for number in range(200)}
    assert {item.error_code for item in found if item.status != "QUEUED"} == {"destination_exists"}
    with database.read() as session:
        query = select(Claim.object_id).where(Claim.mode == "place", Claim.transfer_id.in_(transfers_))
        assert set(session.scalars(query)) == {item.result_object_id for item in found if item.status == "QUEUED"}


def test_batches_that_race_for_objects_move_each_once(database: Database) -> None:
    objects = register_many(database, 200)
    moving = [
        batch("move", *((uuid, f"{way}/{uuid}") for uuid in order_))
        for way, order_ in (("a", objects), ("b", objects[::-1]))
    ]
    moving.append(batch("copy", *((uuid, f"c/{uuid}") for uuid in objects)))
    found = [item for transfer in at_once(database, moving) for item in items_of(database, transfer)]
    assert Counter(item.object_id for item in found if item.status == "QUEUED") == dict.fromkeys(objects, 1)
    assert {item.error_code for item in found if item.status != "QUEUED"} == {"object_busy"}


def test_places_are_claimed_all_or_none_for_an_object(database: Database) -> None:
    register(database, "taken")
    first, second = uuid4(), uuid4()
    with database.write() as session:
        wanted = [(place("x"), first), (place("taken"), first), (place("y"), second), (place("real/y"), second)]
        assert claim_places(session, wanted, transfer=None) == {second}
    assert {name for _, name, holder, _ in claims(database) if holder in (first, second)} == {"alpha:y", "alpha:real/y"}


def test_claim_places_leaves_what_an_object_had_before(database: Database) -> None:
    register(database, "taken")
    known = register(database, "known")
    with database.write() as session:
        wanted = [(place("known"), known), (place("other"), known), (place("taken"), known)]
        assert claim_places(session, wanted, transfer=None) == set()
    assert {name for _, name, holder, _ in claims(database) if holder == known} == {"alpha:known"}


# --- keeping ----------------------------------------------------------------------------------------------------------


class Durations:
    keep_transfers = timedelta(days=90)
    keep_outbox = timedelta(days=7)
    idempotency_keep = timedelta(hours=24)


def test_items_are_forgotten_with_their_batch(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.housekeeping.ITEMS_BATCH", 2)
    old = submit(database, batch("copy", *((uuid4(), str(i)) for i in range(5))))
    kept = submit(database, batch("copy", (uuid4(), "a")))
    for transfer in (old, kept):
        perform(database, transfer)
    with database.write() as session:
        row = session.get_one(Transfer, old)
        assert row.ended is not None
        row.ended -= timedelta(days=91)
    rounds: list[Tidied] = []
    while not rounds or rounds[-1].more:
        with database.write() as session:
            rounds.append(tidy(session, Durations(), broker=True))
    assert [(tidied.items, tidied.transfers) for tidied in rounds] == [(2, 0), (2, 0), (1, 1)]
    with database.read() as session:
        assert set(session.scalars(select(Transfer.id))) == {kept}
        assert set(session.scalars(select(TransferItem.transfer_id))) == {kept}


def test_the_older_schema_knows_no_batches(database: Database) -> None:
    source = register(database, "a")
    many = submit(database, batch("copy", (source, "b")))
    one = submit(database, order("copy", source, "c"))
    migrate.downgrade(database, "0001_catalogue")
    migrate.upgrade(database)
    with database.read() as session:
        assert set(session.scalars(select(Transfer.id))) == {one}
    assert many not in {held for *_, held in claims(database)}


def test_statuses_that_items_may_have(database: Database) -> None:
    transfer = submit(database, batch("copy", (register(database, "a"), "b"), (uuid4(), "c")))
    with database.read() as session:
        counts = count_items(session, transfer)
        assert (counts.total, counts.complete, counts.skipped, counts.error, counts.queued) == (2, 0, 0, 1, 1)
        failed = select_items(session, transfer, status=TransferStatus.ERROR, limit=10)
        assert [item.number for item in failed] == [1]
