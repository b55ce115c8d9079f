"""Batches in the catalogue: each item by the rules of a single transfer, and none in the way of another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from datamanager.domain.requests import (
    AcceptedBatch,
    CopyManyRequest,
    validated,
)
from datamanager.domain.states import ObjectStatus, TransferKind
from datamanager.errors import (
    ItemsFailed,
)
from models.batches import results as batch_results
from models.database import Database
from models.objects.catalogue import Facts
from models.submission import SealedRequest
from models.tables import DataObject
from models.transfers import lookup
from tests.support.batches import FACTS, batch, do, ends, items_of, perform, register_many, set_status
from tests.support.bookkeeping import (
    SHA256,
    begin,
    claims,
    get_object,
    get_transfer,
    judge,
    order,
    register,
    submit,
    submit_judged,
    told,
)

pytestmark = pytest.mark.dialect


# --- accepting --------------------------------------------------------------------------------------------------------


def test_a_batch_is_one_transfer_and_its_items_are_rows(database: Database) -> None:
    first, second = register(database, "in/a", group="fire"), register(database, "in/b", group="fire")
    transfer = submit(
        database, batch("copy", (first, "/data/beta/out/a"), (second, "out//b"), (first, "again"), verify="size")
    )
    row = get_transfer(database, transfer)
    assert (row.kind, row.status, row.object_id, row.group, row.bytes_total) == (
        "copy_many",
        "QUEUED",
        None,
        "fire",
        15,
    )
    assert (row.source_machine, row.destination_machine, row.destination_place) == ("alpha", "beta", None)
    terms = lookup.request_of(row)
    assert isinstance(terms, AcceptedBatch)
    assert (terms.count, terms.overwrite, terms.verify, terms.machine) == (3, False, "size", "beta")
    assert set(row.request) == set(AcceptedBatch.model_fields)  # not the items
    items = items_of(database, transfer)
    assert [(item.number, item.object_id, item.dest, item.destination_place, item.size) for item in items] == [
        (0, first, "/data/beta/out/a", "out/a", 5),
        (1, second, "out//b", "out/b", 5),
        (2, first, "again", "again", 5),
    ]
    held = {claim for claim in claims(database) if claim[3] == transfer}
    assert held == {
        ("read", None, first, transfer),
        ("read", None, second, transfer),
        *(("place", f"beta:{item.destination_place}", item.result_object_id, transfer) for item in items),
    }
    assert told(database, transfer) == ["dm.requests", "dm.transfer.queued"]


def test_an_item_that_cannot_be_done_fails_alone(database: Database) -> None:
    good, deleted, archived, unknown, busy, stray = (
        register(database, name) for name in ("a", "b", "c", "d", "e", "f")
    )
    set_status(database, deleted, ObjectStatus.DELETED)
    set_status(database, archived, ObjectStatus.ARCHIVED)
    set_status(database, unknown, ObjectStatus.UNKNOWN)
    submit(database, order("move", busy, "elsewhere"))
    submit(database, order("getexternal", dest="coming"))
    register(database, "taken", "beta")
    with database.write() as session:
        session.get_one(DataObject, stray).machine = "gone"
    wanted = [
        ((good, "out/a"), "QUEUED"),
        ((uuid4(), "out/b"), "object_not_found"),
        ((deleted, "out/c"), "object_deleted"),
        ((archived, "out/d"), "object_archived"),
        ((unknown, "out/e"), "object_unknown"),
        ((busy, "out/f"), "object_busy"),
        ((stray, "out/g"), "unknown_machine"),
        ((good, "../out"), "path_not_allowed"),
        ((good, "out/"), "path_not_allowed"),
        ((good, "taken"), "destination_exists"),
        ((good, "coming"), "destination_exists"),
        ((good, "out//a"), "destination_exists"),
        ((good, "out/last"), "QUEUED"),
    ]
    request = batch("copy", *(item for item, _ in wanted)).fields.model_dump(mode="json")
    request["items"].append({"uuid": str(good), "machine": "nowhere\n", "dest": "x"})
    transfer = submit(database, SealedRequest(TransferKind.COPY_MANY, validated(request, CopyManyRequest), grant=None))
    assert ends(database, transfer) == [code for _, code in wanted] + ["unknown_machine"]
    refused = [item for item in items_of(database, transfer) if item.status == "ERROR"]
    assert all(item.error_detail and item.result_object_id is None for item in refused)
    assert "item 0 of this batch" in str(refused[-2].error_detail)
    assert Counter(mode for mode, *_, held in claims(database) if held == transfer) == {"read": 1, "place": 2}
    found = perform(database, transfer)
    assert isinstance(found, ItemsFailed)
    assert found.detail.startswith("12 of 14 items failed, first: object_not_found: no object has")
    row = get_transfer(database, transfer)
    assert (row.status, row.error_code, row.result) == ("ERROR", "items_failed", found.detail)
    assert [item.status for item in items_of(database, transfer)].count("COMPLETE") == 2


def test_moves_have_their_objects_alone(database: Database) -> None:
    read, first, second = register(database, "a"), register(database, "b"), register(database, "c")
    submit(database, order("copy", read, "copy"))
    transfer = submit(
        database,
        batch("move", (read, "out/a"), (first, "out/b"), (first, "out/b2"), (second, "out/b"), (second, "out/c")),
    )
    # the second object's first request was refused before it had its object
    assert ends(database, transfer) == ["object_busy", "QUEUED", "object_busy", "destination_exists", "QUEUED"]
    assert Counter(mode for mode, *_, held in claims(database) if held == transfer) == {"write": 2, "place": 2}


def test_a_batch_of_failures_is_still_a_task(database: Database) -> None:
    transfer = submit(database, batch("move", (uuid4(), "a"), (uuid4(), "b")))
    row = get_transfer(database, transfer)
    assert (row.status, row.bytes_total, row.source_machine, row.group) == ("QUEUED", 0, None, "")
    assert isinstance(perform(database, transfer), ItemsFailed)
    assert told(database, transfer)[-1] == "dm.transfer.error"


@pytest.mark.parametrize("kind", ["copy", "move"])
def test_a_repeated_batch_skips_what_is_right(database: Database, kind: str) -> None:
    objects = [register(database, f"in/{i}", size=7) for i in range(4)]
    wanted = [(uuid, f"out/{i}") for i, uuid in enumerate(objects)]
    assert perform(database, submit(database, batch(kind, *wanted[:3]))) == "3 items done"
    before = claims(database)
    transfer = submit(database, batch(kind, *wanted))
    assert ends(database, transfer) == ["COMPLETE*"] * 3 + ["QUEUED"]
    held = {claim for claim in claims(database) if claim[3] == transfer}
    assert len(held) == 2
    assert claims(database) - held == before
    there = [item.result_object_id for item in items_of(database, transfer)]
    if kind == "move":
        assert there == objects
    else:
        assert [get_object(database, copy).derived_from for copy in there[:3] if copy] == objects[:3]
    assert get_transfer(database, transfer).bytes_total == 7
    assert perform(database, transfer) == "4 items done (3 already present)"
    row = get_transfer(database, transfer)
    assert (row.status, row.bytes_done, row.bytes_total) == ("COMPLETE", 7, 7)


def test_only_a_copy_of_what_the_source_is_now_is_skipped(database: Database) -> None:
    source, other = register(database, "in/a"), register(database, "in/b")
    facts = [FACTS, Facts(6, SHA256), Facts(7, "sha256:" + "cd" * 32), Facts(7, None), Facts(None, None)]
    hold = begin(database, submit(database, batch("copy", *((source, f"out/{i}") for i in range(5)))))
    do(database, batch_results.complete_copies, hold, list(enumerate(facts)))
    with database.write() as session:
        obj = session.get_one(DataObject, source)
        obj.size, obj.checksum = 7, SHA256
    again = submit(database, batch("copy", *((source, f"out/{i}") for i in range(5)), (other, "out/0")))
    right, wrong = "COMPLETE*", "destination_exists"
    assert ends(database, again) == [right, wrong, wrong, right, right, wrong]
    onto_itself = submit(database, batch("copy", (source, "in/a"), machine="alpha"))
    assert ends(database, onto_itself) == ["destination_exists"]
    where_it_is = submit(database, batch("move", (other, "in/b"), machine="alpha"))
    assert ends(database, where_it_is) == ["COMPLETE*"]


# --- between judging and accepting -----------------------------------------------------------------------------------


def delete_it(database: Database, object_id: UUID) -> None:
    set_status(database, object_id, ObjectStatus.DELETED)


def move_it(database: Database, object_id: UUID) -> None:
    with database.write() as session:
        session.get_one(DataObject, object_id).place = "in/moved"


def grow_it(database: Database, object_id: UUID) -> None:
    with database.write() as session:
        session.get_one(DataObject, object_id).size = 9


@pytest.mark.parametrize("kind", ["copy", "move"])
@pytest.mark.parametrize(
    ("change", "seen"),
    [
        (delete_it, ("object_deleted", "in/b", None)),
        (move_it, ("QUEUED", "in/moved", 5)),
        (grow_it, ("QUEUED", "in/b", 9)),
    ],
)
def test_judged_batch_sees_what_changed_since(
    database: Database, kind: str, change: Callable[[Database, UUID], None], seen: tuple[str, str, int | None]
) -> None:
    first, second = register(database, "in/a"), register(database, "in/b")
    wanted = judge(database, batch(kind, (first, "out/a"), (second, "out/b")))
    change(database, second)
    transfer = submit_judged(database, wanted)
    assert ends(database, transfer) == ["QUEUED", seen[0]]
    item = items_of(database, transfer)[1]
    assert (item.source_place, item.size if seen[2] else None) == seen[1:]
    assert (item.result_object_id is None) == (seen[0] != "QUEUED")
    held = Counter(mode for mode, *_, holder in claims(database) if holder == transfer)
    assert sum(held.values()) == (2 if seen[0] == "object_deleted" else 4)


@pytest.mark.parametrize("kind", ["copy", "move"])
def test_judged_batch_skips_what_came_since(database: Database, kind: str) -> None:
    wanted = [(register(database, f"in/{i}", size=7), f"out/{i}") for i in range(3)]
    late = judge(database, batch(kind, *wanted))
    assert perform(database, submit(database, batch(kind, *wanted[:2]))) == "2 items done"
    transfer = submit_judged(database, late)
    assert ends(database, transfer) == ["COMPLETE*", "COMPLETE*", "QUEUED"]
    assert len({claim for claim in claims(database) if claim[3] == transfer}) == 2
    assert perform(database, transfer) == "3 items done (2 already present)"


def test_judged_batch_gets_no_place_that_was_taken_since(database: Database) -> None:
    wanted = [(register(database, f"in/{i}"), f"out/{i}") for i in range(3)]
    late = judge(database, batch("copy", *wanted))
    register(database, "out/0", "beta")
    submit(database, order("getexternal", dest="out/2"))
    transfer = submit_judged(database, late)
    assert ends(database, transfer) == ["destination_exists", "QUEUED", "destination_exists"]
    assert [item.result_object_id is None for item in items_of(database, transfer)] == [True, False, True]
    assert Counter(mode for mode, *_, held in claims(database) if held == transfer) == {"read": 1, "place": 1}


def test_judged_batch_gets_no_object_that_was_taken_since(database: Database) -> None:
    moved, read = register(database, "in/a"), register(database, "in/b")
    copying, moving = (judge(database, batch(kind, (moved, "x/a"), (read, "x/b"))) for kind in ("copy", "move"))
    submit(database, order("move", moved, "elsewhere"))
    submit(database, order("copy", read, "copy"))
    assert ends(database, submit_judged(database, copying)) == ["object_busy", "QUEUED"]
    assert ends(database, submit_judged(database, moving)) == ["object_busy", "object_busy"]


@pytest.mark.parametrize("judged_before", [True, False])
def test_batch_is_the_same_in_any_pieces(
    database: Database, monkeypatch: pytest.MonkeyPatch, judged_before: bool
) -> None:
    monkeypatch.setattr("models.objects.bulk_claims.AT_ONCE", 3)
    objects = register_many(database, 10)
    register(database, "out/4", "beta")
    wanted = batch("copy", *((uuid, f"out/{number}") for number, uuid in enumerate(objects)), (uuid4(), "none"))
    transfer = submit_judged(database, judge(database, wanted) if judged_before else wanted)
    expected = ["QUEUED"] * 11
    expected[4], expected[10] = "destination_exists", "object_not_found"
    assert ends(database, transfer) == expected
    assert Counter(mode for mode, *_, held in claims(database) if held == transfer) == {"read": 9, "place": 9}
