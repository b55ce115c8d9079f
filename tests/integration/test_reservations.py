"""Quotas in the catalogue: what there is and what open tasks may add, counted in the transaction that adds."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import func, select, text

from datamanager.domain.states import ObjectStatus
from datamanager.errors import Cancelled, QuotaExceeded
from datamanager.identity.quotas import NO_QUOTAS, Holder, HolderKind, Quotas, load_quotas
from models import submission
from models.access.visibility import ALL
from models.database import Database
from models.objects import totals
from models.objects.catalogue import Facts
from models.submission import SealedRequest
from models.tables import Reservation, TrailEntry, Transfer
from models.transfers import outcomes, shared_outcomes
from models.transfers.cancel_pause import cancel
from models.transfers.reservations import Amount, require_room, shown_quotas, used
from tests.integration.test_catalogue_listing import heard
from tests.support.access import in_role
from tests.support.batches import batch, perform, set_status
from tests.support.bookkeeping import MACHINES, begin, order, register

FIRE, MARIA = Holder(HolderKind.GROUP, "fire"), Holder(HolderKind.PERSON, "maria")
GRANT = in_role("admin", person="maria")


def quotas_of(tmp_path: Path, text: str) -> Quotas:
    file = tmp_path / "quotas.toml"
    file.write_text(f"version = 1\n{text}")
    return load_quotas(file)


def submit(database: Database, wanted: SealedRequest, quotas: Quotas) -> UUID:
    with database.write() as session:
        return submission.submit(session, MACHINES, wanted, quotas).id


def has(database: Database, holder: Holder = FIRE) -> Amount:
    with database.read() as session:
        return used(session, holder)


def complete(database: Database, task: UUID, size: int = 5) -> None:
    hold = begin(database, task)
    with database.write() as session:
        outcomes.complete_copy(session, hold, Facts(size))


@pytest.mark.dialect
def test_a_task_reserves_what_it_will_add_until_it_is_there(database: Database, tmp_path: Path) -> None:
    quotas = quotas_of(tmp_path, "[groups.fire]\nobjects = 3\nbytes = 15")
    source = register(database, "a", group="fire", size=5)
    assert has(database) == Amount(1, 5)
    first = submit(database, order("copy", source, "b"), quotas)
    second = submit(database, order("copy", source, "c"), quotas)
    assert has(database) == Amount(3, 15, 2)
    with pytest.raises(QuotaExceeded, match=r"group 'fire' has 3 of 3 objects, and this would add 1"):
        submit(database, order("copy", source, "d"), quotas)
    complete(database, first)
    assert has(database) == Amount(3, 15, 1)
    with database.write() as session:
        cancel(session, second, ALL)
    assert has(database) == Amount(2, 10, 0)
    submit(database, order("copy", source, "d"), quotas)
    with database.read() as session:
        assert session.scalar(select(func.count()).select_from(Reservation)) == 1


def test_what_is_refused_leaves_nothing(database: Database, tmp_path: Path) -> None:
    quotas = quotas_of(tmp_path, "[groups.fire]\nqueued = 0")
    source = register(database, "a", group="fire")
    with pytest.raises(QuotaExceeded, match="tasks that have not ended") as refused:
        submit(database, order("move", source, "b"), quotas)
    assert refused.value.again is not None
    with database.read() as session:
        for table in (Transfer, Reservation, TrailEntry):
            assert session.scalar(select(func.count()).select_from(table)) == 0


def test_tasks_that_end_together_release_theirs(database: Database, tmp_path: Path) -> None:
    quotas = quotas_of(tmp_path, "[groups.fire]\nqueued = 9")
    source = register(database, "a", group="fire")
    holds = [begin(database, submit(database, order("copy", source, name), quotas)) for name in "bcd"]
    assert has(database).queued == 3
    with heard(database, "before_cursor_execute") as statements, database.write() as session:
        shared_outcomes.complete_copies(session, {hold: Facts(5) for hold in holds})
    assert sum("DELETE FROM reservations" in details[2] for details in statements) == 1
    assert has(database) == Amount(4, 20, 0)


def test_a_failed_task_releases_its_reservation(database: Database, tmp_path: Path) -> None:
    quotas = quotas_of(tmp_path, "[groups.fire]\nobjects = 9")
    hold = begin(database, submit(database, order("copy", register(database, "a", group="fire"), "b"), quotas))
    with database.write() as session:
        outcomes.fail(session, hold, Cancelled("no"))
    assert has(database) == Amount(1, 5, 0)


@pytest.mark.dialect
def test_a_batch_is_counted_as_a_whole_and_by_group(database: Database, tmp_path: Path) -> None:
    fire = [register(database, f"fire/{number}", group="fire", size=5) for number in range(3)]
    flood = register(database, "flood", group="flood", size=7)
    wanted = batch("copy", *((one, f"to/{one}") for one in (*fire, flood)))
    with pytest.raises(QuotaExceeded, match=r"has 3 of 5 objects, and this would add 3"):
        submit(database, wanted, quotas_of(tmp_path, "[groups.fire]\nobjects = 5"))
    task = submit(database, wanted, quotas_of(tmp_path, "[groups.fire]\nobjects = 6\n[groups.flood]\nobjects = 2"))
    assert has(database) == Amount(6, 30, 1)
    assert has(database, Holder(HolderKind.GROUP, "flood")) == Amount(2, 14, 1)
    perform(database, task)
    assert has(database) == Amount(6, 36, 0)  # a new object is what the mover has found it to be


def test_what_adds_nothing_is_permitted_to_who_has_too_much(database: Database, tmp_path: Path) -> None:
    quotas = quotas_of(tmp_path, "[groups.fire]\nobjects = 1\nbytes = 1")
    sources = [register(database, f"{number}", group="fire") for number in range(3)]
    submit(database, order("move", sources[0], "b"), quotas)
    submit(database, order("delete", sources[1]), quotas)
    with pytest.raises(QuotaExceeded):
        submit(database, order("copy", sources[2], "c"), quotas)


def test_deleted_objects_do_not_count(database: Database) -> None:
    register(database, "a", group="fire")
    set_status(database, register(database, "b", group="fire"), ObjectStatus.DELETED)
    assert has(database) == Amount(1, 5)


@pytest.mark.dialect
def test_a_person_has_what_they_made_in_all_groups(database: Database, tmp_path: Path) -> None:
    quotas = quotas_of(tmp_path, "[persons.maria]\nobjects = 1")
    source = register(database, "a", group="fire")
    mine = replace(order("copy", source, "b"), grant=GRANT)
    complete(database, submit(database, mine, quotas))
    assert has(database, MARIA) == Amount(1, 5)
    with database.write() as session:
        totals.fold(session)
    assert has(database, MARIA) == Amount(1, 5)
    with pytest.raises(QuotaExceeded, match="person 'maria'"):
        submit(database, replace(order("copy", source, "c"), grant=GRANT), quotas)
    submit(database, order("copy", source, "c"), quotas)


def test_registrations_are_counted_in_their_transaction(database: Database, tmp_path: Path) -> None:
    quotas = quotas_of(tmp_path, "[groups.fire]\nbytes = 10")
    register(database, "a", group="fire", size=5)
    register(database, "b", group="fire", size=5)
    with database.write() as session:
        require_room(session, quotas, None, "fire", [5])
        require_room(session, quotas, None, "other", [50])
    register(database, "c", group="fire", size=1)
    with pytest.raises(QuotaExceeded, match=r"has 10 of 10 bytes"), database.write() as session:
        require_room(session, quotas, None, "fire", [1])


@pytest.mark.dialect
def test_requests_that_come_together_do_not_exceed_a_quota(database: Database, tmp_path: Path) -> None:
    quotas = quotas_of(tmp_path, "[groups.fire]\nqueued = 4")
    sources = [register(database, f"{number}", group="fire") for number in range(12)]

    def ask(source: UUID) -> bool:
        try:
            submit(database, order("copy", source, f"to/{source}"), quotas)
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(ask, sources)) == 4
    assert has(database).queued == 4


@pytest.mark.dialect
def test_a_request_waits_for_the_one_before_it_and_counts_it(database: Database, tmp_path: Path) -> None:
    quotas = quotas_of(tmp_path, "[groups.fire]\nqueued = 1")
    one, two = (register(database, name, group="fire") for name in "ab")
    with ThreadPoolExecutor(1) as pool:
        with database.write() as session:
            submission.submit(session, MACHINES, order("copy", one, "c"), quotas)
            second = pool.submit(submit, database, order("copy", two, "d"), quotas)
            until(lambda: second.done() or waits_for_a_turn(database))
        with pytest.raises(QuotaExceeded):
            second.result()
    assert has(database).queued == 1


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not true() and time.monotonic() < end:
        time.sleep(0.01)


def waits_for_a_turn(database: Database) -> bool:
    """Say whether a transaction waits for another one's; on SQLite nobody gets as far as that."""
    if not database.is_postgresql:
        return True
    with database.read() as session:
        waiting = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        return bool(session.scalar(text(waiting)))


def test_nothing_is_asked_and_reserved_without_quotas(database: Database) -> None:
    source = register(database, "a", group="fire")
    with heard(database, "before_cursor_execute") as statements:
        submit(database, order("copy", source, "b"), NO_QUOTAS)
    assert not [one[2] for one in statements if "reservations" in one[2] or "object_totals" in one[2]]


def test_shown_quotas(database: Database, tmp_path: Path) -> None:
    quotas = quotas_of(tmp_path, "[groups.fire]\nobjects = 3\n[persons.maria]\nrequests_per_second = 2")
    register(database, "a", group="fire", size=5)
    with database.read() as session:
        group, person = shown_quotas(session, quotas, "maria", ["fire", "flood"])
    assert group == {
        "kind": "group",
        "name": "fire",
        "objects": {"used": 1, "limit": 3},
        "bytes": {"used": 5, "limit": None},
        "queued": {"used": 0, "limit": None},
        "requests_per_second": None,
    }
    assert (person["name"], person["requests_per_second"]) == ("maria", 2)
