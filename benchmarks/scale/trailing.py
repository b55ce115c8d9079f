"""Measure what the audit trail costs (docs/adr/0033-the-audit-trail.md).

`python -m benchmarks.scale.trailing` compares, on a private PostgreSQL, transactions whose row of the trail is linked
inside them with such whose rows are linked behind them; and it measures the CPU time of a task's two rows, their
linking and its reservations, with SQLite and PostgreSQL.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from uuid import uuid4

from rich.console import Console
from rich.table import Table
from sqlalchemy.orm import Session

from models import migrate
from models.access.requester import requested
from models.access.trail import TrailOutcome, note, note_end
from models.access.trail_links import LINKED_AT_ONCE, link
from models.database import Database, now
from models.transfers.reservations import release
from tests.support.postgres import Postgres

WORK = 0.002
"""Seconds that a transaction works after it has written its row."""
PROCESSES = 8
"""Writers at once."""
EACH = 100
"""Transactions of a writer."""
TASKS = 500
"""Tasks whose CPU time is measured."""
TIMES = 3
"""Runs, of which the best counts."""


def main() -> None:
    """Measure, and print two tables."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    console = Console(width=120)
    with tempfile.TemporaryDirectory(prefix="trailing-") as folder, Postgres(Path(folder)) as server:
        postgres, sqlite = (_made(url) for url in (server.url(), f"sqlite+pysqlite:///{folder}/trail.db"))
        chains = Table("", "transactions per second", "CPU ms each")
        for what, end in (("no chain", None), ("linked in the transaction", _inside), ("linked behind", _behind)):
            rate, cpu = max(_write(postgres, end) for _ in range(TIMES))
            chains.add_row(what, f"{rate:.0f}", f"{cpu:.2f}")
        console.print(chains)
        costs = Table("", "CPU ms per task")
        for name, database in (("SQLite", sqlite), ("PostgreSQL", postgres)):
            costs.add_row(name, f"{min(_cost(database) for _ in range(TIMES)):.3f}")
            database.close()
        console.print(costs)


def _made(url: str) -> Database:
    database = Database(url)
    migrate.upgrade(database)
    return database


End = Callable[[Session], object]


def _inside(session: Session) -> None:
    """Link what was written in this transaction; nobody else does until it ends."""
    session.flush()
    link(session)


def _behind(_: Session) -> None:
    """Leave it to the process that links."""


def _write(database: Database, end: End | None) -> tuple[float, float]:
    """Return how many transactions of PROCESSES writers there are in a second, and the CPU seconds of each."""

    def writer(_: int) -> float:
        for _ in range(EACH):
            with database.write() as session:
                note(session, "copy", TrailOutcome.ALLOWED, object_id=uuid4())
                if end is _inside:
                    end(session)
                time.sleep(WORK)
        return time.monotonic()

    begun, cpu = time.monotonic(), time.process_time()
    with ThreadPoolExecutor(PROCESSES + 1) as pool:
        writers = [pool.submit(writer, number) for number in range(PROCESSES)]
        while not all(one.done() for one in writers):
            time.sleep(0.5)
            if end is _behind:
                _link_all(database)
        ended = max(one.result() for one in writers)
    count = PROCESSES * EACH
    _link_all(database)
    return count / (ended - begun), (time.process_time() - cpu) / count * 1000


def _link_all(database: Database) -> None:
    while True:
        with database.write() as session:
            if link(session) < LINKED_AT_ONCE:
                return


def _cost(database: Database) -> float:
    """Return the CPU milliseconds of what the trail does for a task; its transactions are there without it too."""
    _link_all(database)
    with database.read() as session:
        same = {"kind": "copy", "created_by": "maria", "ended": now(session), "error_code": None}
    with database.write() as session, requested("127.0.0.1", "request", "token", "maria"), _measured() as spent:
        for _ in range(TASKS):
            task = uuid4()
            row = SimpleNamespace(id=task, object_id=task, **same)
            note(session, "copy", TrailOutcome.ALLOWED, object_id=task, transfer_id=task, time=row.ended)
            release(session, [task])
            note_end(session, row, TrailOutcome.DONE)
    with _measured() as linking:
        _link_all(database)
    return (spent[0] + linking[0]) / TASKS * 1000


@contextmanager
def _measured() -> Iterator[list[float]]:
    spent, begun = list[float](), time.process_time()
    yield spent
    spent.append(time.process_time() - begun)


if __name__ == "__main__":
    main()
