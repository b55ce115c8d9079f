"""Bundles over connections that break, and long ways; how much is read, and kept in memory."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import tempfile
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from datamanager.domain.bundle_model import Frame, Pack, SealedBundle, VerifyLevel, bundle_place
from datamanager.domain.location import Place
from datamanager.domain.states import TransferKind
from datamanager.engine.attempt import Attempt
from datamanager.engine.bundles import bundle_upload, frames, recall
from datamanager.engine.bundles.bundle_upload import StagedBundle
from datamanager.engine.bundles.layout import BundleEntry, Layout
from datamanager.engine.control import Control
from datamanager.engine.single import parallel_streams, restart, staged_file
from datamanager.errors import ConnectionLost, MachineUnavailable
from datamanager.machines import Machine
from tests.support.bundles import MIB, MTIME, Archive, assert_debians_tar_agrees, machines, member, ready
from tests.support.ends import Ends
from tests.support.proxy import Proxy
from tests.support.sshd import PrivateSshd

WINDOW = 16 * MIB
OVERHEAD = 8 * MIB
"""Bytes of a connection that are no file's."""


@pytest.fixture(autouse=True)
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles of 40 MiB are large: with the window of the service they would have to be three times as large."""
    monkeypatch.setattr(restart, "BLOCK", WINDOW // 2)
    monkeypatch.setattr(restart, "WINDOW", WINDOW)
    monkeypatch.setattr(parallel_streams, "WINDOW", WINDOW)


both_packs = pytest.mark.parametrize("pack", [Pack.TAR, Pack.TAR_ZST])


@pytest.fixture(params=["openssh", "paramiko"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    both = machines(tmp_path, request.param, lambda: request.getfixturevalue("sshd_pair"))
    yield both
    both.storages.close()


@pytest.fixture
def far(sshd_pair: tuple[PrivateSshd, PrivateSshd], tmp_path: Path) -> Iterator[Ends]:
    """Machines by paramiko, which connects soonest, for what is the engine's and not the transport's."""
    both = machines(tmp_path, "paramiko", lambda: sshd_pair)
    yield both
    both.storages.close()


@dataclass
class Cuttable(Archive):
    """`b` is behind a proxy."""

    proxy: Proxy = dataclasses.field(kw_only=True)

    def attempts(self, **rules: Any) -> StagedBundle:
        """Attempt until it works, each with its epoch."""
        for epoch in range(1, 6):
            try:
                return self.stage(epoch=epoch, **rules)
            except (ConnectionLost, MachineUnavailable):
                continue
        raise AssertionError("it never worked")


@pytest.fixture(params=["openssh", "paramiko"])
def cuttable(request: pytest.FixtureRequest, sshd_pair: tuple[PrivateSshd, PrivateSshd]) -> Iterator[Cuttable]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, Proxy(sshd_pair[1].port) as proxy:
        folder = Path(name)
        for one in "ab":
            (folder / one).mkdir()
        known = folder / "known_hosts"
        known.write_text(sshd_pair[1].known_host_line().replace(f":{sshd_pair[1].port} ", f":{proxy.port} "))
        keys = {"connection": request.param, "port": proxy.port, "known_hosts": known, "stall_timeout": 10}
        local = Machine.model_validate({"name": "a", "transport": "local", "base_dir": str(folder / "a")})
        both = Ends({"a": local, "b": sshd_pair[1].machine("b", folder / "b", **keys)}, folder / "run")
        yield Cuttable(both, proxy=proxy)
        both.storages.close()


def much(store: Archive) -> list[UUID]:
    """Add files of some 40 MiB."""
    rng = random.Random(1)
    sizes = [10 * MIB, *[9000] * 300, 8 * MIB + 1, *[100_000] * 100, 12 * MIB, 5]
    return [store.add(f"dir/{n}", rng.randbytes(size)) for n, size in enumerate(sizes)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("level", [VerifyLevel.SIZES, VerifyLevel.CHECKSUMS])
def test_a_bundle_that_was_cut_off_goes_on(cuttable: Cuttable, level: VerifyLevel) -> None:
    much(cuttable)
    total = sum(map(len, cuttable.data.values()))
    before = cuttable.proxy.sent
    cuttable.proxy.cut_after = before + WINDOW + 12 * MIB
    staged = cuttable.attempts(level=level)
    assert cuttable.proxy.cuts == 1
    assert cuttable.marker is not None
    assert cuttable.proxy.sent - before <= total + WINDOW + OVERHEAD
    bundle_upload.publish(ready(staged))
    made = ready(staged).manifest
    assert made.bundle.sha256 == hashlib.sha256(cuttable.stored.read_bytes()).hexdigest()
    assert {one.uuid: one.sha256 for one in made.members} == {
        uuid: hashlib.sha256(data).hexdigest() for uuid, data in cuttable.data.items()
    }
    assert not cuttable.parts()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_member_that_changed_meanwhile_begins_the_bundle_anew(cuttable: Cuttable) -> None:
    uuids = much(cuttable)
    cuttable.proxy.cut_after = cuttable.proxy.sent + WINDOW + 12 * MIB
    with pytest.raises((ConnectionLost, MachineUnavailable)):
        cuttable.stage()
    os.utime(cuttable.file(uuids[-1]), (MTIME - 5, MTIME - 5))  # the same layout, another header
    before = cuttable.proxy.sent
    made = cuttable.make(epoch=2)
    assert cuttable.proxy.sent - before > sum(map(len, cuttable.data.values()))
    assert made.members[-1].mtime == MTIME - 5
    assert made.bundle.sha256 == hashlib.sha256(cuttable.stored.read_bytes()).hexdigest()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_compressed_bundle_that_was_cut_off_begins_anew(cuttable: Cuttable) -> None:
    cuttable.pack = Pack.TAR_ZST
    much(cuttable)
    cuttable.proxy.cut_after = cuttable.proxy.sent + WINDOW + 12 * MIB
    staged = cuttable.attempts()
    assert cuttable.marker is None
    bundle_upload.publish(ready(staged))
    assert_debians_tar_agrees(cuttable, ready(staged).manifest)
    assert not cuttable.parts()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_over_a_long_way_several_connections_carry_a_bundle(sshd_pair: tuple[PrivateSshd, PrivateSshd]) -> None:
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as name,
        Proxy(sshd_pair[0].port, delay=0.01) as near,
        Proxy(sshd_pair[1].port, delay=0.01) as far_away,
    ):
        folder = Path(name)
        made: dict[str, Machine] = {}
        for one, server, proxy in (("a", sshd_pair[0], near), ("b", sshd_pair[1], far_away)):
            (folder / one).mkdir()
            known = folder / f"known_hosts_{one}"
            known.write_text(server.known_host_line().replace(f":{server.port} ", f":{proxy.port} "))
            keys = {"connection": "openssh", "port": proxy.port, "known_hosts": known}
            made[one] = server.machine(one, folder / one, **keys)
        ends = Ends(made, folder / "run")
        for pack in (Pack.TAR, Pack.TAR_ZST):
            store = Archive(ends, pack)
            uuids = much(store)
            manifest_ = store.make()
            assert_debians_tar_agrees(store, manifest_)
            large = uuids[0]
            store.assert_back(store.recall(manifest_, large, f"back/{pack}"), large)
        ends.storages.close()


@pytest.mark.timeout(300)
def test_a_recall_that_was_cut_off_goes_on(cuttable: Cuttable) -> None:
    """From `a`, which is here, back to `b`: what the destination was sent is counted."""
    size = WINDOW + 20 * MIB
    store = Archive(Ends({"a": cuttable.ends.machines["a"], "b": cuttable.ends.machines["a"]}, Path("/dev/shm/none")))
    uuid = store.add("big", os.urandom(size))
    store.add("other", b"x")
    made = store.make()
    there = cuttable.ends.end("b", "back")
    job = Attempt(uuid4(), 1, TransferKind.COPY, store.ends.end("b", made.bundle.place.path), there)
    before = cuttable.proxy.sent
    cuttable.proxy.cut_after = before + WINDOW + 10 * MIB
    one = member(made, uuid)
    with pytest.raises((ConnectionLost, MachineUnavailable)):
        recall.stage_large(job, made.bundle, one, Control(), store.remember)
    again = dataclasses.replace(job, epoch=2, restart=store.marker)
    staged_file.publish(recall.stage_large(again, made.bundle, one, Control(), store.remember), Control())
    assert cuttable.proxy.sent - before <= size + WINDOW + OVERHEAD
    store.assert_back(cuttable.ends.folder("b") / "back", uuid)
    store.ends.storages.close()


# --- how much is read ---


@both_packs
def test_one_member_of_8_gib_is_recalled_reading_little_more(
    far: Ends, sshd_pair: tuple[PrivateSshd, PrivateSshd], pack: Pack
) -> None:
    """The bundle is sparse, or its frames are alike; the member is real."""
    data = os.urandom(32 * MIB)
    uuid = uuid4()
    sizes = [4 * 2**30, len(data), 4 * 2**30]
    entries = [BundleEntry(uuid4(), Place("a", f"f{n}"), "", size, 0o640, MTIME) for n, size in enumerate(sizes)]
    entries[1] = dataclasses.replace(entries[1], uuid=uuid)
    layout = Layout(entries, pack)
    store = Archive(far, pack, data={uuid: data})
    store.stored.parent.mkdir(parents=True)
    known = [(layout.start(n), layout.header(n)) for n in range(3)] + [(layout.data(1), data)]
    if pack is Pack.TAR:
        write_sparse(store.stored, layout.size, known)
    else:
        write_frames(store.stored, layout, known)
    sums = ["0" * 64, hashlib.sha256(data).hexdigest(), "0" * 64]
    place = bundle_place(far.machines["b"], "long/term", store.bundle, pack)
    bundle = SealedBundle(store.bundle, pack, place, store.stored.stat().st_size, "0" * 64)
    one = layout.members(sums)[1]
    with far.storages.get("b").session() as session:
        session.stat(far.machines["b"].base_dir)
    before = bytes_read(sshd_pair[1])
    job = Attempt(uuid4(), 1, TransferKind.COPY, far.end("b", place.path), far.end("a", "back"))
    staged_file.publish(recall.stage_large(job, bundle, one, Control()), Control())
    read = bytes_read(sshd_pair[1]) - before
    assert len(data) <= read < 1.01 * len(data)
    store.assert_back(far.folder("a") / "back", uuid)


def write_sparse(file: Path, size: int, known: list[tuple[int, bytes]]) -> None:
    with file.open("wb") as opened:
        opened.truncate(size)
        for at, data in known:
            opened.seek(at)
            opened.write(data)


def write_frames(file: Path, layout: Layout, known: list[tuple[int, bytes]]) -> None:
    zeros: dict[int, bytes] = {}
    made, start = list[Frame](), 0
    with file.open("wb") as opened:
        for length in frames.cuts(layout):
            piece = bytearray(length)
            used = False
            for at, data in known:
                first, last = max(at, start), min(at + len(data), start + length)
                if first < last:
                    piece[first - start : last - start] = data[first - at : last - at]
                    used = True
            if used or length not in zeros:
                [(_, stored)] = frames.compressed([memoryview(piece)], [length])
                if not used:
                    zeros[length] = stored
            else:
                stored = zeros[length]
            made.append(Frame(len(stored), length))
            opened.write(stored)
            start += length
        opened.write(frames.seek_table(made))


def bytes_read(server: PrivateSshd) -> int:
    """Return the bytes that the server's SFTP servers have read so far, files and requests together."""
    total = 0
    for pid in server.descendants():
        try:
            if not Path(f"/proc/{pid}/task/{pid}/children").read_text():  # those with children only pass bytes on
                total += int(Path(f"/proc/{pid}/io").read_text().split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


@both_packs
def test_memory_does_not_grow_with_the_bundle(ends: Ends, pack: Pack) -> None:
    store = Archive(ends, pack)
    block = os.urandom(60_000)
    for number in range(1200):
        store.add(f"dir{number % 10}/{number}", block)
    store.add("large", block * 800)
    store.data = dict.fromkeys(store.data, b"")
    total = (1200 + 800) * len(block)
    tracemalloc.start()
    try:
        staged = store.stage()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 38 * MIB < total / 3
    assert len(ready(staged).manifest.members) == 1201
    bundle_upload.discard(store.job())
    assert not store.parts()
