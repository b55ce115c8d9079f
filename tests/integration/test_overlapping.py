"""Chunks of a batch that are under way at once: all is done, each by itself, and by few statements."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, update

from datamanager.domain.location import Place
from datamanager.domain.requests import CopyManyRequest, MoveManyRequest, TreeRequest, validated
from datamanager.domain.states import TransferKind
from datamanager.engine.control import Control, PartControl
from datamanager.errors import Cancelled, InternalError, LeaseLost
from datamanager.machines import Machine, Machines
from datamanager.settings import load_settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from flows.batch import overlapping
from flows.batch.chunk import ItemsChunk
from flows.runtime.services import Services
from flows.runtime.transfer_run import TransferRun
from models import submission
from models.batches import results as batch_results
from models.database import Database
from models.objects.catalogue import Facts, FoundFile, register_files
from models.submission import SealedRequest
from models.tables import Transfer, TransferItem
from tests.support.bundling import attempt
from tests.support.sshd import PrivateSshd

COUNT, TOGETHER = 330, 50


@pytest.fixture
def parts(database: Database, tmp_path: Path, sshd_pair: tuple[PrivateSshd, PrivateSshd]) -> Iterator[Services]:
    """A mover's parts: `here`, with COUNT files in `tree`, and `there`, an SSH machine."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    machines = Machines(
        {
            "here": Machine.model_validate({"name": "here", "transport": "local", "base_dir": str(tmp_path / "here")}),
            "there": sshd_pair[0].machine("there", tmp_path / "there"),
        }
    )
    files = []
    for number in range(COUNT):
        path = tmp_path / "here" / f"tree/{number % 3}/{number:04}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"file {number}")
        place = Place("here", f"tree/{number % 3}/{number:04}")
        files.append(FoundFile(place, f"tree/{number % 3}", Facts(path.stat().st_size), place))
    with database.write() as session:
        register_files(session, files, TreeRequest(machine="here"), None)
    settings = load_settings(home=tmp_path, max_attempts=3)
    storages = Storages(machines, tmp_path / "run")
    yield Services(settings, machines, database, storages, EgressGuard(()), "mover", notify=lambda _: None)
    storages.close()


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overlapping, "TOGETHER", TOGETHER)


def begun(parts: Services, kind: str = "copy", control: Control | None = None) -> TransferRun:
    """Ask for the tree on `there`; return the attempt at it."""
    moving = kind == "move"
    fields = {"directory": {"machine": "here", "path": "tree"}, "machine": "there", "dest": "new"}
    request = SealedRequest(
        TransferKind.MOVE_MANY if moving else TransferKind.COPY_MANY,
        validated(fields, MoveManyRequest if moving else CopyManyRequest),
        grant=None,
    )
    with parts.database.write() as session:
        transfer = submission.submit(session, parts.machines, request).id
    return attempt(parts, transfer, control)


def perform(run: TransferRun, report: overlapping.Report = lambda _rows, _chunk: None) -> None:
    first, last = run.read(batch_results.range_to_do, run.hold, -1, 10_000) or (0, -1)
    overlapping.perform(run, first, last, report)


def ends(run: TransferRun) -> Counter[str]:
    query = select(TransferItem.error_code, TransferItem.status).where(TransferItem.transfer_id == run.transfer)
    with run.parts.database.read() as session:
        return Counter(code or status for code, status in session.execute(query))


def arrived(tmp_path: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in (tmp_path / "there").rglob("*") if file.is_file()}


@pytest.mark.dialect
@pytest.mark.parametrize("kind", ["copy", "move"])
def test_all_items_are_done_by_several_chunks_at_once(parts: Services, tmp_path: Path, kind: str) -> None:
    run, threads, most = begun(parts, kind), set[str](), list[int]()

    def report(rows: Any, chunk: ItemsChunk) -> None:
        threads.add(threading.current_thread().name)
        most.append(len(rows))
        assert not chunk.errors

    perform(run, report)
    assert ends(run) == {"COMPLETE": COUNT}
    assert arrived(tmp_path) == {f"{number:04}": f"file {number}" for number in range(COUNT)}
    assert any((tmp_path / "here").rglob("00*")) is (kind == "copy")
    assert run.write_now(batch_results.finish_batch) == f"{COUNT} items done"
    assert len(threads) == overlapping.AT_ONCE
    assert max(most) == TOGETHER
    assert run.control.bytes_done == sum(len(f"file {number}") for number in range(COUNT))


def test_an_item_fails_alone_whatever_the_chunk(parts: Services, tmp_path: Path) -> None:
    for number in (0, 120, COUNT - 1):
        (tmp_path / "here" / f"tree/{number % 3}/{number:04}").unlink()
    run = begun(parts)
    perform(run)
    assert ends(run) == {"COMPLETE": COUNT - 3, "source_missing": 3}


def test_a_lost_lease_ends_every_chunk(parts: Services, tmp_path: Path) -> None:
    run = begun(parts)
    done = list[int]()

    def report(rows: Any, _: ItemsChunk) -> None:
        done.append(len(rows))
        with parts.database.write() as session:
            session.execute(update(Transfer).where(Transfer.id == run.transfer).values(epoch=Transfer.epoch + 1))

    with pytest.raises(LeaseLost):
        perform(run, report)
    assert len(done) <= 1 + overlapping.AT_ONCE  # those that were under way, no further ones
    named = arrived(tmp_path)
    assert not [name for name in named if not name.startswith(".") and name not in recorded(run)]


def recorded(run: TransferRun) -> set[str]:
    """Return the names of the items whose intents were recorded."""
    with run.parts.database.read() as session:
        rows = session.execute(
            select(TransferItem.dest, TransferItem.notes).where(TransferItem.transfer_id == run.transfer)
        )
        return {dest.rpartition("/")[2] for dest, notes in rows if "intent" in notes}


def test_a_cancel_waits_only_for_what_may_have_names(parts: Services, tmp_path: Path) -> None:
    control = Control()
    run = begun(parts, control=control)
    control.shield()  # as an attempt is that follows one that had recorded intents

    def report(_rows: Any, _: ItemsChunk) -> None:
        control.stop(Cancelled("enough"))

    with pytest.raises(Cancelled):
        perform(run, report)
    found, named = ends(run), arrived(tmp_path)
    assert found["COMPLETE"] + found["QUEUED"] == COUNT
    assert found["QUEUED"] > 0
    # each name that was given is in the catalogue, and nothing else was left
    assert len(named) == found["COMPLETE"]
    assert not [name for name in named if name.startswith(".")]


@contextmanager
def counted(database: Database) -> Iterator[list[str]]:
    """Note the statements meanwhile."""
    said = list[str]()

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        said.append(statement)

    event.listen(database.engine, "before_cursor_execute", note)
    try:
        yield said
    finally:
        event.remove(database.engine, "before_cursor_execute", note)


@pytest.mark.dialect
def test_a_chunk_costs_the_same_statements_whatever_its_items(parts: Services) -> None:
    run, counts = begun(parts), list[int]()
    facts = Facts(7, "sha256:" + "ab" * 32)
    with parts.database.read() as session:
        numbers = [row.number for row in batch_results.items_to_do(session, run.hold, -1, COUNT)]
    for some in (numbers[:10], numbers[10:20], numbers[20:]):
        with counted(parts.database) as said:
            run.write_now(batch_results.record_intents, {n: {"size": 7, "sha256": None, "mtime": 1} for n in some})
            run.write_now(batch_results.complete_copies, [(number, facts) for number in some])
        counts.append(len(said))
    assert counts[1] == counts[2] < 30
    assert ends(run) == {"COMPLETE": COUNT}


def test_statements_of_a_chunk_find_their_rows_by_keys(parts: Services) -> None:
    run = begun(parts)
    if parts.database.is_postgresql:
        return
    with counted(parts.database) as said:
        run.write_now(batch_results.record_intents, {0: {"size": 7, "sha256": None, "mtime": 1}})
        run.write_now(batch_results.complete_copies, [(0, Facts(7))])
    with parts.database.engine.connect() as connection:
        # (of an INSERT its SELECT: the plan also has the looks at references, made only where some are in doubt)
        for statement in (re.sub(r"INSERT INTO \w+ \([^)]*\) ", "", one) for one in said if "json_each" in one):
            plan = connection.exec_driver_sql(
                f"EXPLAIN QUERY PLAN {statement}", tuple("[]" for _ in range(statement.count("?")))
            )
            ways = [row[3] for row in plan]
            looked_through = [way for way in ways if way.startswith("SCAN") and not way.endswith((" 1:", "given"))]
            assert not looked_through, (statement, ways)
            assert not [way for way in ways if "ix_claims_transfer_id" in way], (statement, ways)


def test_the_control_of_a_part() -> None:
    whole = Control()
    first, second = PartControl(whole), PartControl(whole)
    first.advance(5)
    second.skip(2)
    first.shield()
    whole.stop(Cancelled("enough"))
    assert (whole.bytes_done, whole.stopping, first.stopping) == (7, None, None)
    first.check()
    with pytest.raises(Cancelled):
        second.check()
    with pytest.raises(Cancelled):
        second.shield()
    first.unshield()
    first.unshield()
    assert isinstance(whole.stopping, Cancelled)
    with pytest.raises(Cancelled):
        first.advance(1)
    first.give_back(3)
    assert (first.bytes_done, whole.bytes_done) == (3, 5)
    other = Control()
    part = PartControl(other)
    part.shield()
    other.stop(InternalError("the mover stops"))
    with pytest.raises(InternalError):  # that stops whatever is shielded
        part.check()
