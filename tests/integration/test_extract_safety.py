"""Files of an archive from outside, in the catalogue: wherever an attempt dies, what has its name becomes an object,
and no other archive's bytes are taken for this one's."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from datamanager.domain.requests import GetExternalRequest, validated
from datamanager.domain.states import Phase, TransferKind
from datamanager.engine.attempt import Found, Moved, Proof
from datamanager.engine.control import Control
from datamanager.engine.extracting.member_staging import StoredArchive
from datamanager.engine.single import probe as probing
from datamanager.engine.single import verify as verifying
from datamanager.engine.single.staged_file import Share
from datamanager.errors import SourceChanged
from datamanager.machines import Machines, parse_machines
from datamanager.settings import load_settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from flows.archive import recalling
from flows.cleanup.leftovers import clear_up
from flows.external import extracting
from flows.runtime import transfer_run
from flows.runtime.services import Services
from flows.runtime.transfer_run import TransferRun
from flows.steps import extract as extract_steps
from models import submission
from models.access.visibility import ALL
from models.archive import items as archive_items
from models.database import Database
from models.objects.catalogue import get_object
from models.submission import SealedRequest
from models.transfers import outcomes, queue
from models.transfers.items import count_items, in_doubt, select_items
from tests.support.bookkeeping import claims
from tests.support.bundling import attempt
from tests.support.packing import tar_of

FILES = {"a": b"1", "d/b": b"22", "d/c": b""}


class Killed(BaseException):
    """The mover is gone."""


class Dying(Control):
    """The control of an attempt that dies behind its commit point, at this look whether it is to stop."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._left = looks
        self._passed = False

    def shield(self) -> None:
        """Pass the commit point."""
        super().shield()
        self._passed = True

    def check(self) -> None:
        """Die, or go on."""
        super().check()
        self._left -= self._passed
        if self._passed and not self._left:
            raise Killed


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    (tmp_path / "here").mkdir()
    return parse_machines(f'[machines.here]\ntransport = "local"\nbase_dir = "{tmp_path / "here"}"\n', "machines.toml")


@pytest.fixture
def parts(database: Database, machines: Machines, tmp_path: Path) -> Iterator[Services]:
    """A mover's parts over a real catalogue and a folder."""
    storages = Storages(machines, tmp_path / "run")
    settings = load_settings(home=tmp_path / "home")
    yield Services(settings, machines, database, storages, EgressGuard(()), "mover", notify=lambda _: None)
    storages.close()


def submit(parts: Services, **fields: Any) -> UUID:
    """Ask for the files of an archive; return the transfer."""
    asked = {"url": "https://example.org/a.tar", "machine": "here", "path": "in", "options": {"extract": "tar"}}
    order = SealedRequest(TransferKind.GETEXTERNAL, validated({**asked, **fields}, GetExternalRequest), grant=None)
    with parts.database.write() as session:
        return submission.submit(session, parts.machines, order).id


def fetched(work: TransferRun, data: bytes) -> tuple[Found, Proof]:
    """Let the archive be what an attempt has downloaded."""
    found = probing.probe(work.attempt())
    Path(found.part).write_bytes(data)
    moved = Moved(len(data), hashlib.sha256(data).hexdigest())
    return found, verifying.verify(work.attempt(), found, moved, work.control)


def enter(work: TransferRun, data: bytes) -> StoredArchive:
    """Fetch and list the archive."""
    found, proof = fetched(work, data)
    assert isinstance(work.request, GetExternalRequest)
    extracting.enter(work, work.request, found, proof)
    return StoredArchive(found.part, proof.size)


def extract(work: TransferRun, data: bytes) -> None:
    """Do all but the end of a transfer, as its flow does."""
    archive = enter(work, data)
    for numbers in extracting.plan(work):
        recalling.performing(work, numbers, lambda by, rows: extracting.ExtractChunk(by, rows, archive))()


def dies(parts: Services, transfer: UUID, data: bytes, control: Control) -> None:
    """Let an attempt die; the transfer is another mover's then."""
    work = attempt(parts, transfer, control)
    with pytest.raises(Killed):
        extract(work, data)
    lost(work)


def lost(work: TransferRun) -> None:
    """Let a mover be gone."""
    with work.parts.database.write() as session:
        queue.requeue(session, work.hold)


def registered(parts: Services, transfer: UUID) -> set[str]:
    """Return the places of the objects that a transfer made."""
    with parts.database.read() as session:
        items = select_items(session, transfer, limit=100)
        return {get_object(session, one.object_id, ALL).place for one in items if one.status == "COMPLETE"}


@pytest.mark.parametrize(("looks", "named"), [(1, False), (2, True)])
def test_what_has_its_name_becomes_an_object_whatever_the_source_says_then(
    parts: Services, tmp_path: Path, looks: int, named: bool
) -> None:
    transfer = submit(parts)
    dies(parts, transfer, tar_of(FILES), Dying(looks))
    places = {f"in/{name}" for name in FILES}
    assert {place for place in places if (tmp_path / "here" / place).exists()} == (places if named else set())
    work = attempt(parts, transfer)
    with parts.database.read() as session:
        assert in_doubt(session, transfer)
    extracting.settle(work)
    with parts.database.read() as session:
        assert not in_doubt(session, transfer)
        assert count_items(session, transfer).queued == (0 if named else len(FILES))
    with pytest.raises(SourceChanged) as changed:
        extract(work, tar_of({"other": b"0"}))
    with parts.database.write() as session:
        outcomes.fail(session, work.hold, changed.value)
    assert registered(parts, transfer) == (places if named else set())
    clear_up(parts)
    files = {file for file in (tmp_path / "here").rglob("*") if file.is_file()}
    assert files == ({tmp_path / "here" / place for place in places} if named else set())
    assert len(claims(parts.database)) == (len(FILES) if named else 0)


def test_a_file_that_somebody_put_there_is_not_taken_for_ours(parts: Services, tmp_path: Path) -> None:
    transfer = submit(parts)
    dies(parts, transfer, tar_of(FILES), Dying(1))
    (tmp_path / "here" / "in" / "a").write_bytes(b"2")
    work = attempt(parts, transfer)
    extracting.settle(work)
    with parts.database.read() as session:
        assert count_items(session, transfer).queued == len(FILES)
    extract(work, tar_of(FILES))
    assert registered(parts, transfer) == {"in/d/b", "in/d/c"}
    assert (tmp_path / "here" / "in" / "a").read_bytes() == b"2"


def test_a_mover_that_names_its_files_late_names_the_ones_that_were_wanted(parts: Services, tmp_path: Path) -> None:
    transfer = submit(parts)
    dies(parts, transfer, tar_of(FILES), Dying(1))
    work = attempt(parts, transfer)
    extracting.settle(work)
    for name in FILES:
        file = tmp_path / "here" / "in" / name
        (staged,) = file.parent.glob(f".{file.name}.*.1.dmpart")
        staged.rename(file)
    extract(work, tar_of(FILES))
    assert registered(parts, transfer) == {f"in/{name}" for name in FILES}


def test_an_archive_goes_also_when_its_files_were_all_done_before(parts: Services, tmp_path: Path) -> None:
    transfer = submit(parts)
    work = attempt(parts, transfer)
    extract(work, tar_of(FILES))
    assert list((tmp_path / "here" / "in").glob(".*.dmpart"))
    lost(work)
    work = attempt(parts, transfer)
    token = transfer_run._run.set(work)
    try:
        asyncio.run(extract_steps.fetch_and_extract())
    finally:
        transfer_run._run.reset(token)
    with parts.database.write() as session:
        assert archive_items.finish(session, work.hold) == f"{len(FILES)} items done"
    assert clear_up(parts) == 1
    assert not list((tmp_path / "here").rglob("*.dmpart"))
    assert registered(parts, transfer) == {f"in/{name}" for name in FILES}


def test_an_archive_of_the_same_size_is_another_one(parts: Services) -> None:
    transfer = submit(parts, verify="size")
    work = attempt(parts, transfer)
    enter(work, tar_of({"a": b"1"}))
    lost(work)
    work = attempt(parts, transfer)
    with pytest.raises(SourceChanged):
        enter(work, tar_of({"a": b"2"}))


def test_what_is_sent_again_counts_once() -> None:
    whole = Control()
    share = Share(whole)
    for _ in range(2):
        share.enter(Phase.TRANSFER, 10)
        share.advance(7)
        share.skip(3)
        share.enter(Phase.VERIFY)
    assert (whole.bytes_done, share.bytes_done) == (10, 10)
