"""The audit trail in the catalogue: rows go with what they tell, are linked by one at a time, and show what was done to
them.
"""

from __future__ import annotations

import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import func, select, text

from datamanager.errors import DestinationExists, ItemsFailed, SourceMissing
from models.access import trail_links
from models.access.requester import HOST, requested, requester
from models.access.trail import TrailOutcome, note
from models.access.trail_chain import FlawKind, Link
from models.access.trail_links import FIRST, LAST, has_unlinked, link, mark, prunable, prune, records, verify
from models.access.trail_listing import TrailSelection, select_trail
from models.core.cursors import ROWS
from models.database import Database, insert_rows, now
from models.objects.catalogue import Facts
from models.tables import TrailEntry
from models.transfers import outcomes, shared_outcomes
from tests.integration.test_catalogue_listing import heard
from tests.support.batches import batch, perform, register_many
from tests.support.bookkeeping import begin, order, register, submit


def rows_of(database: Database) -> list[TrailEntry]:
    with database.read() as session:
        return list(session.scalars(select(TrailEntry).order_by(TrailEntry.id)))


def told(database: Database) -> list[tuple[str, str, str | None]]:
    return [(row.action, row.outcome, row.code) for row in rows_of(database)]


def write_rows(database: Database, count: int) -> None:
    with requested("10.0.0.1", "r-1", HOST, "maria"), database.write() as session:
        for number in range(count):
            note(session, "copy", TrailOutcome.DONE, subject=f"{number}")


def linked(database: Database, count: int) -> None:
    """Write rows and link them."""
    write_rows(database, count)
    with database.write() as session:
        assert link(session) == count


def flaws(database: Database, expected: Link | None = None) -> list[tuple[FlawKind, int, int]]:
    with database.read() as session:
        return [(flaw.kind, flaw.number, flaw.last) for flaw in verify(session, expected)]


def execute(database: Database, statement: str, **values: Any) -> None:
    """Do what somebody does who can write to the database, past the service."""
    with database.write() as session:
        session.execute(text(statement), values)


# --- rows ------------------------------------------------------------------------------------------------------------


@pytest.mark.dialect
def test_a_task_has_a_row_for_its_request_and_one_for_its_end(database: Database) -> None:
    source = register(database, "a")
    with requested("10.0.0.1", "r-1", HOST, "maria"):
        copied = submit(database, order("copy", source, "b"))
    hold = begin(database, copied)
    with database.write() as session:
        outcomes.complete_copy(session, hold, Facts(5))
    lost = submit(database, order("move", source, "c"))
    hold = begin(database, lost)
    with database.write() as session:
        outcomes.fail(session, hold, SourceMissing("gone"))
    assert told(database) == [
        ("copy", "allowed", None),
        ("copy", "done", None),
        ("move", "allowed", None),
        ("move", "failed", "source_missing"),
    ]
    first, end, *_ = rows_of(database)
    assert (first.person, first.means, first.origin, first.request_id) == ("maria", HOST, "10.0.0.1", "r-1")
    assert (first.object_id, first.transfer_id, end.transfer_id) == (source, copied, copied)
    assert (end.means, end.origin) == ("service", "")


def test_a_request_that_is_undone_has_no_row(database: Database) -> None:
    source = register(database, "a")
    register(database, "b", "beta")
    with pytest.raises(DestinationExists):
        submit(database, order("copy", source, "b"))
    assert told(database) == []


@pytest.mark.dialect
def test_tasks_that_end_together_have_their_rows_by_one_statement(database: Database) -> None:
    sources = [register(database, f"{number}") for number in range(3)]
    tasks = [submit(database, order("copy", source, f"to/{source}")) for source in sources]
    holds = [begin(database, task) for task in tasks]
    with heard(database, "before_cursor_execute") as statements, database.write() as session:
        assert len(shared_outcomes.complete_copies(session, {hold: Facts(5) for hold in holds})) == 3
    assert sum("INSERT INTO trail" in details[2] for details in statements) == 1
    assert told(database)[3:] == [("copy", "done", None)] * 3
    assert {row.transfer_id for row in rows_of(database)[3:]} == set(tasks)


def test_a_batch_has_two_rows_however_many_items_it_has(database: Database) -> None:
    objects = register_many(database, 20)
    task = submit(database, batch("copy", *((one, f"to/{one}") for one in objects)))
    assert not isinstance(perform(database, task), ItemsFailed)
    assert told(database) == [("copy_many", "allowed", None), ("copy_many", "done", None)]
    assert rows_of(database)[1].counts == {"total": 20, "complete": 20, "skipped": 0, "error": 0, "queued": 0}


@pytest.mark.dialect
def test_texts_of_clients_are_stored_as_they_can_be(database: Database) -> None:
    with requested("a\0b" * 100, "x" * 1000, HOST, "ev\0il\ud800"), database.write() as session:
        note(session, "copy", TrailOutcome.REFUSED, subject="\0" * 5000, code="not_allowed")
        assert requester().person == "ev\0il\ud800"
    (row,) = rows_of(database)
    assert row.person == "ev\\x00il\\ud800"
    assert row.origin.startswith("a\\x00ba\\x00b")
    assert (len(row.request_id or ""), len(row.subject or "")) == (200, 1000)
    with database.write() as session:
        link(session)
    assert flaws(database) == []


# --- the chain -------------------------------------------------------------------------------------------------------


@pytest.mark.dialect
def test_rows_are_linked_in_order_and_once(database: Database) -> None:
    write_rows(database, 3)
    with database.read() as session:
        assert has_unlinked(session)
    with database.write() as session:
        assert link(session, 2) == 2
    with database.write() as session:
        assert link(session, 2) == 1
        assert link(session, 2) == 0
    rows = rows_of(database)
    assert [row.number for row in rows] == [1, 2, 3]
    with database.read() as session:
        assert not has_unlinked(session)
        assert mark(session, LAST) == Link(3, rows[-1].hash or "")
    assert flaws(database) == []


@pytest.mark.dialect
def test_rows_that_become_visible_late_are_linked_then(database: Database) -> None:
    if database.is_postgresql:  # SQLite has one writer at a time
        with database.write() as slow:
            note(slow, "move", TrailOutcome.DONE)
            slow.flush()  # its id is the lowest
            linked(database, 1)
    else:
        linked(database, 1)
        write_rows(database, 1)
    with database.write() as session:
        assert link(session) == 1
    assert flaws(database) == []


@pytest.mark.dialect
def test_several_processes_may_link_and_write_at_once(database: Database) -> None:
    def work(number: int) -> int:
        write_rows(database, 3)
        with database.write() as session:
            return link(session, 2 + number % 2)

    with ThreadPoolExecutor(6) as pool:
        sum(pool.map(work, range(12)))
    with database.write() as session:
        link(session)
    assert sorted(row.number or 0 for row in rows_of(database)) == list(range(1, 37))
    assert flaws(database) == []


TAMPERED = {
    "a person is changed": ("UPDATE trail SET person = 'mallory' WHERE number = 4", [(FlawKind.CHANGED, 4, 4)]),
    "a time is changed": (
        "UPDATE trail SET time = (SELECT time FROM trail WHERE number = 1) WHERE number = 4",
        [(FlawKind.CHANGED, 4, 4)],
    ),
    "a count is added": ("UPDATE trail SET counts = '{\"total\": 9}' WHERE number = 4", [(FlawKind.CHANGED, 4, 4)]),
    "a row is removed": ("DELETE FROM trail WHERE number = 4", [(FlawKind.REMOVED, 4, 4)]),
    "rows are removed": ("DELETE FROM trail WHERE number IN (3, 4)", [(FlawKind.REMOVED, 3, 4)]),
    "the first rows are removed": ("DELETE FROM trail WHERE number < 3", [(FlawKind.REMOVED, 1, 2)]),
    "the newest row is removed": ("DELETE FROM trail WHERE number = 6", [(FlawKind.REMOVED, 6, 6)]),
    "a row is unlinked": ("UPDATE trail SET number = NULL WHERE number = 4", [(FlawKind.REMOVED, 4, 4)]),
    "a row is put behind the end": ("UPDATE trail SET number = 9 WHERE number = 6", [(FlawKind.INSERTED, 9, 9)]),
    "the mark is moved back": (
        "UPDATE trail_marks SET number = 5 WHERE name = 'last'",
        [(FlawKind.INSERTED, 6, 6), (FlawKind.CUT, 5, 5)],
    ),
}


@pytest.mark.attack(cwe=354, title="Rows of the audit trail are changed or removed")
@pytest.mark.parametrize("what", TAMPERED)
def test_what_was_done_to_the_rows_is_found(database: Database, what: str) -> None:
    statement, expected = TAMPERED[what]
    linked(database, 6)
    execute(database, statement)
    assert set(flaws(database)) >= set(expected)


def test_rows_that_changed_places_are_found(database: Database) -> None:
    linked(database, 6)
    for number, to in ((2, 100), (5, 2), (100, 5)):
        execute(database, "UPDATE trail SET number = :to WHERE number = :number", number=number, to=to)
    assert {number for _, number, _ in flaws(database)} >= {2, 5}


def test_an_inserted_row_is_found(database: Database) -> None:
    linked(database, 3)
    columns = "time, person, means, origin, action, outcome, hash"
    execute(
        database,
        f"INSERT INTO trail (number, {columns}) SELECT 0, {columns} FROM trail WHERE number = 2",
    )
    assert flaws(database) == [(FlawKind.INSERTED, 0, 0)]


def test_a_chain_that_was_made_anew_as_a_whole_is_known_by_a_link_noted_elsewhere(database: Database) -> None:
    linked(database, 4)
    with database.read() as session:
        noted = mark(session, LAST)
    linked(database, 2)
    assert flaws(database, noted) == []
    execute(database, "UPDATE trail SET person = 'mallory', number = NULL, hash = NULL")
    execute(database, "DELETE FROM trail_marks")
    with database.write() as session:
        link(session)
    assert flaws(database) == []
    assert flaws(database, noted) == [(FlawKind.CHANGED, 4, 4)]


# --- pruning and reading ---------------------------------------------------------------------------------------------


def date_back(database: Database, count: int, days: int) -> datetime:
    """Have the first rows be written so many days before; return a time between them and the others."""
    with database.write() as session:
        time = now(session)
        oldest = select(TrailEntry).order_by(TrailEntry.id).limit(count)
        for row in session.scalars(oldest):
            row.time = time - timedelta(days=days)
        return time - timedelta(days=days - 1)


@pytest.mark.dialect
def test_only_a_whole_prefix_is_pruned_and_its_hash_is_kept(database: Database) -> None:
    write_rows(database, 6)
    before = date_back(database, 4, 10)
    with database.write() as session:  # the third row is a new one: what comes behind it stays
        third = session.scalars(select(TrailEntry).order_by(TrailEntry.id).offset(2).limit(1)).one()
        third.time = now(session)
    with database.write() as session:
        link(session)
    with database.read() as session:
        end = prunable(session, before)
        assert end.number == 2
    with database.write() as session:
        assert prune(session, end, 1) == 1
    assert flaws(database) == []  # a process that dies in between leaves a chain
    with database.write() as session:
        assert prune(session, end) == 1
        assert prune(session, end) == 0
        assert mark(session, FIRST) == end
    assert [row.number for row in rows_of(database)] == [3, 4, 5, 6]
    assert flaws(database) == []
    execute(database, "DELETE FROM trail WHERE number = 3")
    assert flaws(database) == [(FlawKind.REMOVED, 3, 3)]


def test_rows_that_are_not_linked_are_not_pruned(database: Database) -> None:
    linked(database, 2)
    write_rows(database, 1)
    before = date_back(database, 3, 10)
    with database.write() as session:
        end = prunable(session, before)
        assert (end.number, prune(session, end)) == (2, 2)
    assert [row.number for row in rows_of(database)] == [None]
    with database.write() as session:
        assert link(session) == 1
    assert flaws(database) == []


@pytest.mark.dialect
def test_records_are_read_in_constant_memory(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trail_links, "READ_AT_ONCE", 10)
    row = {"person": "maria", "means": HOST, "origin": "", "action": "copy", "outcome": "done"}

    def peak(more: int) -> int:
        with database.write() as session:
            insert_rows(session, TrailEntry, [{**row, "time": now(session)}] * more)
            link(session)
        with database.read() as session:
            tracemalloc.start()
            count = sum(len(json.dumps(record)) > 0 for record in records(session))
            most = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert count >= more
        return most

    peak(50)  # what is made once
    small = peak(50)
    assert peak(600) < small + 100_000  # all of them are far more


@pytest.mark.dialect
def test_pages_of_the_trail_come_newest_first_and_filtered(database: Database) -> None:
    objects = [register(database, f"{number}") for number in range(3)]
    tasks: list[UUID] = []
    for person, source in zip(("maria", "jane", "maria"), objects, strict=True):
        with requested("10.0.0.1", "r", HOST, person):
            tasks.append(submit(database, order("copy", source, f"to/{source}")))

    def found(**wanted: Any) -> list[UUID | None]:
        ids, cursor = list[UUID | None](), None
        with database.read() as session:
            while True:
                rows, cursor = select_trail(session, TrailSelection(**wanted, limit=1, cursor=cursor), ROWS)
                ids += [row.transfer_id for row in rows]
                if cursor is None:
                    return ids

    assert found() == tasks[::-1]
    assert found(person="maria") == [tasks[2], tasks[0]]
    assert found(person="maria", object=objects[0]) == [tasks[0]]
    assert found(task=tasks[1]) == [tasks[1]]
    assert found(action="move") == []
    assert found(outcome=TrailOutcome.ALLOWED, action="copy") == tasks[::-1]
    with database.read() as session:
        time = session.scalar(select(func.max(TrailEntry.time)))
    assert time is not None
    assert found(since=time) == [tasks[2]]
    assert found(until=time) == [tasks[1], tasks[0]]
