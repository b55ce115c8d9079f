"""What audits, sweeps and retention ask of the catalogue grows with the rows, and with nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from datamanager.domain.audit_rules import Expected
from datamanager.domain.location import temporary_name
from datamanager.domain.retention_rules import parse_rules
from datamanager.engine.control import Control
from datamanager.machines import Machine, TransportKind
from flows.audit import context, first_pass, second_pass
from flows.cleanup import sweeping
from flows.cleanup.sweeping import Sweeper
from models.audit import scan_queries
from models.database import Database, insert_rows, now
from models.retention import marks
from models.retention.facts import candidates, keepers
from models.tables import DataObject, Transfer
from tests.integration.test_catalogue_listing import heard
from tests.support.auditing import Plant

pytestmark = pytest.mark.dialect

RULES = parse_rules(
    '[[rule]]\nname = "old"\naction = "delete"\nmachine = "here"\ngroup = ["x"]\nolder_than = "1d"\n'
    '[[rule]]\nname = "archived"\naction = "delete"\nstatus = ["ARCHIVED"]\nlarger_than = 1\n'
)
BEGAN = datetime(2020, 1, 1, tzinfo=UTC)


@pytest.fixture
def local(tmp_path: Path, database: Database) -> Iterator[Plant]:
    """A local machine."""
    folder = tmp_path / "data"
    folder.mkdir()
    made = Plant(
        database, Machine(name="here", transport=TransportKind.LOCAL, base_dir=str(folder)), folder, tmp_path / "home"
    )
    yield made
    made.services.storages.close()


def fill(database: Database, rows: int, **values: Any) -> list[UUID]:
    """Enter objects of which each is a minute younger than the one before; return them."""
    common = {"machine": "here", "path": "", "metadata": {}, "description": "", "originator": "", "verified": "none"}
    some = [
        {
            **common,
            "id": uuid4(),
            "filename": f"{number:06}",
            "place": f"{number:06}",
            "status": "ACTIVE",
            "group": "x",
            "date_registered": BEGAN + timedelta(minutes=number),
            "date_modified": BEGAN,
            **values,
        }
        for number in range(rows)
    ]
    with database.write() as session:
        insert_rows(session, DataObject, some)
    return [one["id"] for one in some]


def test_survey_page_begins_where_the_one_before_ended(database: Database) -> None:
    """Neither are the rows before a page read, nor are those behind it sorted, whatever index a rule would have."""
    ids = fill(database, 2000)
    if database.is_postgresql:
        with database.connection() as connection:
            connection.exec_driver_sql("ANALYZE objects")
    after = BEGAN + timedelta(minutes=500), ids[500]
    with database.read() as session:
        time = now(session)
        with heard(database, "before_cursor_execute") as seen:
            assert [row.id for row in candidates(session, RULES, time, after, 100)] == ids[501:601]
        statement, parameters = seen[-1][2:4]
        if database.is_postgresql:
            query = f"EXPLAIN (ANALYZE, TIMING OFF) {statement}"
        else:
            query = f"EXPLAIN QUERY PLAN {statement}"
        plan = str(session.connection().exec_driver_sql(query, parameters).all())
    if database.is_postgresql:
        assert "ix_objects_date_registered" in plan
        assert "Sort" not in plan
        assert "Rows Removed by Filter: 1)" in plan or "Rows Removed by Filter: 1'" in plan
    else:
        assert "SEARCH objects USING INDEX ix_objects_date_registered (date_registered>" in plan
        assert "TEMP B-TREE" not in plan


def test_survey_finds_what_rules_select_page_by_page(database: Database) -> None:
    wanted = fill(database, 7) + fill(database, 4, status="ARCHIVED", machine="there", size=2)
    fill(database, 3, group="y")
    fill(database, 3, status="DELETED")
    found, after = list[UUID](), None
    with database.read() as session:
        time = now(session)
        while rows := candidates(session, RULES, time, after, 2):
            found += [row.id for row in rows]
            after = rows[-1].date_registered, rows[-1].id
    assert sorted(found) == sorted(wanted)


@pytest.mark.dialect
def test_copies_are_found_by_the_first_digits_of_their_checksums(database: Database) -> None:
    """A copy that is another file with the same first digits is none."""
    same, other = "sha256:" + "ab" * 32, "sha256:" + "ab" * 4 + "cd" * 28
    facts = {"verified": "sha256", "size": 1}
    kept = fill(database, 2, checksum=same, **facts)[0]
    alone = fill(database, 1, checksum=other, **facts)[0]
    for number in range(50):
        fill(database, 10, checksum=f"sha256:{number:064x}", **facts)
    with database.read() as session:
        with heard(database, "before_cursor_execute") as seen:
            assert keepers(session, RULES, [same, other], now(session), {}) == {same: kept, other: alone}
        statement, parameters = next(one[2:4] for one in seen if "checksum" in one[2] and "FROM objects" in one[2])
        connection = session.connection()
        if database.is_postgresql:  # of so few it reads all
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
        how = "EXPLAIN" if database.is_postgresql else "EXPLAIN QUERY PLAN"
        assert "ix_objects_checksum" in str(connection.exec_driver_sql(f"{how} {statement}", parameters).all())


@pytest.mark.dialect("sqlite")
def test_marks_under_way_are_found_among_all_others(database: Database) -> None:
    """A run settles them before each of its acts, in a transaction that excludes other writers."""
    with database.write() as session:
        with heard(database, "before_cursor_execute") as seen:
            assert marks.settle(session) == 0
        statement, parameters = next(one[2:4] for one in seen if "retention_marks" in one[2])
        plan = str(session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all())
    assert "SCAN retention_marks USING INDEX ix_retention_marks_under_way" in plan
    assert "TEMP B-TREE" not in plan


def test_sweep_looks_owners_of_many_directories_up_together(local: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "JUDGED", 10)
    living = _open_transfer(local.database)
    stays = [local.write(f"0/{temporary_name('a', living, 1)}"), local.write(f"29/{temporary_name('b', living, 2)}")]
    for number in range(30):
        local.register(f"{number}/kept")
        local.write(f"{number}/{temporary_name('a', uuid4(), 1)}")
    with heard(local.database, "before_cursor_execute") as seen:
        swept = Sweeper(local.services, local.machine, 86_400.0, Control(), dry_run=False).sweep()
    assert (swept.removed, swept.spared) == (30, 2)
    assert all(path.exists() for path in stays)
    asked = [statement for _, _, statement, *_ in seen if "FROM transfers" in statement and "kind" not in statement]
    assert 1 <= len(asked) <= 6  # the owners of ten and more each time, by their identifiers; failed directories


def _open_transfer(database: Database) -> UUID:
    new = uuid4()
    with database.write() as session:
        row = {"kind": "copy", "request": {}, "faults": [], "notes": {}}
        session.add(Transfer(id=new, created=now(session), **row))
    return new


def test_owners_are_found_by_the_index_of_transfers(database: Database) -> None:
    ids = [_open_transfer(database) for _ in range(5)]
    with database.write() as session:
        session.get_one(Transfer, ids[0]).ended = now(session)
    with database.read() as session:
        with heard(database, "before_cursor_execute") as seen:
            found = scan_queries.open_owners(session, [one.hex[:8] for one in (*ids, uuid4())])
        assert found == {one.hex[:8] for one in ids[1:]}
        statement, parameters = seen[0][2:4]
        if not database.is_postgresql:
            plan = str(session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all())
            assert "SCAN" not in plan


def test_audit_asks_as_many_questions_as_there_are_pages(local: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the objects are twice the statements at most, and none gets more rows than a page."""
    for module in (context, first_pass, second_pass):
        monkeypatch.setattr(module, "PAGE", 10)
    asked = list[int]()
    for start in (0, 60):
        for number in range(start, start + 60):
            local.register(f"{number // 20}/{number}")
        with heard(local.database, "before_cursor_execute") as seen, pages(monkeypatch) as rows:
            assert local.audit().row.counts["objects"] == start + 60
        asked.append(len(seen))
        assert max(rows) == 10
        assert sum(rows) == start + 60
    assert asked[1] <= 2 * asked[0]


@contextmanager
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Collect how many objects each page of an audit has."""
    found, read = list[int](), scan_queries.objects_by_place

    def noted(*args: Any) -> list[Expected]:
        page = read(*args)
        found.append(len(page))
        return page

    with monkeypatch.context() as patched:
        patched.setattr(scan_queries, "objects_by_place", noted)
        yield found
