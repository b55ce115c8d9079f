"""Lists of objects: filters, every sort key, pages that add up, and all of them, page by page."""

from __future__ import annotations

import base64
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, insert, update

from datamanager.domain.fields import SIZE_MAX
from datamanager.domain.states import ObjectStatus
from datamanager.errors import InvalidRequest
from models.access.visibility import ALL
from models.core.cursors import Rendering
from models.database import Database
from models.objects.filters import glob_to_like
from models.objects.listing import SORTABLE, STREAM_CHUNK, Selection, every_page, select_objects
from models.tables import DataObject
from tests.support.bookkeeping import register

pytestmark = pytest.mark.dialect

START = datetime(2026, 1, 1, tzinfo=UTC)


def row(**values: Any) -> dict[str, Any]:
    """Return an object's columns with `values` in them."""
    name = values.get("filename", "a.nc")
    plain = {
        "id": uuid4(),
        "machine": "alpha",
        "path": "in",
        "filename": name,
        "place": f"in/{name}",
        "description": "",
        "size": 5,
        "meta": {},
        "date_registered": START,
        "date_modified": START,
        "status": "ACTIVE",
        "originator": "",
        "group": "",
        "verified": "none",
    }
    return plain | values


def fill(database: Database, rows: list[dict[str, Any]]) -> None:
    """Make the catalogue hold just these rows."""
    with database.write() as session:
        session.execute(delete(DataObject))
        if rows:
            session.execute(insert(DataObject), rows)


def names(database: Database, **selection: Any) -> list[str]:
    with database.read() as session:
        return [obj.filename for obj in select_objects(session, Selection(sort="filename", **selection), ALL)[0]]


def pages(database: Database, selection: Selection) -> Iterator[list[DataObject]]:
    while True:
        with database.read() as session:
            rows, cursor = select_objects(session, selection, ALL)
        yield rows
        if cursor is None:
            return
        selection = replace(selection, cursor=cursor)


# NUL and lone surrogates can't get in; letters whose order depends on a locale are there on purpose
TEXT = st.text(st.sampled_from("aAbBzZ09_-. %äÄßéあ😀\u0301"), min_size=1, max_size=4)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "machine": st.sampled_from(["alpha", "Beta", "beta", "a-1"]),
            "filename": TEXT,
            "group": st.one_of(st.just(""), TEXT),
            "size": st.one_of(st.none(), st.sampled_from([0, 1, 2**31, SIZE_MAX])),
            "status": st.sampled_from([status.value for status in ObjectStatus]),
            "date_registered": st.integers(0, 3).map(lambda n: START + timedelta(microseconds=n)),
            "date_modified": st.integers(0, 3).map(lambda n: START - timedelta(days=n)),
        }
    ).map(lambda values: row(**values)),
    max_size=25,
)


def key_of(name: str) -> Any:
    def key(values: dict[str, Any]) -> tuple[Any, ...]:
        value = values[name]
        if isinstance(value, str):
            value = value.encode()
        between = (values["date_registered"],) if name in ("machine", "group", "status") else ()
        return (-1 if value is None else value, *between, values["id"].bytes)

    return key


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, limit=st.integers(1, 7))
def test_pages_of_every_sort_key_add_up(database: Database, rows: list[dict[str, Any]], limit: int) -> None:
    fill(database, rows)
    for name in SORTABLE:
        expected = [values["id"] for values in sorted(rows, key=key_of(name))]
        for sort, ids in ((name, expected), (f"-{name}", expected[::-1])):
            parts = list(pages(database, Selection(sort=sort, limit=limit)))
            assert [obj.id for part in parts for obj in part] == ids
            assert all(len(part) == limit for part in parts[:-1])


def test_a_page_goes_on_where_it_ended_although_objects_come_and_go(database: Database) -> None:
    fill(database, [row(filename=name) for name in "bdfh"])
    listing = pages(database, Selection(sort="filename", limit=2))
    assert [obj.filename for obj in next(listing)] == ["b", "d"]
    with database.write() as session:
        session.execute(insert(DataObject), [row(filename="a"), row(filename="e")])
        session.execute(delete(DataObject).where(DataObject.filename == "d"))
    assert [obj.filename for obj in next(listing)] == ["e", "f"]
    assert [obj.filename for obj in next(listing)] == ["h"]


def test_filters(database: Database) -> None:
    fill(
        database,
        [
            row(filename="a", machine="alpha", group="fire", originator="model"),
            row(filename="b", machine="beta", group="fire", status="DELETED"),
            row(filename="c", machine="beta", group="Fire", date_registered=START + timedelta(seconds=2)),
            row(filename="d", machine="beta", group="x" * 20_000),
        ],
    )
    assert names(database) == ["a", "b", "c", "d"]
    assert names(database, machine="beta") == ["b", "c", "d"]
    assert names(database, group="fire") == ["a", "b"]
    assert names(database, group="fire", machine="beta") == ["b"]
    assert names(database, group="x" * 20_000) == ["d"]
    assert names(database, status=ObjectStatus.DELETED) == ["b"]
    assert names(database, originator="model") == ["a"]
    east = START.astimezone(tz=None) + timedelta(seconds=1)
    assert names(database, since=east) == ["c"]
    assert names(database, until=east) == ["a", "b", "d"]
    assert names(database, since=START, until=START) == []


GLOBS: dict[str, set[str]] = {
    "*": {"a.nc", "A.nc", "a%c", "a_c", "a\\c", "äxc", "[ab]"},
    "a*": {"a.nc", "a%c", "a_c", "a\\c"},
    "?.nc": {"a.nc", "A.nc"},
    "a%c": {"a%c"},
    "a_c": {"a_c"},
    "a\\c": {"a\\c"},
    "?x?": {"äxc"},
    "[ab]": {"[ab]"},
    "": set(),
}


def test_globs(database: Database) -> None:
    fill(database, [row(filename=name) for name in ("a.nc", "A.nc", "a%c", "a_c", "a\\c", "äxc", "[ab]")])
    assert {glob: set(names(database, filename=glob)) for glob in GLOBS} == GLOBS
    assert glob_to_like("*?%") == "%_\\%"


def test_path_prefixes(database: Database) -> None:
    places = ["a", "a/1", "a/b/2", "ab/3", "a-b/4", "A/5", "a%/6", "a0"]
    fill(database, [row(filename=place.rpartition("/")[2], place=place) for place in places])
    assert names(database, path_prefix="a") == ["1", "2"]
    assert names(database, path_prefix="a/b") == ["2"]
    assert names(database, path_prefix="a%") == ["6"]
    assert len(names(database, path_prefix="")) == 8


HOSTILE = [
    "k",
    "",
    "5",
    "$",
    "$.a",
    "a.b",
    'qu"ote',
    "back\\slash",
    "'; --",
    "[0]",
    "a[0]",
    "*",
    "ключ",
    "new\nline",
    "%s",
    ":x",
]


def test_metadata_by_any_key(database: Database) -> None:
    for key in HOSTILE:
        with_key = row(filename="with", meta={"other": 1, key: "v"})
        fill(database, [with_key, row(filename="without", meta={"a": {"b": "v"}})])
        assert names(database, metadata={key: "v"}) == ["with"], key
        assert names(database, metadata={key: "w"}) == [], key


AS_TEXT: list[tuple[Any, str]] = [
    ("plain", "plain"),
    (5, "5"),
    ("5", "5"),
    (-7, "-7"),
    (2**62, str(2**62)),
    (0.1, "0.1"),
    (5.0, "5.0"),
    (1e22, "1e+22"),
    (True, "true"),
    (False, "false"),
    ("", ""),
    ('"quoted"', '"quoted"'),
    ("grüße 😀", "grüße 😀"),
    ([1, "a"], '[1, "a"]'),
    ({"b": True}, '{"b": true}'),
]


def test_metadata_compares_by_text(database: Database) -> None:
    for value, as_text in AS_TEXT:
        fill(
            database,
            [row(filename="with", meta={"k": value}), row(filename="null", meta={"k": None}), row(filename="none")],
        )
        assert names(database, metadata={"k": as_text}) == ["with"], as_text
        for other in ("null", "None", "1", "x", "True"):
            assert names(database, metadata={"k": other}) == [], (as_text, other)


def test_several_metadata_all_fit(database: Database) -> None:
    fill(database, [row(filename="a", meta={"x": 1, "y": 2}), row(filename="b", meta={"x": 1})])
    assert names(database, metadata={"x": "1", "y": "2"}) == ["a"]


def cursor(*parts: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


SOME = str(uuid4())


SENSELESS = [
    Selection(sort="id"),
    Selection(sort="--size"),
    Selection(sort=""),
    Selection(limit=0),
    Selection(limit=-1),
    Selection(limit=2**70),
    Selection(cursor="?"),
    Selection(cursor="é"),
    Selection(cursor=base64.urlsafe_b64encode(b"[" * 100_000).decode()),
    Selection(cursor=cursor("date_registered")),
    Selection(cursor=cursor("filename", "a", SOME)),
    Selection(cursor=cursor("date_registered", "2026-01-01T00:00:00", SOME)),
    Selection(cursor=cursor("date_registered", "0001-01-01T00:00:00+14:00", SOME)),
    Selection(cursor=cursor("date_registered", 5, SOME)),
    Selection(cursor=cursor("date_registered", START.isoformat(), 5)),
    Selection(cursor=cursor("date_registered", START.isoformat(), "no uuid")),
    Selection(sort="size", cursor=cursor("size", 2**63, SOME)),
    Selection(sort="size", cursor=cursor("size", True, SOME)),
    Selection(sort="size", cursor=cursor("size", None, SOME)),
    Selection(sort="group", cursor=cursor("group", "a\0", SOME)),
    Selection(sort="group", cursor=cursor("group", "\ud800", SOME)),
    Selection(sort="group", cursor=cursor("group", ["a"], SOME)),
    Selection(group="a\0b"),
    Selection(machine="\ud800"),
    Selection(filename="a\0*"),
    Selection(filename="*" * 60_000),
    Selection(path_prefix="a\0"),
    Selection(metadata={"a\0": "b"}),
    Selection(metadata={"a": "\udfff"}),
    Selection(since=datetime(2026, 1, 1)),  # noqa: DTZ001 - just that is refused
]


def test_what_makes_no_sense_is_refused(database: Database) -> None:
    register(database, "a")
    for selection in SENSELESS:
        with database.read() as session, pytest.raises(InvalidRequest) as refused:
            pytest.fail(f"{selection} found {select_objects(session, selection, ALL)}")
        assert len(refused.value.fields) == 1, selection


@contextmanager
def heard(database: Database, name: str) -> Iterator[list[Any]]:
    """Collect what an event of the engine brings."""
    found: list[Any] = []

    def note(*details: Any) -> None:
        found.append(details)

    event.listen(database.engine, name, note)
    try:
        yield found
    finally:
        event.remove(database.engine, name, note)


def many(database: Database, count: int) -> list[UUID]:
    rows = [
        row(filename=f"{n}", date_registered=START + timedelta(seconds=n), description="x" * 2000) for n in range(count)
    ]
    fill(database, rows)
    return [values["id"] for values in rows]


def test_every_page_holds_a_chunk_at_a_time(database: Database) -> None:
    ids = many(database, 5000)  # 10 MB of descriptions
    seen = []
    tracemalloc.start()
    try:
        for page in every_page(database, ALL, Rendering()):
            assert len(page) <= STREAM_CHUNK
            seen += [obj.id for obj in page]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert seen == ids
    assert peak < 8_000_000


def test_every_page_is_read_by_itself(database: Database) -> None:
    ids = many(database, 1200)
    pages = every_page(database, ALL, Rendering())
    with heard(database, "checkout") as taken, heard(database, "checkin") as returned:
        seen = [obj.id for obj in next(pages)]
    assert (len(taken), len(returned)) == (2, 2)  # what there is, and the first page
    with database.write() as other:  # what comes meanwhile is not shown, what changes is
        other.execute(insert(DataObject), [row(date_registered=START + timedelta(days=9))])
        other.execute(update(DataObject).where(DataObject.id == ids[-1]).values(size=77))
    rest = [obj for page in pages for obj in page]
    assert [*seen, *(obj.id for obj in rest)] == ids
    assert rest[-1].size == 77


@pytest.mark.parametrize("sort", ["date_registered", "-date_registered"])
def test_page_begins_where_the_one_before_ended(database: Database, sort: str) -> None:
    """A page in the middle is found by its index: it is not read from the first row on."""
    ids = many(database, 30)
    with database.read() as session:
        first, cursor = select_objects(session, Selection(sort=sort, limit=20), ALL)
        with heard(database, "before_cursor_execute") as seen:
            rest, _ = select_objects(session, Selection(sort=sort, limit=20, cursor=cursor), ALL)
        assert [obj.id for obj in [*first, *rest]] == (ids[::-1] if sort.startswith("-") else ids)
        if not database.is_postgresql:
            ((_, _, statement, parameters, *_),) = seen
            plan = session.connection().exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters).all()
            assert "SEARCH objects USING INDEX ix_objects_date_registered ((date_registered,id)" in str(plan)
            assert "TEMP B-TREE" not in str(plan)


def test_times_are_aware_utc(database: Database) -> None:
    fill(database, [row(date_modified=START.astimezone(tz=None))])
    with database.read() as session:
        (obj,) = select_objects(session, Selection(), ALL)[0]
    assert obj.date_modified == START
    assert obj.date_modified.tzinfo is UTC
