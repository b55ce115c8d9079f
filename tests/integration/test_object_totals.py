"""The totals of objects on both databases: always what a count of the rows gives, whoever changes them and how."""

from __future__ import annotations

import contextlib
from typing import Any
from uuid import uuid4

import pytest
from alembic.script import ScriptDirectory
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, func, select, text, update
from sqlalchemy import insert as insert_statement

from datamanager.domain.fields import SIZE_MAX
from models import migrate
from models.access.visibility import ALL
from models.database import Database, insert_rows, now
from models.objects import totals
from models.tables import Base, DataObject, ObjectChange, ObjectTotal
from models.tables.object_triggers import SQLITE
from tests.integration.test_catalogue_listing import heard
from tests.support.catalogue import catalogue
from tests.support.postgres import Databases

pytestmark = pytest.mark.dialect

BEFORE = str(ScriptDirectory(migrate.FOLDER).get_revision("0015_rollups").down_revision)
KEY = ("machine", "group", "status")
CHANGED = (*KEY, "size", "checksum", "created_by")

OURS = {*SQLITE, "dm_note_objects"}

keys = st.fixed_dictionaries(
    {
        "machine": st.sampled_from(["a", "b"]),
        "group": st.sampled_from(["", "x", "ü" * 3000]),
        "status": st.sampled_from(["ACTIVE", "DELETED"]),
        "size": st.sampled_from([None, 0, 7, 2**50]),
        "checksum": st.sampled_from([None, "sha256:1", "sha256:2"]),
        "created_by": st.sampled_from([None, "maria", "jane"]),
    }
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("insert"), st.lists(keys, min_size=1, max_size=4)),
        st.tuples(st.just("change"), st.tuples(st.integers(0, 9), keys)),
        st.tuples(st.just("change one column"), st.tuples(st.sampled_from(CHANGED), keys)),
        st.tuples(st.just("move all"), st.sampled_from("ab")),
        st.tuples(st.just("touch"), st.none()),
        st.tuples(st.just("delete"), st.sampled_from("ab")),
        st.tuples(st.just("fold"), st.integers(1, 3)),
        st.tuples(st.just("undone"), st.lists(keys, min_size=1, max_size=2)),
    ),
    max_size=8,
)


def rows_of(database: Database, some: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with database.read() as session:
        time = now(session)
    common = {"path": "", "filename": "f", "place": "f", "metadata": {}, "description": "", "originator": ""}
    dates = {"date_registered": time, "date_modified": time}
    return [{"id": uuid4(), "verified": "none", **common, **dates, **one} for one in some]


def counted(database: Database) -> list[tuple[Any, ...]]:
    """Count the rows themselves."""
    columns = [*(getattr(DataObject, name) for name in KEY), func.coalesce(DataObject.created_by, "")]
    sums = func.count(), func.coalesce(func.sum(DataObject.size), 0), func.count(DataObject.checksum)
    with database.read() as session:
        return sorted(tuple(row) for row in session.execute(select(*columns, *sums).group_by(*columns)))


def kept(database: Database) -> list[tuple[Any, ...]]:
    columns = [*(getattr(ObjectTotal, name) for name in KEY), ObjectTotal.person]
    with database.read() as session:
        return sorted(tuple(row) for row in totals.totals_by(session, ALL, *columns))


@given(events=steps)
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_totals_are_what_a_count_gives(database: Database, events: list[tuple[str, Any]]) -> None:
    with database.write() as session:
        for table in (DataObject, ObjectTotal, ObjectChange):
            session.execute(delete(table))
    for what, terms in events:
        change(database, what, terms)
        assert kept(database) == counted(database)
    while folded(database, 100):
        pass
    assert kept(database) == counted(database)
    with database.read() as session:
        assert session.scalars(select(ObjectChange)).all() == []


def change(database: Database, what: str, terms: Any) -> None:
    if what == "fold":
        folded(database, terms)
        return
    rows = rows_of(database, terms) if what in ("insert", "undone") else []
    with contextlib.suppress(_Undone), database.write() as session:
        match what:
            case "insert" | "undone":
                insert_rows(session, DataObject, rows)
            case "change":
                number, values = terms
                one = session.scalars(select(DataObject).order_by(DataObject.id).offset(number).limit(1)).first()
                for name, value in values.items() if one is not None else ():
                    setattr(one, name, value)
            case "change one column":
                session.execute(update(DataObject).values({terms[0]: terms[1][terms[0]]}))
            case "move all":
                session.execute(update(DataObject).values(machine=terms))
            case "touch":
                session.execute(update(DataObject).values(checked=now(session), checksum=DataObject.checksum))
            case "delete":
                session.execute(delete(DataObject).where(DataObject.machine == terms))
        if what == "undone":
            raise _Undone


class _Undone(Exception):
    """Ends a transaction without its changes."""


def folded(database: Database, limit: int) -> int:
    with database.write() as session:
        return totals.fold(session, limit)


def insert(database: Database, number: int, **values: Any) -> None:
    one = {"machine": "a", "group": "x", "status": "ACTIVE", "size": 5, "checksum": None, **values}
    rows = rows_of(database, [one] * number)
    with database.write() as session:
        insert_rows(session, DataObject, rows)


def test_changes_that_leave_the_totals_alone_note_nothing(database: Database) -> None:
    insert(database, 3)
    folded(database, 100)
    change(database, "touch", None)
    with database.read() as session:
        assert session.scalars(select(ObjectChange)).all() == []
        assert [(row.objects, row.bytes) for row in session.scalars(select(ObjectTotal))] == [(3, 15)]


def test_active_by_machine(database: Database) -> None:
    insert(database, 2, machine="a", group="y")
    insert(database, 1, machine="a", size=None)
    insert(database, 4, machine="b", status="DELETED")
    with database.read() as session:
        assert totals.active_by_machine(session, ALL) == {"a": (3, 10)}


def test_many_objects_are_inserted_by_one_statement_on_sqlite(database: Database) -> None:
    """There each statement that runs triggers costs more than a row."""
    with heard(database, "before_cursor_execute") as seen:
        insert(database, 500)
    (statement,) = [one[2] for one in seen if one[2].startswith("INSERT INTO objects")]
    assert statement.count("), (") == (0 if database.is_postgresql else 499)


def test_one_statement_notes_one_change_a_key(database: Database) -> None:
    """A bulk insert must not cost a further row an object."""
    rows = rows_of(database, [{"machine": "a", "group": "x", "status": "ACTIVE", "size": 1, "checksum": None}] * 50)
    with database.write() as session:
        session.execute(insert_statement(DataObject).values(rows))
    with database.read() as session:
        noted = [*session.scalars(select(ObjectChange)), *session.scalars(select(ObjectTotal))]
        assert [(row.objects, row.bytes) for row in noted] == [(50, 50)]


def test_writers_of_one_key_do_not_wait_for_each_other(postgres: Databases, postgres_template: str) -> None:
    url = postgres.url(template=postgres_template)
    database = Database(url)
    try:
        insert(database, 1)
        folded(database, 10)
        one, two = rows_of(
            database, [{"machine": "a", "group": "x", "status": "ACTIVE", "size": 1, "checksum": None}] * 2
        )
        with database.write() as first:
            insert_rows(first, DataObject, [one])
            with database.write() as second:
                second.execute(text("SET LOCAL lock_timeout = '1s'"))
                insert_rows(second, DataObject, [two])
            with database.write() as third:
                third.execute(text("SET LOCAL lock_timeout = '1s'"))
                assert totals.fold(third) == 1  # what is not committed is left for another time
            assert kept(database) == [("a", "x", "ACTIVE", "", 2, 6, 0)]
        assert kept(database) == [("a", "x", "ACTIVE", "", 3, 7, 0)]
    finally:
        database.close()
        postgres.drop(url)


# --- the migration ---


def triggers(database: Database) -> dict[str, str]:
    """Return what the database says of its triggers (and functions), by name."""
    if database.is_postgresql:
        query = (
            "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal UNION ALL "
            "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace"
        )
    else:
        query = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
    with database.read() as session:
        return {row[0]: row[1] for row in session.execute(text(query)) if row[0] in OURS}


def test_sizes_may_sum_beyond_64_bits(catalogue_url: str) -> None:
    database = Database(catalogue_url)
    migrate.upgrade(database, BEFORE)
    insert(database, 3, size=SIZE_MAX)
    migrate.upgrade(database)
    insert(database, 2, size=SIZE_MAX)
    insert(database, 2, machine="b", size=SIZE_MAX)
    with database.read() as session:
        found = totals.active_by_machine(session, ALL)
    # SQLite goes on with a real number there
    assert {name: count for name, (count, _) in found.items()} == {"a": 5, "b": 2}
    assert [round(size / SIZE_MAX, 6) for _, size in found.values()] == [5, 2]
    with database.write() as session:
        session.execute(delete(DataObject))
    with database.read() as session:
        assert totals.active_by_machine(session, ALL) == {}
    database.close()


def test_what_was_there_before_is_counted(catalogue_url: str) -> None:
    database = Database(catalogue_url)
    migrate.upgrade(database, BEFORE)
    insert(database, 3, size=None, checksum="sha256:1")
    insert(database, 2, machine="b", group="ü" * 3000, status="DELETED")
    migrate.upgrade(database)
    here, there = ("a", "x", "ACTIVE", "", 3, 0, 3), ("b", "ü" * 3000, "DELETED", "", 2, 10, 0)
    assert kept(database) == counted(database) == [here, there]
    insert(database, 1)
    assert kept(database) == counted(database)
    migrate.downgrade(database, BEFORE)
    assert triggers(database) == {}
    insert(database, 1)
    migrate.upgrade(database)
    assert kept(database) == counted(database)
    database.close()


def test_what_persons_made_before_is_counted_anew(catalogue_url: str) -> None:
    database = Database(catalogue_url)
    migrate.upgrade(database, "0019_access")
    insert(database, 2)
    insert(database, 3, created_by="maria")
    migrate.upgrade(database)
    nobody, maria = ("a", "x", "ACTIVE", "", 2, 10, 0), ("a", "x", "ACTIVE", "maria", 3, 15, 0)
    assert kept(database) == counted(database) == [nobody, maria]
    migrate.downgrade(database, "0019_access")
    with database.read() as session:
        sums = "SELECT machine, sum(objects), sum(bytes) FROM object_totals GROUP BY machine"
        assert [(row[0], int(row[1]), int(row[2])) for row in session.execute(text(sums))] == [("a", 5, 25)]
    database.close()


def test_the_declaration_makes_the_same_triggers_as_the_migration(catalogue_url: str) -> None:
    with catalogue(catalogue_url) as declared:
        wanted = triggers(declared)
        Base.metadata.drop_all(declared.engine)
        if declared.is_postgresql:
            with declared.connection() as connection:
                connection.execute(text("DROP FUNCTION dm_note_objects()"))
        migrate.upgrade(declared)
        assert triggers(declared) == wanted
        assert set(wanted) >= {"objects_added", "objects_removed", "objects_changed"}
