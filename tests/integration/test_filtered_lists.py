"""Lists with filters: every filter with every order finds what fits, by indexes, in a bounded number of rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Connection, insert, text

from datamanager.domain.states import ObjectStatus
from models.access.visibility import ALL
from models.core import bounded_pages
from models.database import Database
from models.objects.listing import SORTABLE, Selection, select_objects
from models.tables import DataObject, Transfer
from models.tables.objects import TEXT_INDEXED
from models.transfers.lookup import TransferSelection, select_transfers
from tests.support.plans import objections, statements_on

pytestmark = pytest.mark.dialect

START = datetime(2026, 1, 1, tzinfo=UTC)
COUNT = 150
LONG = "g" * 199
"""Groups that begin so differ beyond what is indexed, or at its end."""


def the_objects() -> list[dict[str, Any]]:
    """Return objects of a few machines and groups, some of which few objects have."""
    rng = random.Random(18)
    rows = []
    for n in range(COUNT):
        group = rng.choice(["fire", "fire", "Fire", "", f"{LONG}a", f"{LONG}ab", f"{LONG}ac"])
        name = rng.choice(
            [f"tas_{n % 7:03d}.nc", f"Psl-{n % 5}.grib", f"r{n}_über.nc", "needle in hay" if n % 110 == 3 else "x"]
        )
        folder = rng.choice(["in", "in/deep", f"in/{'d' * 600}/e", f"in/{'d' * 600}f", "inn", "out/a/b"])
        members = {"step": n % 9, "kind": rng.choice(["a", "b", True, 1.5, [1, 2], {"c": 1}]), "5": "5"}
        rows.append(
            {
                "id": UUID(int=rng.getrandbits(128), version=4),
                "machine": rng.choice(["alpha", "alpha", "beta"]) if n % 110 else "rare",
                "path": folder,
                "filename": name,
                "place": f"{folder}/{name}",
                "description": "",
                "size": rng.choice([None, 0, 1, 5, 2**40]),
                "meta": rng.choice([{}, members, {**members, "only": "here" if n % 110 == 7 else "there"}]),
                "date_registered": START + timedelta(minutes=n // 4),
                "date_modified": START + timedelta(minutes=rng.randint(0, 50)),
                "status": "UNKNOWN" if n % 110 == 5 else rng.choice(["ACTIVE", "ACTIVE", "DELETED", "ARCHIVED"]),
                "originator": rng.choice(["", "model", LONG * 400]) if n % 110 else "rare",
                "group": group,
                "verified": "none",
            }
        )
    return rows


OBJECTS = the_objects()
FILTERS: list[dict[str, Any]] = [
    {"machine": "alpha"},
    {"machine": "rare"},
    {"machine": "nowhere"},
    {"group": "fire"},
    {"group": f"{LONG}a"},
    {"group": f"{LONG}ab"},
    {"group": "nobody"},
    {"status": ObjectStatus.ACTIVE},
    {"status": ObjectStatus.UNKNOWN},
    {"originator": "model"},
    {"originator": LONG * 400},
    {"originator": "nothing"},
    {"filename": "x"},
    {"filename": "tas_00*"},
    {"filename": "*needle*"},
    {"filename": "*nowhere*"},
    {"filename": "*.nc"},
    {"filename": "*ber.?c"},
    {"filename": "?????"},
    {"path_prefix": "in"},
    {"path_prefix": f"in/{'d' * 600}"},
    {"path_prefix": "absent"},
    {"since": START + timedelta(minutes=140)},
    {"until": START + timedelta(minutes=20)},
    {"metadata": {"step": "4"}},
    {"metadata": {"only": "here"}},
    {"metadata": {"only": "nobody has it"}},
    {"metadata": {"kind": "a", "step": "7"}},
    {"metadata": {"kind": "true"}},
    {"metadata": {"kind": "1.5"}},
    {"metadata": {"kind": "[1, 2]"}},
    {"metadata": {"5": "5"}},
    {"metadata": {"kind": "NaN"}},
    {"metadata": {"kind": "1e999"}},
    {"machine": "alpha", "status": ObjectStatus.DELETED},
    {"machine": "beta", "path_prefix": "in/deep"},
    {"machine": "alpha", "group": "fire", "status": ObjectStatus.ACTIVE, "originator": "model"},
    {"group": "Fire", "since": START + timedelta(minutes=30), "until": START + timedelta(minutes=90)},
    {"filename": "tas*", "metadata": {"kind": "b"}, "machine": "beta"},
]


def as_text(value: Any) -> str | None:
    return (
        {True: "true", 1.5: "1.5"}.get(value, str(value))
        if isinstance(value, float | bool)
        else (value if isinstance(value, str) else str(value).replace("'", '"'))
    )


def fits(row: dict[str, Any], wanted: dict[str, Any]) -> bool:
    """Say whether an object is what a selection wants, as the documentation of its filters says."""
    tests: dict[str, Callable[[Any], bool]] = {
        "filename": lambda glob: fnmatchcase(row["filename"], glob),
        "path_prefix": lambda prefix: row["place"].startswith(f"{prefix}/"),
        "since": lambda time: row["date_registered"] >= time,
        "until": lambda time: row["date_registered"] < time,
        "metadata": lambda members: all(
            key in row["meta"] and as_text(row["meta"][key]) == value for key, value in members.items()
        ),
    }
    return all(tests[name](value) if name in tests else row[name] == value for name, value in wanted.items())


def ordered(rows: list[dict[str, Any]], sort: str, longest: int | None) -> list[UUID]:
    """Return the objects in an order; `longest` is how many characters of a group tell it from others."""
    name = sort.removeprefix("-")

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        value = row[name]
        if isinstance(value, str):
            value = value[:longest].encode() if name == "group" else value.encode()
        between = (row["date_registered"],) if name in ("machine", "group", "status") else ()
        return (-1 if value is None else value, *between, row["id"].bytes)

    return [row["id"] for row in sorted(rows, key=key, reverse=sort.startswith("-"))]


SORTS = [f"{sign}{name}" for name in SORTABLE for sign in ("", "-")]


@pytest.fixture
def filled(database: Database) -> Database:
    """A catalogue with the objects."""
    with database.write() as session:
        session.execute(insert(DataObject), OBJECTS)
    if database.is_postgresql:
        with database.engine.begin() as connection:
            connection.execute(text("ANALYZE objects"))
    return database


@contextmanager
def as_if_large(database: Database) -> Iterator[Connection]:
    """Open a connection whose planner believes that there are millions of rows."""
    with database.engine.connect() as connection:
        if database.is_postgresql:  # it counts the pages itself, and believes how many rows are in each
            size = (
                "UPDATE pg_class SET reltuples = 1e7, relpages = 100 WHERE relname ~ '^(pk_|ix_)?(objects|transfers)'"
            )
            connection.execute(text(size))
        yield connection  # nothing is committed


def two_pages(database: Database, selection: Selection) -> None:
    """Read the first page of a selection, and the next one if there is one."""
    with database.read() as session:
        _, cursor = select_objects(session, selection, ALL)
    if cursor is not None:
        with database.read() as session:
            select_objects(session, replace(selection, cursor=cursor), ALL)


def everything(database: Database, selection: Selection) -> list[list[UUID]]:
    """Return the pages of a selection, all of them."""
    pages = []
    while True:
        with database.read() as session:
            rows, cursor = select_objects(session, selection, ALL)
        pages.append([row.id for row in rows])
        if cursor is None:
            return pages
        selection = replace(selection, cursor=cursor)


@pytest.mark.parametrize(
    ("first", "looked", "candidates"),
    [(10, 2, 20), (30, 2, 0), (3, 2, COUNT)],
    ids=["some of each", "only in order", "candidates"],
)
def test_pages_of_every_filter_and_order_add_up(
    filled: Database, monkeypatch: pytest.MonkeyPatch, first: int, looked: int, candidates: int
) -> None:
    """Whichever way pages are found, together they have each object that fits once, in order."""
    monkeypatch.setattr(bounded_pages, "LOOKED_FIRST", first)
    monkeypatch.setattr(bounded_pages, "LOOKED_PER_ROW", looked)
    monkeypatch.setattr(bounded_pages, "CANDIDATES", candidates)
    rng, longest = random.Random(first), TEXT_INDEXED if filled.is_postgresql else None
    for wanted in FILTERS:
        expected = [row for row in OBJECTS if fits(row, wanted)]
        sort = rng.choice(SORTS)
        pages = everything(filled, Selection(**wanted, sort=sort, limit=rng.choice([7, 40])))
        assert [one for page in pages for one in page] == ordered(expected, sort, longest), (wanted, sort)


DOCUMENTED: list[dict[str, Any]] = [
    *({"machine": name} for name in ("alpha", "nowhere")),
    *({"group": name} for name in ("fire", "nobody")),
    *({"status": status} for status in (ObjectStatus.ACTIVE, ObjectStatus.UNKNOWN)),
    *({"originator": name} for name in ("model", "nothing")),
    *({"filename": glob} for glob in ("x", "tas_00*", "*needle*", "*nowhere*", "?????")),
    *({"path_prefix": path} for path in ("in", "absent")),
    {"since": START + timedelta(minutes=50)},
    {"until": START + timedelta(minutes=2)},
    *({"metadata": {"step": step}} for step in ("4", "none")),
    {"metadata": {"kind": "a", "step": "7"}},
    {"machine": "alpha", "status": ObjectStatus.DELETED},
    {"machine": "beta", "path_prefix": "in/deep"},
    {},
]


def test_no_page_is_read_by_a_scan_of_the_table_or_by_sorting_all(
    filled: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each statement of each filter and order goes by an index, as the planner sees a catalogue of millions.

    Only what an index of a filter finds, which is counted first, is sorted.
    """
    monkeypatch.setattr(bounded_pages, "LOOKED_FIRST", 5)
    monkeypatch.setattr(bounded_pages, "LOOKED_PER_ROW", 2)
    monkeypatch.setattr(bounded_pages, "CANDIDATES", 60)
    with statements_on(filled, "objects") as found:
        for wanted in DOCUMENTED:
            for sort in SORTS:
                two_pages(filled, Selection(**wanted, sort=sort, limit=10))
    assert len(found) > 100
    with as_if_large(filled) as connection:
        assert objections(connection, found) == []


@pytest.mark.parametrize("oldest_first", [True, False])
def test_tasks_of_an_object_are_found_by_it(
    database: Database, monkeypatch: pytest.MonkeyPatch, oldest_first: bool
) -> None:
    monkeypatch.setattr(bounded_pages, "LOOKED_FIRST", 2)
    wanted, rows = UUID(int=1), []
    for n in range(40):
        used, made = {7: (1, 2), 20: (3, 1), 33: (1, None)}.get(n, (n + 10, None))
        rows.append(
            {
                "id": UUID(int=n),
                "kind": "copy",
                "object_id": UUID(int=used),
                "result_object_id": None if made is None else UUID(int=made),
                "request": {},
                "created": START + timedelta(minutes=n),
            }
        )
    with database.write() as session:
        session.execute(insert(Transfer), rows)
    with statements_on(database, "transfers") as statements, database.read() as session:
        selection = TransferSelection(object=wanted, limit=2, oldest_first=oldest_first)
        first, cursor = select_transfers(session, selection, ALL)
        rest, end = select_transfers(session, replace(selection, cursor=cursor), ALL)
    found = [row.id.int for row in [*first, *rest]]
    assert (found, end) == ([7, 20, 33] if oldest_first else [33, 20, 7], None)
    assert any("AS key0" in statement for statement in statements)
    with as_if_large(database) as connection:
        assert objections(connection, statements) == []
