"""Measure audit, sweep and retention over a large catalogue: `python -m benchmarks.scale.maintenance --help`.

A catalogue and a local machine of `--rows` files are filled (a file in ten is a copy of the one before, one in 10,000
is lost or dark, one in 1,000 has a partial file of a dead transfer beside it). Each duty then runs in a process of its
own, while another process writes to the catalogue twenty times a second, as the API does: its slowest write says whom
the duty blocks. Peak memory is that of the duty's process (VmHWM), with the interpreter and all modules (`start`).
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any
from uuid import uuid4

from rich.console import Console
from rich.table import Table
from sqlalchemy import event

from datamanager.domain.location import Place, temporary_name
from datamanager.domain.retention_rules import parse_rules
from datamanager.engine.control import Control
from datamanager.machines import Machine, TransportKind
from flows.cleanup.sweeping import Sweeper
from flows.retention.run import Retaining
from models import migrate
from models.core.leases import hold_lease
from models.database import Database, insert_rows
from models.objects.bulk_claims import chunks
from models.objects.claims import place_key
from models.retention import runs as retention_runs
from models.retention.report import make_decider, plan
from models.retention.runs import RetentionTerms
from models.tables import Claim, DataObject, Transfer
from tests.support.auditing import OLD, Plant
from tests.support.postgres import Postgres

DIRECTORY = 1000
"""Files of a directory."""
AT_ONCE = 5000
"""Rows that are filled in by one transaction."""
WRITE_EVERY = 0.05  # seconds between two writes of the other process
BEGAN = datetime(2025, 1, 1, tzinfo=UTC)
RULES = """
[[rule]]
name = "copies"
action = "delete-copies"
group = "scratch"
older_than = "30d"
prove = "size"

[[rule]]
name = "old results"
action = "delete"
group = "results-3"
older_than = "20000d"
"""
"""The first selects every tenth object, the second none."""
COLUMNS = (
    *("duty", "s", "CPU s", "MiB start/peak", "statements", "longest write ms", "other's writes ms p50/p99/max"),
    "did",
)


@dataclass
class Figures:
    """What a duty took: seconds, MiB, statements, the longest of its writing transactions (seconds), and what it says
    it did."""

    seconds: float = 0
    cpu: float = 0
    start: float = 0
    peak: float = 0
    statements: int = 0
    longest: float = 0
    said: str = ""
    waits: list[float] = field(default_factory=list)
    """Seconds of each write of the other process."""


def fill(database: Database, folder: Path, rows: int) -> None:
    """Make files and their rows: ACTIVE objects with their claims, and a transfer for one in ten."""
    for numbers in chunks(range(rows), AT_ONCE):
        objects, claims = list[dict[str, Any]](), list[dict[str, Any]]()
        for number in numbers:
            directory, name = f"runs/{number // DIRECTORY // 100:03}/{number // DIRECTORY:06}", f"{number:09}.nc"
            data = f"{number - (number % 10 == 9):08}".encode()
            _put(folder / directory, name, number, data)
            at = BEGAN + timedelta(days=200) * (number / rows)
            one = _object(directory, name, data, at, "scratch" if number % 10 == 9 else f"results-{number % 7}")
            objects.append(one)
            key = place_key(Place(one["machine"], one["place"]))
            claims.append(
                {"mode": "place", **{name: one[name] for name in ("machine", "place")}, "place_key": key}
                | {"object_id": one["id"]}
            )
        transfers = [_transfer(queued=number % 1000 == 0) for number in numbers if number % 10 == 0]
        with database.write() as session:
            for model, some in ((DataObject, objects), (Claim, claims), (Transfer, transfers)):
                insert_rows(session, model, some)


def _put(directory: Path, name: str, number: int, data: bytes) -> None:
    if number % DIRECTORY == 0:
        directory.mkdir(parents=True)
    if number % 10_000 != 17:  # lost
        (directory / name).write_bytes(data)
    if number % 10_000 == 18:
        (directory / f"dark-{name}").write_bytes(data)
    if number % 1000 == 19:
        part = directory / temporary_name(name, uuid4(), 1)
        part.write_bytes(data)
        os.utime(part, (OLD, OLD))


def _object(directory: str, name: str, data: bytes, at: datetime, group: str) -> dict[str, Any]:
    return {
        "id": uuid4(),
        "machine": "here",
        "path": directory,
        "filename": name,
        "place": f"{directory}/{name}",
        "description": "",
        "size": len(data),
        "metadata": {"run": directory},
        "date_registered": at,
        "date_modified": at,
        "status": "ACTIVE",
        "originator": "benchmark",
        "group": group,
        "checksum": f"sha256:{hashlib.sha256(data).hexdigest()}",
        "verified": "sha256",
    }


def _transfer(*, queued: bool) -> dict[str, Any]:
    now = datetime.now(UTC)
    return {
        "id": uuid4(),
        "kind": "copy",
        "request": {},
        "fail_fast": False,
        "faults": [],
        "notes": {},
        "status": "QUEUED" if queued else "COMPLETE",
        "phase": "queued",
        "group": "scratch",
        "bytes_done": 0,
        "attempts": 1,
        "epoch": 1,
        "sequence": 1,
        "created": now,
        "ended": None if queued else now,
    }


def audit(plant: Plant) -> str:
    """Audit the machine, both looks, and hash its share."""
    counts = plant.audit(scrub_share=0.02, lease=timedelta(days=1)).row.counts
    return ", ".join(f"{name} {counts[name]:,}" for name in ("objects", "directories", "lost", "dark"))


def sweep(plant: Plant) -> str:
    """Remove the partial files that nobody owns."""
    swept = Sweeper(plant.services, plant.machine, 86_400.0, Control(), dry_run=False).sweep()
    return f"removed {swept.removed:,}, spared {swept.spared:,}"


def survey(plant: Plant) -> str:
    """Plan a run of retention (a dry run)."""
    _, report = plan(plant.database, parse_rules(RULES), plant.services.machines, RetentionTerms(dry_run=True), None)
    return ", ".join(f"{one['rule']}: {one['verdict']} {one['objects']:,}" for one in report.counts)


def retention(plant: Plant) -> str:
    """Carry out a run of retention: it marks as many as it may."""
    rules, terms = parse_rules(RULES), RetentionTerms()
    with plant.database.write() as session:
        run = retention_runs.begin_run(session, terms, None, "benchmark", None).id
        decider = make_decider(session, rules, plant.services.machines, terms)
    work = Retaining(plant.services, run, rules, decider, Control())
    asyncio.run(work.work())
    return ", ".join(f"{one['rule']}: {one['verdict']} {one['objects']:,}" for one in work.report.counts)


DUTIES: dict[str, Callable[[Plant], str]] = {
    "audit": audit,
    "sweep": sweep,
    "survey": survey,
    "retention": retention,
}


def measure(url: str, folder: Path, name: str) -> Figures:
    """Run a duty in a process of its own, beside one that writes."""
    context = get_context("spawn")
    mine, theirs = context.Pipe()
    stop, waits, told = context.Event(), *context.Pipe(duplex=False)
    writer = context.Process(target=_write, args=(url, stop, told), name="writer")
    writer.start()
    worker = context.Process(target=_perform, args=(url, folder, name, theirs), name=name)
    worker.start()
    theirs.close()
    try:
        figures: Figures = mine.recv()
    finally:
        stop.set()
    figures.waits = waits.recv()
    worker.join()
    writer.join()
    return figures


def _perform(url: str, folder: Path, name: str, told: Connection) -> None:
    database = Database(url)
    plant, figures = Plant(database, _machine(folder), folder, folder.parent), Figures(start=_memory("VmRSS"))
    begun: dict[int, float] = {}

    @event.listens_for(database.engine, "before_cursor_execute")
    def _count(*_what: Any) -> None:
        figures.statements += 1

    @event.listens_for(database.engine, "begin")
    def _begin(connection: Any) -> None:
        if connection.get_execution_options().get("dm_write"):
            begun[id(connection)] = time.monotonic()

    @event.listens_for(database.engine, "commit")
    def _commit(connection: Any) -> None:
        if (at := begun.pop(id(connection), None)) is not None:
            figures.longest = max(figures.longest, time.monotonic() - at)

    at, cpu = time.monotonic(), time.process_time()
    figures.said = DUTIES[name](plant)
    figures.seconds, figures.cpu = time.monotonic() - at, time.process_time() - cpu
    figures.peak = _memory("VmHWM")
    told.send(figures)
    database.close()


def _write(url: str, stop: Event, told: Connection) -> None:
    database, waits = Database(url), list[float]()
    while not stop.wait(WRITE_EVERY):
        at = time.monotonic()
        with database.write() as session:
            hold_lease(session, "duty:benchmark", "writer", timedelta(seconds=60))
        waits.append(time.monotonic() - at)
    told.send(waits)
    database.close()


def _memory(field_name: str) -> float:
    """Return a field of this process's status in MiB."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith(field_name))
    return int(line.split()[1]) / 1024


def _machine(folder: Path) -> Machine:
    return Machine(name="here", transport=TransportKind.LOCAL, base_dir=str(folder))


@contextmanager
def catalogue(kind: str, folder: Path) -> Iterator[str]:
    """Yield the URL of an empty catalogue, migrated."""
    if kind == "sqlite":
        yield _migrated(f"sqlite+pysqlite:///{folder / 'catalogue.db'}")
        return
    with Postgres(folder, autovacuum="on") as server:
        yield _migrated(server.url())


def _migrated(url: str) -> str:
    database = Database(url)
    migrate.upgrade(database)
    database.close()
    return url


def main() -> None:
    """Fill, measure and show."""
    parser = argparse.ArgumentParser("python -m benchmarks.scale.maintenance", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="objects, and files; 5 GiB of disk a million")
    parser.add_argument("--databases", default="sqlite,postgresql")
    parser.add_argument("--only", default=",".join(DUTIES), help="duties, separated by commas")
    parser.add_argument("--folder", type=Path, help="where files and SQLite's catalogue are made; it needs much space")
    options, console = parser.parse_args(), Console(width=None if sys.stdout.isatty() else 170)
    for kind in options.databases.split(","):
        base = Path(tempfile.mkdtemp(prefix="dm-maintenance-", dir=options.folder))
        try:
            with catalogue(kind, base) as url:
                (base / "data").mkdir()
                at, database = time.monotonic(), Database(url)
                fill(database, base / "data", options.rows)
                if database.is_postgresql:
                    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                        connection.exec_driver_sql("VACUUM ANALYZE")
                database.close()
                console.print(f"{kind}: {options.rows:,} rows and files filled in {time.monotonic() - at:.0f} s")
                table = Table(*COLUMNS)
                for name in options.only.split(","):
                    table.add_row(name, *_cells(measure(url, base / "data", name)))
                console.print(table)
        finally:
            shutil.rmtree(base)


def _cells(one: Figures) -> Iterator[str]:
    waits = sorted(1000 * wait for wait in one.waits) or [0.0]
    yield f"{one.seconds:.1f}"
    yield f"{one.cpu:.1f}"
    yield f"{one.start:.0f}/{one.peak:.0f}"
    yield f"{one.statements:,}"
    yield f"{1000 * one.longest:.0f}"
    yield f"{waits[len(waits) // 2]:.0f}/{waits[len(waits) * 99 // 100]:.0f}/{waits[-1]:.0f}"
    yield one.said


if __name__ == "__main__":
    main()
