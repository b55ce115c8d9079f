"""Batches of whole directories and of many items in the catalogue: as their items one by one, in few statements."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import delete, event, func, select

from datamanager.domain.requests import (
    ITEMS_MAX,
    Directory,
)
from datamanager.domain.states import ObjectStatus, TransferKind
from datamanager.errors import (
    InvalidRequest,
    ObjectNotFound,
    PathNotAllowed,
    UnknownMachine,
)
from models.access.visibility import ALL
from models.batches.item_admission import pieces_below
from models.database import Database
from models.tables import Claim, DataObject, TransferItem
from models.transfers.items import count_items, select_items
from tests.integration.test_catalogue_listing import heard
from tests.support.batches import batch, below, ends, items_of, perform, register_many, set_status
from tests.support.bookkeeping import (
    MACHINES,
    SHA256,
    claims,
    get_transfer,
    judge,
    register,
    snapshot,
    submit,
    submit_judged,
)

pytestmark = pytest.mark.dialect


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
        assert {uuid.version for uuid in names} == {7}
        assert list(names) == sorted(names)  # which is the order of the indexes that have them
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
        found = [[row.id for row, _ in some] for some in pieces_below(session, MACHINES, directory, ALL, most=7)]
        assert found == [objects[:3], objects[3:6], objects[6:]]
        with pytest.raises(InvalidRequest) as refused:
            list(pieces_below(session, MACHINES, directory, ALL, most=6))
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
