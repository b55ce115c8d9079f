"""Partial files that ended transfers left behind are removed, and nothing else is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update

from datamanager.domain.location import Place, aside_name, temporary_name
from datamanager.domain.requests import (
    CopyManyRequest,
    CopyRequest,
    DeleteRequest,
    MoveManyRequest,
    MoveRequest,
    RegisterRequest,
)
from datamanager.domain.states import TransferKind
from datamanager.engine.bulk.bulk_chunk import item_id, part_name
from datamanager.errors import Cancelled
from datamanager.machines import Machines, parse_machines
from datamanager.settings import load_settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from flows.cleanup.leftovers import GIVEN_UP_AFTER, clear_up
from flows.runtime.services import Services
from models import submission
from models.database import Database, now
from models.objects.catalogue import Facts, register_object
from models.submission import SealedRequest
from models.tables import Transfer, TransferItem
from models.transfers import cancel_pause, outcomes, queue
from tests.support.bookkeeping import LEASE

LONG = "x" * 240


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    tables = [f'[machines.{name}]\ntransport = "local"\nbase_dir = "{tmp_path / name}"\n' for name in ("here", "there")]
    return parse_machines("".join(tables), "test")


@pytest.fixture
def parts(database: Database, machines: Machines, tmp_path: Path) -> Iterator[Services]:
    """A mover's parts over a real catalogue and two folders."""
    storages = Storages(machines, tmp_path / "run")
    settings = load_settings(home=tmp_path / "home")
    yield Services(settings, machines, database, storages, EgressGuard(()), "mover", notify=lambda _: None)
    storages.close()


def an_object(parts: Services, name: str) -> UUID:
    with parts.database.write() as session:
        request = RegisterRequest(filename=name, machine="here")
        return register_object(session, request, Place("here", name), Facts(5), by=None)


def submit(parts: Services, order: SealedRequest) -> UUID:
    with parts.database.write() as session:
        return submission.submit(session, parts.machines, order).id


def fail(parts: Services, transfer: UUID, epochs: int) -> None:
    """Let a transfer be taken so many times and then be cancelled, with something left behind."""
    for number in range(epochs):
        with parts.database.write() as session:
            (hold,) = queue.take(session, "mover", LEASE, 1, only=transfer)
            queue.begin(session, hold, uuid4())
            if number < epochs - 1:
                queue.requeue(session, hold)
    with parts.database.write() as session:
        outcomes.fail(session, hold, Cancelled("c"), leaves_partial=True)


def littered(parts: Services) -> list[UUID]:
    with parts.database.read() as session:
        return [row.id for row in cancel_pause.leaving_partials(session, 10)]


def test_what_a_transfer_left_is_removed(parts: Services, tmp_path: Path) -> None:
    request = CopyRequest(machine="there", dest="d/a.bin")
    transfer = submit(parts, SealedRequest(TransferKind.COPY, request, an_object(parts, "a"), grant=None))
    fail(parts, transfer, 3)
    folder = tmp_path / "there" / "d"
    folder.mkdir()
    mine = [folder / temporary_name("a.bin", transfer, epoch) for epoch in (1, 3)]
    others = [folder / "a.bin", folder / temporary_name("a.bin", uuid4(), 1), folder / temporary_name("b", transfer, 1)]
    for file in (*mine, *others):
        file.write_bytes(b"x")
    assert littered(parts) == [transfer]
    assert clear_up(parts) == 1
    assert sorted(folder.iterdir()) == sorted(others)
    assert littered(parts) == []
    assert clear_up(parts) == 0


def test_what_cannot_be_removed_now_is_tried_again_but_not_for_ever(parts: Services, tmp_path: Path) -> None:
    request = CopyRequest(machine="there", dest="d/a.bin")
    transfer = submit(parts, SealedRequest(TransferKind.COPY, request, an_object(parts, "a"), grant=None))
    fail(parts, transfer, 1)
    shutil.rmtree(tmp_path / "there")
    for _ in range(2):
        assert clear_up(parts) == 0
        assert littered(parts) == [transfer]
    (tmp_path / "there").mkdir()
    assert clear_up(parts) == 1  # there is nothing any more
    with parts.database.write() as session:
        row = session.get_one(Transfer, transfer)
        row.leaves_partial, row.ended = True, now(session) - GIVEN_UP_AFTER - timedelta(seconds=1)
    shutil.rmtree(tmp_path / "there")
    assert clear_up(parts) == 1
    assert littered(parts) == []


def test_what_a_batchs_items_left_is_removed(parts: Services, tmp_path: Path) -> None:
    names = ["a", LONG, "c"]
    items = [
        {"uuid": an_object(parts, f"o{n}"), "dest": f"d/{name}", "machine": "there"} for n, name in enumerate(names)
    ]
    unknown = {"uuid": uuid4(), "dest": "d/unknown", "machine": "nowhere"}
    request = CopyManyRequest.model_validate({"items": [*items, unknown]})
    transfer = submit(parts, SealedRequest(TransferKind.COPY_MANY, request, grant=None))
    fail(parts, transfer, 2)
    folder = tmp_path / "there" / "d"
    folder.mkdir()
    mine = [temporary_name(name, item_id(transfer, n), 1) for n, name in enumerate(names)]
    mine += [part_name(transfer, n, name, 2) for n, name in enumerate(names)]
    assert len({*mine}) == 6
    other = folder / temporary_name("a", uuid4(), 1)
    for file in (*(folder / name for name in mine), other):
        file.write_bytes(b"x")
    assert clear_up(parts) == 1
    assert list(folder.iterdir()) == [other]
    assert littered(parts) == []


def taken_twice(parts: Services, transfer: UUID) -> queue.TransferLease:
    """Return the hold of a mover that has a transfer after another one lost it."""
    for last in (False, True):
        with parts.database.write() as session:
            (hold,) = queue.take(session, "mover", LEASE, 1, only=transfer)
            queue.begin(session, hold, uuid4())
            if not last:
                queue.requeue(session, hold)
    return hold


def lost(parts: Services, transfer: UUID) -> None:
    """Let the mover that lost a transfer say so."""
    with parts.database.write() as session:
        cancel_pause.note_partial(session, transfer)


@pytest.mark.parametrize("late", [False, True], ids=["before the end", "after the end"])
@pytest.mark.parametrize("well", [True, False], ids=["complete", "error"])
def test_what_a_mover_made_after_it_had_lost_its_transfer_is_removed(
    parts: Services, tmp_path: Path, late: bool, well: bool
) -> None:
    request = CopyRequest(machine="there", dest="d/a.bin")
    transfer = submit(parts, SealedRequest(TransferKind.COPY, request, an_object(parts, "a"), grant=None))
    hold = taken_twice(parts, transfer)
    folder = tmp_path / "there" / "d"
    folder.mkdir()
    arrived, part = folder / "a.bin", folder / temporary_name("a.bin", transfer, 1)
    arrived.write_bytes(b"bytes")
    part.write_bytes(b"by")
    if not late:
        lost(parts, transfer)
        assert clear_up(parts) == 0  # the one that has it may go on with that
        assert part.exists()
    with parts.database.write() as session:
        if well:
            outcomes.complete_copy(session, hold, Facts(5))
        else:
            outcomes.fail(session, hold, Cancelled("c"), leaves_partial=False)
    if late:
        assert clear_up(parts) == 0
        lost(parts, transfer)
    assert littered(parts) == [transfer]
    assert clear_up(parts) == 1
    assert list(folder.iterdir()) == [arrived]


def test_of_a_batch_that_was_lost_every_item_is_looked_at(parts: Services, tmp_path: Path) -> None:
    item = {"uuid": an_object(parts, "o"), "dest": "d/a", "machine": "there"}
    transfer = submit(
        parts, SealedRequest(TransferKind.COPY_MANY, CopyManyRequest.model_validate({"items": [item]}), grant=None)
    )
    fail(parts, transfer, 2)
    with parts.database.write() as session:  # as if the second mover had done it
        session.execute(update(TransferItem).values(status="COMPLETE"))
    folder = tmp_path / "there" / "d"
    folder.mkdir()
    (folder / "a").write_bytes(b"bytes")
    (folder / temporary_name("a", item_id(transfer, 0), 1)).write_bytes(b"by")
    assert clear_up(parts) == 1
    assert list(folder.iterdir()) == [folder / "a"]


def test_who_lost_a_delete_may_have_left_its_file_aside(parts: Services) -> None:
    transfer = submit(parts, SealedRequest(TransferKind.DELETE, DeleteRequest(), an_object(parts, "a"), grant=None))
    hold = taken_twice(parts, transfer)
    lost(parts, transfer)
    with parts.database.write() as session:
        outcomes.complete_delete(session, hold)
    assert littered(parts) == [transfer]
    assert (clear_up(parts), littered(parts)) == (1, [])


def give_up(parts: Services, transfer: UUID, *, begun: bool = True) -> None:
    """End a transfer in ERROR without saying whether it left something behind."""
    with parts.database.write() as session:
        (hold,) = queue.take(session, "mover", LEASE, 1, only=transfer)
        if begun:
            queue.begin(session, hold, uuid4())
    with parts.database.write() as session:
        outcomes.fail(session, hold, Cancelled("c"))


def test_a_file_that_a_delete_left_aside_has_its_name_again(parts: Services, tmp_path: Path) -> None:
    transfer = submit(parts, SealedRequest(TransferKind.DELETE, DeleteRequest(), an_object(parts, "a"), grant=None))
    aside = tmp_path / "here" / aside_name("a", transfer)
    aside.write_bytes(b"bytes")
    give_up(parts, transfer)
    assert (clear_up(parts), littered(parts)) == (1, [])
    assert [(file.name, file.read_bytes()) for file in aside.parent.iterdir()] == [("a", b"bytes")]


def test_a_source_whose_name_is_taken_again_stays_aside(parts: Services, tmp_path: Path) -> None:
    request = MoveRequest(machine="there", dest="d/a.bin")
    transfer = submit(parts, SealedRequest(TransferKind.MOVE, request, an_object(parts, "a"), grant=None))
    aside = tmp_path / "here" / aside_name("a", transfer)
    aside.write_bytes(b"bytes")
    (tmp_path / "here" / "a").write_bytes(b"others")
    give_up(parts, transfer)
    assert (clear_up(parts), littered(parts)) == (0, [transfer])
    assert (aside.read_bytes(), aside.with_name("a").read_bytes()) == (b"bytes", b"others")


def test_sources_that_a_batch_left_aside_have_their_names_again(parts: Services, tmp_path: Path) -> None:
    items = [{"uuid": an_object(parts, name), "machine": "there", "dest": f"d/{name}"} for name in "ab"]
    request = MoveManyRequest.model_validate({"items": items})
    transfer = submit(parts, SealedRequest(TransferKind.MOVE_MANY, request, grant=None))
    for number, name in enumerate("ab"):
        (tmp_path / "here" / aside_name(name, item_id(transfer, number))).write_bytes(name.encode())
    give_up(parts, transfer)
    assert (clear_up(parts), littered(parts)) == (1, [])
    assert {file.name: file.read_bytes() for file in (tmp_path / "here").iterdir()} == {"a": b"a", "b": b"b"}


@pytest.mark.parametrize("begun", [True, False])
def test_an_end_that_does_not_know_counts_what_was_begun(parts: Services, begun: bool) -> None:
    request = CopyRequest(machine="there", dest="d/a.bin")
    transfer = submit(parts, SealedRequest(TransferKind.COPY, request, an_object(parts, "a"), grant=None))
    give_up(parts, transfer, begun=begun)
    assert littered(parts) == ([transfer] if begun else [])
    assert clear_up(parts) == int(begun)
