"""Numbers that don't fit: times before 1970 and after 2106, sizes and free space beyond what a database holds. And
whatever is raised for one item, the others of its batch are done."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from uuid import UUID

import pytest
from paramiko.message import Message

from datamanager.domain.requests import CopyManyRequest, MoveManyRequest
from datamanager.domain.states import TransferKind
from datamanager.engine.bulk.bulk_chunk import BulkEndpoints, BulkRules, Outcome
from datamanager.engine.single.staged_file import ReadyFile
from datamanager.errors import DataManagerError, ItemsFailed
from datamanager.machines import Machine, Machines
from datamanager.settings import load_settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from datamanager.transports.port import Session
from datamanager.transports.sftp.wire import SIZE_MAX, pack_attributes, unpack_space, unpack_stat
from flows.batch.chunk import ItemsChunk
from flows.runtime.services import Services
from models import submission
from models.access.visibility import ALL
from models.archive import items as archive_items
from models.database import Database
from models.objects.catalogue import Facts, get_object
from models.submission import SealedRequest
from models.tables import TransferItem
from models.transfers.items import select_items
from models.transfers.lookup import get_transfer
from tests.support.bundling import an_object, attempt, done, folder
from tests.support.sshd import PrivateSshd

TIMES = {"before": -7, "epoch": 0, "last": 2**32 - 1, "after": 2**32 + 5, "usual": 1_600_000_000}
LARGE = 600_000
"""Bytes of a file that the one-file engine carries."""


@pytest.mark.parametrize("mtime", [-(2**63), *TIMES.values(), 2**63 - 1])
def test_pack_attributes_clamps_times(mtime: int) -> None:
    packed = struct.unpack(">IIII", pack_attributes(mode=0o100644, mtime=mtime))
    assert packed[1:] == (0o644, *[min(max(mtime, 0), 2**32 - 1)] * 2)


def test_unpacked_numbers_fit_the_database() -> None:
    assert unpack_stat(Message(struct.pack(">IQ", 1, 2**64 - 1))).size == SIZE_MAX
    assert unpack_space(Message(struct.pack(">5Q", *[2**64 - 1] * 5))) == SIZE_MAX


@pytest.fixture
def parts(database: Database, sshd_pair: tuple[PrivateSshd, PrivateSshd], tmp_path: Path) -> Iterator[Services]:
    """A mover's parts over a real catalogue: `here` is a local folder, `there` and `tape` are reached by SSH."""
    for name in ("here", "there", "tape"):
        (tmp_path / name).mkdir()
    here = {"name": "here", "transport": "local", "base_dir": str(tmp_path / "here")}
    there, tape = sshd_pair
    machines = Machines(
        {
            "here": Machine.model_validate(here),
            "there": there.machine("there", tmp_path / "there"),
            "tape": tape.machine("tape", tmp_path / "tape", archive=True),
        }
    )
    storages = Storages(machines, tmp_path / "run")
    settings = load_settings(home=tmp_path / "home")
    yield Services(settings, machines, database, storages, EgressGuard(()), "mover", notify=lambda _: None)
    storages.close()


def submit_batch(parts: Services, objects: dict[str, UUID], *, moving: bool, **fields: object) -> UUID:
    """Submit a batch of files of `here` to `there`."""
    items = [{"uuid": uuid, "machine": "there", "dest": f"out/{name}"} for name, uuid in objects.items()]
    model = MoveManyRequest if moving else CopyManyRequest
    kind = TransferKind.MOVE_MANY if moving else TransferKind.COPY_MANY
    request = SealedRequest(kind, model.model_validate({"items": items, **fields}), grant=None)
    with parts.database.write() as session:
        return submission.submit(session, parts.machines, request).id


def perform(parts: Services, transfer: UUID, chunk: type[ItemsChunk] = ItemsChunk) -> str | DataManagerError:
    work = attempt(parts, transfer)
    chunk(work, work.items_to_do()).perform()
    with parts.database.write() as session:
        return archive_items.finish(session, work.hold)


def items(parts: Services, transfer: UUID) -> list[TransferItem]:
    with parts.database.read() as session:
        return select_items(session, transfer, limit=1000)


def odd_files(parts: Services, size: int) -> dict[str, UUID]:
    """Register a file of each of TIMES."""
    objects = {name: an_object(parts, name, os.urandom(size)) for name in TIMES}
    for name, mtime in TIMES.items():
        os.utime(folder(parts, "here") / name, (mtime, mtime))
    return objects


@pytest.mark.parametrize("size", [100, LARGE])
@pytest.mark.parametrize("verify", ["sha256", "size"])
def test_batch_clamps_times_that_do_not_fit(parts: Services, size: int, verify: str) -> None:
    objects = odd_files(parts, size)
    data = {name: (folder(parts, "here") / name).read_bytes() for name in objects}
    transfer = submit_batch(parts, objects, moving=True, verify=verify)
    assert perform(parts, transfer) == "5 items done"
    there = {file.name: file for file in (folder(parts, "there") / "out").iterdir()}
    assert {name: file.read_bytes() for name, file in there.items()} == data
    clamped = {name: min(max(mtime, 0), 2**32 - 1) for name, mtime in TIMES.items()}
    assert {name: int(file.stat().st_mtime) for name, file in there.items()} == clamped
    assert not list(folder(parts, "here").iterdir())
    noted = {one.dest: one.notes["intent"]["not_kept"] for one in items(parts, transfer)}
    assert noted == {f"out/{name}": ["mtime"] if name in ("before", "after") else [] for name in TIMES}


@pytest.mark.parametrize("size", [100, LARGE])
def test_activate_clamps_times_that_do_not_fit(parts: Services, size: int) -> None:
    objects = odd_files(parts, size)
    data = {name: (folder(parts, "here") / name).read_bytes() for name in objects}
    assert done(parts, "archive", *objects.values()) == "5 items done"
    moves = [{"uuid": uuid, "machine": "there", "dest": f"back/{name}"} for name, uuid in objects.items()]
    assert done(parts, "activate", *moves) == "5 items done"  # type: ignore[arg-type]
    there = {file.name: file for file in (folder(parts, "there") / "back").iterdir()}
    assert {name: file.read_bytes() for name, file in there.items()} == data
    assert {int(there[name].stat().st_mtime) for name in ("before", "after")} == {0, 2**32 - 1}


class FailsAlone(ItemsChunk):
    """A chunk in which items fail in ways that nobody foresaw: one as it is staged, one as it is recorded."""

    def _stage_one(self, number: int) -> ReadyFile:
        if self._rows[number].dest == "out/staged":
            raise struct.error("argument out of range")
        return super()._stage_one(number)

    def _stage_together(self, ends: BulkEndpoints[Session], group: Sequence[int], rules: BulkRules) -> list[Outcome]:
        if any(self._rows[number].dest == "out/staged" for number in group):
            raise struct.error("argument out of range")
        return super()._stage_together(ends, group, rules)

    def _tell(self, results: Sequence[tuple[int, Facts]]) -> None:
        if any(self._rows[number].dest == "out/told" for number, _ in results):
            raise OverflowError("Python int too large to convert to SQLite INTEGER")
        super()._tell(results)


@pytest.mark.parametrize("moving", [False, True])
def test_batch_does_what_it_can_whatever_one_item_raises(parts: Services, moving: bool) -> None:
    sizes = {"first": 100, "staged": 100, "told": 100, "large": LARGE, "last": 7}
    objects = {name: an_object(parts, name, os.urandom(size)) for name, size in sizes.items()}
    transfer = submit_batch(parts, objects, moving=moving)
    outcome = perform(parts, transfer, FailsAlone)
    assert isinstance(outcome, ItemsFailed)
    failed = {one.dest: one.error_code for one in items(parts, transfer) if one.status == "ERROR"}
    assert failed == {"out/staged": "internal", "out/told": "internal"}
    names = {file.name for file in (folder(parts, "there") / "out").iterdir()}
    assert names == {"first", "told", "large", "last"}, "and no partial file"
    with parts.database.read() as session:
        results = [one.result_object_id for one in items(parts, transfer) if one.status == "COMPLETE"]
        places = {get_object(session, uuid, ALL).place for uuid in results if uuid is not None}
    assert places == {"out/first", "out/large", "out/last"}
    left = {file.name for file in folder(parts, "here").iterdir()}
    assert left == ({"staged", "told"} if moving else set(sizes))


def test_batch_moves_no_file_that_is_not_the_objects(parts: Services) -> None:
    objects = {
        name: an_object(parts, name, bytes(size)) for name, size in {"right": 9, "longer": 9, "other": 9}.items()
    }
    (folder(parts, "here") / "longer").write_bytes(bytes(10))
    (folder(parts, "here") / "other").write_bytes(b"other one")
    with parts.database.write() as session:
        get_object(session, objects["other"], ALL).checksum = f"sha256:{sha256(bytes(9)).hexdigest()}"
    transfer = submit_batch(parts, objects, moving=True)
    assert isinstance(perform(parts, transfer), ItemsFailed)
    failed = {one.dest: one.error_code for one in items(parts, transfer) if one.status == "ERROR"}
    assert failed == {"out/longer": "source_changed", "out/other": "source_changed"}
    assert [file.name for file in (folder(parts, "there") / "out").iterdir()] == ["right"]
    assert {file.name for file in folder(parts, "here").iterdir()} == {"longer", "other"}


def test_batch_of_impossible_sizes_is_accepted(parts: Services) -> None:
    objects = {name: an_object(parts, name, b"bytes") for name in "ab"}
    with parts.database.write() as session:
        for uuid in objects.values():
            get_object(session, uuid, ALL).size = SIZE_MAX
    transfer = submit_batch(parts, objects, moving=False)
    with parts.database.read() as session:
        assert get_transfer(session, transfer, ALL).bytes_total == SIZE_MAX
    assert perform(parts, transfer) == "2 items done"
