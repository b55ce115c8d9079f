"""Measure what partitions by month would give and cost on PostgreSQL (docs/adr/0022-rows-are-deleted.md).

`python -m benchmarks.scale.forgetting` fills two databases of a private server with `--rows` transfers and messages of
the last five months: one as it is, one with both tables partitioned by month. It compares what it costs to forget a
month, to look a transfer up, and to take one from the queue.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from statistics import median

from rich.console import Console
from rich.table import Table
from sqlalchemy import Connection, Engine, select, text
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateIndex

from models import migrate
from models.core import outbox
from models.database import Database, table_of
from models.housekeeping import tidy
from models.tables import OutboxMessage, Transfer
from models.transfers import lookup, queue
from tests.support.postgres import Postgres

MONTHS = 5
QUEUED = 1000
ASKED, HOT = 300, 50
"""Lookups of each kind."""
MESSAGE = "'dm.events', 'dm.object.copied', gen_random_uuid(), json_build_object('data', repeat('x', 350))"
DAYS = 30
"""Of a month here: partitions end whole months before tomorrow."""


class Kept:
    """How long rows are kept: so that the oldest month goes."""

    keep_transfers = keep_outbox = timedelta(days=DAYS * (MONTHS - 1))
    idempotency_keep = timedelta(days=1)


def fill(engine: Engine, rows: int, *, partitioned: bool) -> None:
    """Fill both tables, a month's rows each as many as another's."""
    with engine.begin() as connection:
        if partitioned:
            for model in (Transfer, OutboxMessage):
                _partition(connection.exec_driver_sql, model.__tablename__)
                for index in table_of(model).indexes:
                    unique, index.unique = index.unique, False  # one over all partitions there can't be
                    connection.execute(CreateIndex(index))
                    index.unique = unique
        back = f"now() - random() * interval '{DAYS * MONTHS} days'"
        connection.exec_driver_sql(
            'INSERT INTO transfers (id, kind, object_id, request, fail_fast, "group", priority, status, phase, '
            "bytes_done, attempts, faults, notes, epoch, sequence, created, started, ended, flow_run_id) "
            "SELECT gen_random_uuid(), 'copy', gen_random_uuid(), '{\"dest\": \"runs/some/file.nc\"}', false, 'g', "
            f"'normal', 'COMPLETE', 'done', 1, 1, '[]', '{{}}', 1, 5, at, at, at, gen_random_uuid() "
            f"FROM (SELECT {back} AS at FROM generate_series(1, {rows}) OFFSET 0) AS times"
        )
        connection.exec_driver_sql(
            "INSERT INTO outbox (exchange, routing_key, subject, body, created, sent) "
            f"SELECT {MESSAGE}, at, at FROM (SELECT {back} AS at FROM generate_series(1, {rows}) OFFSET 0) AS times"
        )
        _queue(connection, QUEUED, "now()")
    _vacuum(engine, "ANALYZE")


def _queue(connection: Connection, number: int, created: str) -> None:
    connection.exec_driver_sql(
        'INSERT INTO transfers (id, kind, request, fail_fast, "group", priority, status, phase, bytes_done, '
        "attempts, faults, notes, epoch, sequence, created, source_machine, destination_machine) "
        "SELECT gen_random_uuid(), 'copy', '{}', false, 'g' || mod(n, 5), 'normal', 'QUEUED', 'queued', 0, 0, "
        f"'[]', '{{}}', 0, 1, {created}, 'a', 'b' || mod(n, 3) FROM generate_series(1, {number}) AS n"
    )


def churn(engine: Engine, number: int) -> None:
    """Queue so many transfers and messages, end and send them: fewer than autovacuum waits for by default."""
    with engine.begin() as connection:
        _queue(connection, number, "now() - interval '1 hour'")
        connection.exec_driver_sql(
            "INSERT INTO outbox (exchange, routing_key, subject, body, created) "
            f"SELECT {MESSAGE}, now() FROM generate_series(1, {number})"
        )
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE outbox SET sent = now() WHERE sent IS NULL")
        connection.exec_driver_sql(
            "UPDATE transfers SET ended = now(), status = 'COMPLETE' "
            "WHERE ended IS NULL AND created < now() - interval '30 minutes'"
        )


def _vacuum(engine: Engine, how: str = "") -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(f"VACUUM {how}")


def _partition(execute: Callable[[str], object], name: str) -> None:
    """Make an empty table anew, with a partition for each month."""
    execute(f"ALTER TABLE {name} RENAME TO {name}_whole")
    execute(
        f"CREATE TABLE {name} (LIKE {name}_whole INCLUDING DEFAULTS INCLUDING GENERATED) PARTITION BY RANGE (created)"
    )
    execute(f"ALTER TABLE {name} ADD PRIMARY KEY (id, created)")
    execute(f"ALTER SEQUENCE IF EXISTS {name}_id_seq OWNED BY NONE")
    execute(f"DROP TABLE {name}_whole")
    for month in range(MONTHS):
        bounds = [
            "MINVALUE" if back == MONTHS else "MAXVALUE" if back == 0 else f"current_date - {DAYS * back}"
            for back in (MONTHS - month, MONTHS - month - 1)
        ]
        execute(f"CREATE TABLE {name}_{month} PARTITION OF {name} FOR VALUES FROM ({bounds[0]}) TO ({bounds[1]})")


def forget(database: Database) -> int:
    """Forget the oldest month as housekeeping does, without its pauses; return how many rows went."""
    gone = 0
    while True:
        with database.write() as session:
            tidied = tidy(session, Kept(), broker=True)
        gone += tidied.transfers + tidied.messages
        if not tidied.more:
            return gone


def drop(database: Database) -> int:
    """Drop the partitions of the oldest month."""
    with database.write() as session:
        session.execute(text("DROP TABLE transfers_0, outbox_0"))
    return 0


def lookups(database: Database) -> dict[str, float]:
    """Return milliseconds of what is asked all the time: medians."""
    with database.read() as session:
        some = select(Transfer.id, Transfer.flow_run_id).where(Transfer.flow_run_id.is_not(None)).limit(ASKED)
        rows = [(one, run) for one, run in session.execute(some).all() if run is not None]
    byid, byrun = list[float](), list[float]()
    for one, run in rows:
        with database.read() as session:
            byid.append(_took(partial(lookup.get_transfer, session, one)))
            byrun.append(_took(partial(lookup.by_flow_run, session, [run])))
    unsent, taken = list[float](), list[float]()
    for _ in range(HOT):
        with database.read() as session:
            unsent.append(_took(partial(outbox.unsent, session, 200)))
        with database.write() as session:
            taken.append(_took(partial(queue.take, session, "mover", timedelta(60), 1)))
    names = ("a transfer by id", "a transfer by its flow run", "unsent messages", "take one of the queue")
    return dict(zip(names, map(median, (byid, byrun, unsent, taken)), strict=True))


def pages(engine: Engine) -> str:
    """Return how many pages the relay's look at the outbox reads, when it is made a second time."""
    query = "EXPLAIN (ANALYZE, BUFFERS) SELECT * FROM outbox WHERE sent IS NULL ORDER BY id LIMIT 200"
    with engine.connect() as connection:
        for _ in range(2):
            plan = "\n".join(row[0] for row in connection.exec_driver_sql(query))
    found = re.search(r"Buffers: shared hit=(\d+)", plan)
    return "0" if found is None else found[1]


def _took(call: Callable[[], object]) -> float:
    at = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - at)


def main() -> None:
    """Fill, measure and show."""
    parser = argparse.ArgumentParser("python -m benchmarks.scale.forgetting", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="transfers, and as many messages")
    options, console = parser.parse_args(), Console()
    table = Table("", "as it is", "partitioned")
    cells = dict[str, list[str]]()
    with tempfile.TemporaryDirectory() as folder, Postgres(Path(folder), autovacuum="on") as server:
        for partitioned in (False, True):
            database = Database(server.url())
            migrate.upgrade(database)
            engine = database.engine
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                for setting in ("autovacuum = off", "jit = off"):
                    connection.exec_driver_sql(f"ALTER SYSTEM SET {setting}")
                connection.exec_driver_sql("SELECT pg_reload_conf()")
            fill(engine, options.rows, partitioned=partitioned)
            found = {f"{name}, ms": f"{took:.2f}" for name, took in lookups(database).items()}
            for share, cleanup in ((15, "ON"), (1, "AUTO"), (1, "ON")):
                churn(engine, options.rows * share // 100)
                found[f"pages read for unsent messages, {share} % sent since a vacuum"] = pages(engine)
                _vacuum(engine, f"(INDEX_CLEANUP {cleanup})")
                found[f"… after a vacuum with index_cleanup {cleanup.lower()}, {share} %"] = pages(engine)
            with database.read() as session:
                before, size = _log_position(session), _size(session)
            at = time.monotonic()
            (drop if partitioned else forget)(database)
            found[f"forget a month of each ({options.rows // MONTHS:,} rows), s"] = f"{time.monotonic() - at:.2f}"
            with database.read() as session:
                log = session.scalar(text(f"SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '{before}')"))
            at = time.monotonic()
            _vacuum(engine)
            found["vacuum after it, s"] = f"{time.monotonic() - at:.2f}"
            found["log of it, MiB"] = f"{float(log or 0) / 2**20:.0f}"
            with database.read() as session:
                found["size before and after, MiB"] = f"{size} / {_size(session)}"
            for name, cell in found.items():
                cells.setdefault(name, []).append(cell)
            database.close()
    for name, both in cells.items():
        table.add_row(name, *both)
    console.print(table)


def _log_position(session: Session) -> str:
    return str(session.scalar(text("SELECT pg_current_wal_lsn()")))


def _size(session: Session) -> int:
    query = "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relname ~ '^(transfers|outbox)(_[0-9])?$'"
    return int(session.scalar(text(query)) or 0) >> 20


if __name__ == "__main__":
    main()
