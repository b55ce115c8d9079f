"""How long pages of lists take, by the name that `--only` takes: asked of an API as it is deployed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import requests
from sqlalchemy import select

from api.objects.routes import selection_of
from benchmarks.race import Figure, Outcome, Tell, Timing, WrongResult
from benchmarks.scale.fill import fill, is_filled
from benchmarks.scale.queries import FILTERS, ORDERS
from models.access.visibility import ALL
from models.database import Database
from models.objects.listing import Selection, search_of, select_objects
from models.tables import DataObject
from tests.support.api_process import ApiProcess
from tests.support.catalogue import machines
from tests.support.plans import objections, statements_on
from tests.support.postgres import Databases, Postgres

LIMIT = 100
WANTED = 50.0
"""Milliseconds."""
MIDDLE = UUID(int=2**127)
"""Cursors into the middle begin at the first object beyond it: identifiers are random."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How many objects each database has; `folder` keeps SQLite's file, `server` PostgreSQL's database; None: they
    last as long as the measurement. `filters` are the names of those that are asked for.
    """

    sqlite: int
    postgresql: int
    filters: list[str]
    folder: Path | None
    server: Databases | None


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages of one filter in one round: milliseconds of each, and of those with a next one the fewest objects."""

    milliseconds: list[float]
    fewest: int


def sqlite(scratch: Path, scale: Scale, rounds: int, tell: Tell) -> Outcome:
    """Ask for lists of a catalogue on SQLite."""
    file = (scale.folder or scratch) / f"objects-{scale.sqlite}.db"
    return _measured("sqlite", f"sqlite+pysqlite:///{file}", scale.sqlite, scale.filters, scratch, rounds, tell)


def postgresql(scratch: Path, scale: Scale, rounds: int, tell: Tell) -> Outcome:
    """Ask for lists of a catalogue on PostgreSQL."""
    with _server(scale.server, scratch) as server:
        url = server.url(f"dm_objects_{scale.postgresql}")
        return _measured("postgresql", url, scale.postgresql, scale.filters, scratch, rounds, tell)


GROUPS: dict[str, Callable[[Path, Scale, int, Tell], Outcome]] = {"sqlite": sqlite, "postgresql": postgresql}


@contextmanager
def _server(given: Databases | None, scratch: Path) -> Iterator[Databases]:
    if given is not None:
        yield given
        return
    with Postgres(
        scratch, autovacuum="on", shared_buffers="1GB", maintenance_work_mem="512MB", max_wal_size="4GB"
    ) as server:
        yield server


def _measured(group: str, url: str, count: int, names: list[str], scratch: Path, rounds: int, tell: Tell) -> Outcome:
    database = Database(url)
    timings = []
    try:
        if not is_filled(database):
            took = fill(database, count, tell)
            timings.append(Timing(group, "migration of what there was", (took,), count, "objects"))
        _require_indexes(database, names)
        cursors = _cursors(database, names)
    finally:
        database.close()
    with ApiProcess(scratch / group, database_url=url) as api, requests.Session() as client:
        found: dict[str, list[Pages]] = {name: [] for name in names}
        for number in range(rounds + 1):
            for name in names:
                tell(f"{group}: {name}" + ("" if number else " (warming up)"))
                pages = _pages(client, api.url, FILTERS[name], cursors[name])
                if number:
                    found[name].append(pages)
    figures = [_figure(group, name, pages) for name, pages in found.items()]
    for name, rows in found.items():
        medians = tuple(statistics.median(one.milliseconds) / 1000 for one in rows)
        timings.append(Timing(group, f"{name}, p50", medians, 1, "pages"))
    return Outcome(tuple(figures), tuple(timings))


def _figure(group: str, name: str, rounds: list[Pages]) -> Figure:
    values = tuple(statistics.quantiles(one.milliseconds, n=20)[-1] for one in rounds)
    fewest = min(one.fewest for one in rounds)
    ours = "full pages" if fewest >= LIMIT else f"pages of {fewest} objects or more"
    return Figure(group, f"{group}: {name}, p95", ours, "–", WANTED, values, "ms")


def _pages(client: requests.Session, url: str, wanted: dict[str, str], cursors: dict[str, str]) -> Pages:
    """Ask for a filter's first page in every order, for the next one, and for one in the middle."""
    milliseconds, fewest = list[float](), LIMIT
    for order in ORDERS:
        first = f"{url}/DM/info", {**wanted, "sort": order, "limit": str(LIMIT)}
        asked: list[tuple[str, dict[str, str]]] = [first, (first[0], {**first[1], "cursor": cursors[order]})]
        for number, (address, parameters) in enumerate(asked):
            began = time.perf_counter()
            answer = client.get(address, params=parameters)
            milliseconds.append((time.perf_counter() - began) * 1000)
            if answer.status_code != 200:
                raise WrongResult(f"{answer.url}: {answer.status_code} {answer.text}")
            following = answer.links.get("next")
            if following is not None:
                fewest = min(fewest, len(answer.json()))
                if number == 0:
                    asked.append((url + following["url"], {}))
    return Pages(milliseconds, fewest)


def _cursors(database: Database, names: list[str]) -> dict[str, dict[str, str]]:
    """Return cursors into the middle of each order, by filter and order."""
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    with database.read() as session:
        middle = session.scalars(select(DataObject.id).where(DataObject.id > MIDDLE).order_by(DataObject.id).limit(1))
        row = middle.one()
        for name, order, selection in _selections(names):
            columns = search_of(session, selection).order
            keys = session.execute(select(*columns.columns).where(DataObject.id == row)).one()
            found[name][order] = columns.cursor(keys)
    return found


def _require_indexes(database: Database, names: list[str]) -> None:
    """Check the plan of every statement of the lists. Raises: WrongResult."""
    with statements_on(database, "objects") as statements:
        for _, _, selection in _selections(names):
            with database.read() as session:
                select_objects(session, selection, ALL)
    with database.engine.begin() as connection:
        if wrong := objections(connection, statements):
            raise WrongResult("\n\n".join(wrong))


def _selections(names: list[str]) -> Iterator[tuple[str, str, Selection]]:
    for name in names:
        for order in ORDERS:
            given = {**FILTERS[name], "sort": order, "limit": str(LIMIT)}
            yield name, order, selection_of(given.items(), machines())
