"""Batches in the catalogue: each item by the rules of a single transfer, and none in the way of another."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from threading import Barrier
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, event, func, select
from sqlalchemy.orm import Session

from datamanager.domain.location import Place
from datamanager.domain.requests import (
    ITEMS_MAX,
    AcceptedBatch,
    CopyManyRequest,
    Directory,
    MoveManyRequest,
    TreeRequest,
    validated,
)
from datamanager.domain.states import ObjectStatus, TransferKind, TransferStatus, Verified
from datamanager.errors import (
    ConnectionLost,
    DestinationExists,
    InvalidRequest,
    ItemsFailed,
    NoSpace,
    ObjectNotFound,
    PathNotAllowed,
    PathReplaced,
    SourceNotRemoved,
    UnknownMachine,
)
from models import migrate
from models.batches import results as batch_results
from models.batches.item_admission import pieces_below
from models.database import Database
from models.housekeeping import Tidied, tidy
from models.objects.bulk_claims import claim_places
from models.objects.catalogue import Facts, FoundFile, register_files
from models.objects.claims import claim_place
from models.submission import SealedRequest
from models.tables import Claim, DataObject, Transfer, TransferItem
from models.transfers import lookup, outcomes, queue
from models.transfers.items import count_items, select_items
from models.transfers.queue import TransferLease
from tests.integration.test_catalogue_listing import heard
from tests.support.bookkeeping import (
    MACHINES,
    SHA256,
    assert_lease_lost,
    begin,
    claims,
    get_object,
    get_transfer,
    judge,
    messages,
    order,
    place,
    register,
    snapshot,
    submit,
    submit_judged,
    told,
)

pytestmark = pytest.mark.dialect

FACTS = Facts(7, SHA256, Verified.SHA256)
INTENT = {"size": 7, "sha256": None, "mtime": 1}


def batch(kind: str, *items: tuple[UUID, str], **fields: Any) -> SealedRequest:
    """Return a batch's order; its items go to beta unless `machine` says otherwise."""
    request = {"machine": "beta", "items": [{"uuid": str(uuid), "dest": dest} for uuid, dest in items], **fields}
    if kind == "copy":
        return SealedRequest(TransferKind.COPY_MANY, validated(request, CopyManyRequest))
    return SealedRequest(TransferKind.MOVE_MANY, validated(request, MoveManyRequest))


def below(kind: str, path: str, dest: str, machine: str = "beta") -> SealedRequest:
    """Return the order of all that lies below a directory of alpha."""
    request = {"directory": {"machine": "alpha", "path": path}, "machine": machine, "dest": dest}
    model, of = (
        (CopyManyRequest, TransferKind.COPY_MANY) if kind == "copy" else (MoveManyRequest, TransferKind.MOVE_MANY)
    )
    return SealedRequest(of, validated(request, model))


def items_of(database: Database, transfer: UUID) -> list[TransferItem]:
    with database.read() as session:
        return select_items(session, transfer, limit=ITEMS_MAX)


def ends(database: Database, transfer: UUID) -> list[str]:
    """Return each item's error code, or its status, with a star when it was skipped."""
    return [(item.error_code or item.status) + "*" * item.skipped for item in items_of(database, transfer)]


def do(database: Database, act: Callable[..., Any], hold: TransferLease, *args: Any) -> Any:
    with database.write() as session:
        return act(session, hold, *args)


def results(*numbers: int) -> list[tuple[int, Facts]]:
    return [(number, FACTS) for number in numbers]


def perform(database: Database, transfer: UUID) -> str | ItemsFailed:
    """Do all of a batch that can be done, as the flow does."""
    hold = begin(database, transfer)
    kind = TransferKind(get_transfer(database, transfer).kind)
    with database.read() as session:
        numbers = [item.number for item in batch_results.items_to_do(session, hold, -1, ITEMS_MAX)]
    if kind is TransferKind.COPY_MANY:
        do(database, batch_results.complete_copies, hold, results(*numbers))
    else:
        do(database, batch_results.commit_moves, hold, results(*numbers))
        do(database, batch_results.end_committed, hold, numbers)
    found: str | ItemsFailed = do(database, batch_results.finish_batch, hold)
    return found


def set_status(database: Database, object_id: UUID, status: ObjectStatus) -> None:
    with database.write() as session:
        session.get_one(DataObject, object_id).status = status.value


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
    transfer = submit(database, SealedRequest(TransferKind.COPY_MANY, validated(request, CopyManyRequest)))
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


# --- directories ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "dest", "expected"),
    [
        ("run", "to/here", {"to/here/a.nc", "to/here/deep/b.nc"}),
        ("/data/alpha/run/", "/data/beta/to/", {"to/a.nc", "to/deep/b.nc"}),
        ("run/deep", "", {"b.nc"}),
        ("", ".", {"run/a.nc", "run/deep/b.nc", "run2/c.nc", "run.nc"}),
        ("/data/alpha", "/data/beta", {"run/a.nc", "run/deep/b.nc", "run2/c.nc", "run.nc"}),
    ],
)
def test_a_directory_is_all_that_lies_below_it(database: Database, path: str, dest: str, expected: set[str]) -> None:
    for name in ("run/a.nc", "run/deep/b.nc", "run2/c.nc", "run.nc"):
        register(database, name)
    register(database, "run/on-beta", "beta")
    set_status(database, register(database, "run/deleted"), ObjectStatus.DELETED)
    transfer = submit(database, below("copy", path, dest))
    items = items_of(database, transfer)
    assert {item.destination_place for item in items} == expected
    assert {item.status for item in items} == {"QUEUED"}


def test_a_directory_that_cannot_be_is_refused_as_a_whole(database: Database) -> None:
    register(database, "run/a.nc")
    before = snapshot(database)
    for wanted, error in (
        (below("copy", "nothing", "to"), ObjectNotFound),
        (below("copy", "run/a.nc", "to"), ObjectNotFound),
        (below("copy", "../run", "to"), PathNotAllowed),
        (below("move", "run", "/elsewhere"), PathNotAllowed),
        (below("move", "run", "to", machine="nowhere"), UnknownMachine),
    ):
        with pytest.raises(error):
            submit(database, wanted)
    assert snapshot(database) == before


def rows_of(database: Database, transfer: UUID) -> tuple[Any, ...]:
    """Return all that is stored for a batch, without the identifiers of what is new."""
    row = get_transfer(database, transfer)
    common = (row.source_machine, row.destination_machine, row.group, row.bytes_total, row.request)
    with database.read() as session:
        items = [
            {column.key: getattr(item, column.key) for column in TransferItem.__table__.columns}
            for item in select_items(session, transfer, limit=ITEMS_MAX)
        ]
        held = session.scalars(select(Claim).where(Claim.transfer_id == transfer))
        held_by: set[tuple[Any, ...]] = {
            (one.mode, one.machine, one.place, one.place_key, one.object_id) for one in held
        }
    for item in items:
        del item["transfer_id"]
    names = {item["result_object_id"]: item["number"] for item in items}
    assert len(names) == len(items)
    if row.kind == TransferKind.COPY_MANY.value:
        assert {uuid.version for uuid in names} == {4}
        held_by = {(*some, names.get(uuid, uuid)) for *some, uuid in held_by}
        items = [item | {"result_object_id": item["number"]} for item in items]
    return common, items, held_by


@pytest.mark.parametrize("kind", ["copy", "move"])
@pytest.mark.parametrize(("start", "dest"), [("to/", "to/"), ("/data/beta/to//", "to/"), ("./to", "to/"), ("", "")])
def test_a_directory_is_stored_as_its_items_are(database: Database, kind: str, start: str, dest: str) -> None:
    names = ["run/a.nc", "run/deep/b é.nc", "run/z%_'\".nc"]
    checksums = SHA256, None, SHA256
    facts = zip(names, (7, 2**63 - 1, 5), "ggh", strict=True)
    objects = [register(database, name, size=size, group=group) for name, size, group in facts]
    with database.write() as session:
        for uuid, checksum in zip(objects, checksums, strict=True):
            session.get_one(DataObject, uuid).checksum = checksum
    before = snapshot(database)
    found = []
    given = f"{start.rstrip('/')}/" if start else ""
    for wanted in (
        below(kind, "run", start),
        batch(kind, *((uuid, given + name.removeprefix("run/")) for uuid, name in zip(objects, names, strict=True))),
    ):
        transfer = submit(database, wanted)
        found.append(rows_of(database, transfer))
        with database.write() as session:
            for model in (Claim, TransferItem):
                session.execute(delete(model).where(model.transfer_id == transfer))
    assert found[0] == found[1]
    assert [item["destination_place"] for item in found[0][1]] == [dest + name.removeprefix("run/") for name in names]
    assert snapshot(database)[0] == before[0]


@pytest.mark.parametrize(
    ("kind", "other", "expected"),
    [
        ("copy", "move", ["QUEUED", "object_busy", "QUEUED"]),
        ("copy", "copy", ["QUEUED", "QUEUED", "QUEUED"]),
        ("move", "copy", ["QUEUED", "object_busy", "QUEUED"]),
        ("move", "move", ["QUEUED", "object_busy", "QUEUED"]),
    ],
)
def test_objects_of_a_directory_that_others_have_are_busy(
    database: Database, kind: str, other: str, expected: list[str]
) -> None:
    objects = [register(database, f"run/{name}") for name in "abc"]
    submit(database, batch(other, (objects[1], "elsewhere")))
    assert ends(database, submit(database, below(kind, "run", "to"))) == expected


def test_a_place_below_that_cannot_be_is_the_items_error(database: Database) -> None:
    long = "/".join(["d" * 250] * 16)
    for name in ("a", long, "z"):
        register(database, f"run/{name}")
    transfer = submit(database, below("copy", "run", "e" * 200))
    assert ends(database, transfer) == ["QUEUED", "path_not_allowed", "QUEUED"]
    assert Counter(mode for mode, *_, held in claims(database) if held == transfer) == {"read": 2, "place": 2}


def test_a_place_that_is_taken_meanwhile_is_the_items_error(database: Database) -> None:
    objects = [register(database, f"run/{name}") for name in "abc"]
    wanted = judge(database, below("copy", "run", "to"))
    assert wanted.items is None  # nothing was there: left to the statements that accept all
    register(database, "to/b", "beta")
    transfer = submit_judged(database, wanted)
    assert ends(database, transfer) == ["QUEUED", "destination_exists", "QUEUED"]
    assert [item.object_id for item in items_of(database, transfer)] == objects
    assert Counter(mode for mode, *_, held in claims(database) if held == transfer) == {"read": 2, "place": 2}


def register_many(database: Database, count: int, directory: str = "many", *, size: int = 5) -> list[UUID]:
    files = [
        FoundFile(found, directory, Facts(size), found)
        for found in (place(f"{directory}/{number:05}") for number in range(count))
    ]
    with database.write() as session:
        rows = register_files(session, files, TreeRequest(machine="a", group="g"))
        return [row.id for row in rows]


STATEMENTS = 20
"""What accepting a batch needs, however many items it has."""


@contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Yield a list of the statements that are executed meanwhile."""
    seen: list[str] = []

    def note(*what: Any) -> None:
        seen.append(what[2])

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


@pytest.mark.parametrize("kind", ["copy", "move"])
def test_repeated_batch_needs_as_few_statements(database: Database, kind: str) -> None:
    wanted = batch(kind, *((uuid, f"out/{number}") for number, uuid in enumerate(register_many(database, 600, size=7))))
    with statements(database) as first:
        transfer = submit(database, wanted)
    assert perform(database, transfer) == "600 items done"
    with statements(database) as again:
        transfer = submit(database, wanted)
    assert max(len(first), len(again)) <= STATEMENTS
    assert set(ends(database, transfer)) == {"COMPLETE*"}
    assert not [claim for claim in claims(database) if claim[3] == transfer]


@pytest.mark.slow
@pytest.mark.dialect("sqlite")
def test_memory_of_accepting_is_that_of_a_piece(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.batches.item_admission.PIECE", 1000)
    peaks = []
    for directory, count in (("few", 2000), ("many", ITEMS_MAX)):
        register_many(database, count, directory)
        register(database, f"out/{directory}/00000", "beta")  # judged one by one
        wanted = below("copy", directory, f"out/{directory}")
        tracemalloc.start()
        try:
            submit(database, wanted)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 48 * 2**20


@pytest.mark.parametrize("kind", ["copy", "move"])
def test_large_directory_is_accepted_in_pieces(database: Database, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("models.batches.item_admission.PIECE", 4)
    objects = register_many(database, 10)
    register(database, "out/00005", "beta")
    transfer = submit(database, below(kind, "many", "out"))
    found = items_of(database, transfer)
    assert [(item.number, item.object_id, item.dest) for item in found] == [
        (number, uuid, f"out/{number:05}") for number, uuid in enumerate(objects)
    ]
    assert [item.error_code for item in found] == [None] * 5 + ["destination_exists"] + [None] * 4
    row, mode = get_transfer(database, transfer), "read" if kind == "copy" else "write"
    assert (row.request["count"], row.bytes_total, row.source_machine, row.group) == (10, 45, "alpha", "g")
    assert Counter(mode for mode, *_, held in claims(database) if held == transfer) == {mode: 9, "place": 9}


def test_directory_has_no_more_than_is_allowed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.batches.item_admission.PIECE", 3)
    objects = register_many(database, 7)
    directory = Directory(machine="alpha", path="many")
    with database.read() as session:
        found = [[row.id for row, _ in some] for some in pieces_below(session, MACHINES, directory, most=7)]
        assert found == [objects[:3], objects[3:6], objects[6:]]
        with pytest.raises(InvalidRequest) as refused:
            list(pieces_below(session, MACHINES, directory, most=6))
    assert set(refused.value.fields) == {"directory.path"}


def test_ten_thousand_items_are_accepted(database: Database) -> None:
    register_many(database, ITEMS_MAX)
    with statements(database) as seen:
        transfer = submit(database, below("copy", "many", "out"))
    assert len(seen) <= STATEMENTS
    assert not [text for text in seen if text.count("INSERT INTO transfer_items") and "SELECT" not in text]
    with database.read() as session:
        assert count_items(session, transfer).queued == ITEMS_MAX
        assert session.scalar(select(func.count()).where(Claim.transfer_id == transfer)) == 2 * ITEMS_MAX


@pytest.mark.dialect("sqlite")
def test_items_are_counted_by_an_index_alone(database: Database) -> None:
    with database.read() as session:
        with heard(database, "before_cursor_execute") as seen:
            count_items(session, uuid4())
        statement, parameters = seen[-1][2:4]
        plan = str(session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all())
    assert "COVERING INDEX ix_transfer_items_status" in plan
    assert "TEMP B-TREE" not in plan


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
    new = items[0].result_object_id
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
