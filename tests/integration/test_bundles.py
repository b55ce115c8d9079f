"""Bundles between real machines: what is archived is exact and comes back exact, what fails fails alone."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import posixpath
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datamanager.domain.bundle_model import Manifest, Pack, SealedBundle, VerifyLevel
from datamanager.domain.location import Place, temporary_name
from datamanager.domain.states import Phase
from datamanager.engine.attempt import Intent
from datamanager.engine.bulk.bulk_chunk import SMALL, Deferred, Failed
from datamanager.engine.bundles import bundle_upload, manifest, recall
from datamanager.engine.bundles.member_files import remove_sources
from datamanager.engine.control import Control
from datamanager.errors import (
    ChecksumMismatch,
    DataManagerError,
    DestinationExists,
    SourceChanged,
    SourceMissing,
    SourceNotRemoved,
)
from tests.support.bundles import (
    MIB,
    Acting,
    Archive,
    assert_debians_tar_agrees,
    flip,
    machines,
    member,
    ready,
    some_files,
)
from tests.support.ends import Ends
from tests.support.sshd import PrivateSshd

both_packs = pytest.mark.parametrize("pack", [Pack.TAR, Pack.TAR_ZST])


@pytest.fixture(params=["local", "openssh", "paramiko"])
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


# --- there and back ---


@both_packs
def test_there_and_back(ends: Ends, pack: Pack) -> None:
    store = Archive(ends, pack)
    uuids = some_files(store)
    control = Control()
    staged = store.stage(control, level=VerifyLevel.PARANOID)
    assert not store.stored.exists()
    assert control.bytes_done == ready(staged).manifest.stream_size
    bundle_upload.publish(ready(staged))
    made = ready(staged).manifest
    assert not staged.failed
    assert not store.parts()
    assert made.bundle.size == store.stored.stat().st_size
    assert made.bundle.sha256 == hashlib.sha256(store.stored.read_bytes()).hexdigest()
    intent = dataclasses.replace(ready(staged).intent, source=None)
    assert intent == Intent(made.bundle.size, made.bundle.sha256, int(store.stored.stat().st_mtime))
    assert {one.uuid: one.sha256 for one in made.members} == {
        uuid: hashlib.sha256(data).hexdigest() for uuid, data in store.data.items()
    }
    assert manifest.load(store.beside.read_bytes()) == made
    assert_debians_tar_agrees(store, made)
    assert not remove_sources(store.job(), made)
    assert not any(store.file(uuid).exists() for uuid in uuids)

    for number in (0, 1, 4, 8, 20):
        store.assert_back(store.recall(made, uuids[number], f"alone/{number}"), uuids[number])
    outcomes = store.recall_many(made, uuids, "together")
    later = [uuid for uuid, one in outcomes.items() if isinstance(one, Deferred)]
    assert [len(store.data[uuid]) for uuid in later] == [SMALL + 1, 3 * MIB]
    for uuid in uuids:
        if uuid not in later:
            store.assert_back(ends.folder("a") / f"together/{uuid}", uuid)
    assert not store.parts()


@pytest.mark.parametrize("size", [0, 1, 2 * SMALL + 5])
def test_one_file_alone(ends: Ends, size: int) -> None:
    store = Archive(ends, Pack.NONE)
    uuid = store.add("-dash\n", os.urandom(size))
    made = store.make(level=VerifyLevel.PARANOID)
    assert store.stored.read_bytes() == store.data[uuid]
    assert made.members[0].sha256 == made.bundle.sha256 == hashlib.sha256(store.data[uuid]).hexdigest()
    store.assert_back(store.recall(made, uuid, "back"), uuid)
    store.recall_many(made, [uuid], "many")
    if size <= SMALL:
        store.assert_back(ends.folder("a") / f"many/{uuid}", uuid)


def test_to_and_from_the_same_machine(far: Ends) -> None:
    far.machines["b"] = far.machines["a"]
    store = Archive(Ends(far.machines, far.folder("a") / "run2"))
    uuids = some_files(store, 10)
    made = store.make()
    assert not remove_sources(store.job(), made)
    for uuid in uuids:
        store.assert_back(store.recall(made, uuid, f"back/{uuid}"), uuid)
    store.ends.storages.close()


# --- members that fail ---


@both_packs
def test_members_fail_alone(ends: Ends, pack: Pack) -> None:
    store = Archive(ends, pack)
    good = some_files(store, 10)
    folder = ends.folder("a")
    expected = {store.ask("nothing"): SourceMissing, store.ask("no/folder/x"): SourceMissing}
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "link").symlink_to(store.file(good[3]))
    for path in ("folder", "fifo", "dangling"):
        expected[store.ask(path)] = SourceMissing
    linked = store.ask("link")
    store.data[linked] = store.data[good[3]]
    staged = store.stage()
    assert {uuid: type(error) for uuid, error in staged.failed.items() if uuid in expected} != {}
    assert set(staged.failed) == set(expected)
    assert all(isinstance(error, DataManagerError) for error in staged.failed.values())
    bundle_upload.publish(ready(staged))
    made = ready(staged).manifest
    assert [one.uuid for one in made.members] == [*good, linked]
    assert_debians_tar_agrees(store, made)
    assert not remove_sources(store.job(), made)
    assert not (folder / "link").is_symlink()


def test_nothing_can_be_archived(far: Ends) -> None:
    store = Archive(far)
    uuid = store.ask("nothing")
    staged = store.stage()
    assert staged.ready is None
    assert set(staged.failed) == {uuid}
    assert not list(far.folder("b").rglob("*.*"))


@both_packs
@pytest.mark.parametrize(
    ("size", "when", "change", "error"),
    [
        (1000, Phase.TRANSFER, lambda path: path.write_bytes(b"other"), SourceChanged),
        (2 * MIB, Phase.TRANSFER, lambda path: path.unlink(), SourceMissing),
        (1000, Phase.VERIFY, lambda path: os.utime(path, (1, 1)), SourceChanged),
        (2 * MIB, Phase.VERIFY, lambda path: path.unlink(), (SourceChanged, SourceMissing)),
    ],
)
def test_a_member_that_changes_meanwhile(
    far: Ends, pack: Pack, size: int, when: Phase, change: Callable[[Path], object], error: Any
) -> None:
    store = Archive(far, pack)
    good = some_files(store, 5)
    changing = store.add("changing", os.urandom(size))
    staged = store.stage(Acting(lambda: change(store.file(changing)), when))
    assert set(staged.failed) == {changing}
    assert isinstance(staged.failed[changing], error)
    bundle_upload.publish(ready(staged))
    assert [one.uuid for one in ready(staged).manifest.members] == good
    assert_debians_tar_agrees(store, ready(staged).manifest)
    assert not store.parts()


def test_members_that_disappear_are_left_out_together(far: Ends) -> None:
    """More of them, and further apart, than a bundle is begun anew."""
    store = Archive(far)
    uuids = [store.add(f"dir/{n}", os.urandom(3 * MIB if n % 100 == 99 else 50_000)) for n in range(600)]
    gone = {uuids[n] for n in (5, 99, 170, 299, 340, 510, 599)}

    def remove() -> None:
        for uuid in gone:
            store.file(uuid).unlink()

    staged = store.stage(Acting(remove, Phase.TRANSFER))
    assert {uuid: type(error) for uuid, error in staged.failed.items()} == dict.fromkeys(gone, SourceMissing)
    assert [one.uuid for one in ready(staged).manifest.members] == [uuid for uuid in uuids if uuid not in gone]


def test_members_that_never_stop_changing(far: Ends) -> None:
    store = Archive(far)
    uuids = some_files(store, 5)
    waiting = list(uuids)
    changing = Acting(lambda: os.utime(store.file(waiting.pop()), (1, 1)), Phase.VERIFY, times=100)
    with pytest.raises(SourceChanged):
        store.stage(changing)
    assert not store.stored.exists()
    assert not store.parts()


def test_only_sources_that_are_what_was_read_are_removed(ends: Ends) -> None:
    store = Archive(ends)
    uuids = some_files(store, 5)
    made = store.make()
    store.file(uuids[0]).write_bytes(b"written since")
    store.file(uuids[1]).unlink()
    left = remove_sources(store.job(), made)
    assert {uuid: type(error) for uuid, error in left.items()} == {uuids[0]: SourceNotRemoved}
    assert [uuid for uuid in uuids if store.file(uuid).exists()] == [uuids[0]]
    assert set(remove_sources(store.job(), made)) == {uuids[0]}


def test_directories_are_not_followed_out_of_the_base(far: Ends, tmp_path: Path) -> None:
    store = Archive(far)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_text("secret")
    (far.folder("a") / "way").symlink_to(tmp_path / "secret")
    uuid = store.ask(posixpath.join("way", "file"))
    staged = store.stage()
    assert staged.failed[uuid].code == "path_not_allowed"
    assert staged.ready is None


# --- damage ---


@both_packs
@pytest.mark.parametrize("place", ["data", "header"])
def test_one_flipped_bit(far: Ends, pack: Pack, place: str) -> None:
    store = Archive(far, pack)
    uuids = [store.add(f"dir/file{n}", os.urandom(3 * MIB if n % 5 == 0 else 30_000)) for n in range(8)]
    made = store.make()
    victims = {uuids[5]}
    one = member(made, uuids[5])
    if pack is Pack.TAR:
        flip(store.stored, one.offset + (one.size // 2 if place == "data" else -512))
    else:
        number, at = frame_at(made, one.offset + (one.size // 2 if place == "data" else -512))
        flip(store.stored, at + made.frames[number].stored // 2)
        start = sum(frame.size for frame in made.frames[:number])
        assert start <= one.offset + one.size
        assert start + made.frames[number].size <= one.offset + one.size
    for uuid in uuids:
        to = f"back/{uuid}"
        if uuid in victims:
            with pytest.raises(ChecksumMismatch):
                store.recall(made, uuid, to)
            assert not (far.folder("a") / to).exists()
        else:
            store.assert_back(store.recall(made, uuid, to), uuid)
    assert not store.parts()


@both_packs
def test_one_flipped_bit_among_small_members(far: Ends, pack: Pack) -> None:
    store = Archive(far, pack)
    uuids = [store.add(f"dir/file{n}", os.urandom(60_000)) for n in range(60)]
    made = store.make()
    offset = member(made, uuids[33]).offset
    if pack is Pack.TAR:
        victims = {uuids[33]}
        flip(store.stored, offset + 100)
    else:
        number, at = frame_at(made, offset)
        flip(store.stored, at + 1000)
        start = sum(frame.size for frame in made.frames[:number])
        stop = start + made.frames[number].size
        victims = {one.uuid for one in made.members if one.offset - 512 < stop and one.offset + one.size > start}
        assert len(victims) < 20
    outcomes = store.recall_many(made, uuids, "back")
    assert {uuid for uuid, one in outcomes.items() if isinstance(one, Failed)} == victims
    for uuid, one in outcomes.items():
        if isinstance(one, Failed):
            assert isinstance(one.error, ChecksumMismatch)
            assert not (far.folder("a") / f"back/{uuid}").exists()
        else:
            store.assert_back(far.folder("a") / f"back/{uuid}", uuid)
    assert not store.parts()


def frame_at(made: Manifest, offset: int) -> tuple[int, int]:
    """Return the frame that holds an offset, and where it begins in the file."""
    start = at = 0
    for number, frame in enumerate(made.frames):
        if start + frame.size > offset:
            return number, at
        start, at = start + frame.size, at + frame.stored
    raise AssertionError("no such frame")


def test_a_damaged_table_of_frames_is_replaced_by_the_manifest(far: Ends) -> None:
    store = Archive(far, Pack.TAR_ZST)
    uuids = some_files(store, 5)
    made = store.make()
    flip(store.stored, made.bundle.size - 20)
    for uuid in uuids:
        store.assert_back(store.recall(made, uuid, f"back/{uuid}"), uuid)


def test_the_catalogue_must_name_what_is_there(far: Ends) -> None:
    """Offsets of the catalogue are not believed without a look at the header."""
    store = Archive(far)
    first, second = store.add("dir/x", b"1" * 1000), store.add("dir/y", b"1" * 1000)
    made = store.make()
    wrong = dataclasses.replace(member(made, first), offset=member(made, second).offset)
    with pytest.raises(ChecksumMismatch):
        recall.stage_large(store.recall_job(made, "back"), made.bundle, wrong, Control())
    with pytest.raises(SourceMissing):
        store.recall(dataclasses.replace(made, bundle=other(made.bundle, "long/term/none.tar")), first, "back")
    with store.stored.open("ab") as file:
        file.write(b"more")
    with pytest.raises(SourceChanged):
        store.recall(made, first, "back")
    with pytest.raises(SourceChanged):
        store.recall_many(made, [first], "back")
    assert not (far.folder("a") / "back").exists()


def other(bundle: SealedBundle, path: str) -> SealedBundle:
    return dataclasses.replace(bundle, place=Place(bundle.place.machine, path))


@both_packs
@pytest.mark.parametrize("level", VerifyLevel)
def test_what_each_level_proves(far: Ends, pack: Pack, level: VerifyLevel) -> None:
    store = Archive(far, pack)
    some_files(store, 5)

    def damage() -> None:
        [part] = store.parts()
        flip(part, 2000)

    control = Acting(damage, Phase.VERIFY, times=9)
    if level is VerifyLevel.SIZES:
        staged = store.stage(control, level=level)
        assert ready(staged).manifest.bundle.sha256 != hashlib.sha256(store.parts()[0].read_bytes()).hexdigest()
        return
    with pytest.raises(ChecksumMismatch):
        store.stage(control, level=level)
    bundle_upload.discard(store.job())
    assert not store.stored.exists()
    assert not store.parts()
    assert len(store.make(level=level, epoch=2).members) == len(store.wanted)


# --- crashes ---


@both_packs
def test_a_later_attempt_finds_what_was_published(ends: Ends, pack: Pack) -> None:
    store = Archive(ends, pack)
    some_files(store, 10)
    first = ready(store.stage())
    bundle_upload.publish(first)
    again = store.stage(intent=first.intent, epoch=2)
    assert ready(again).published
    assert ready(again).manifest == first.manifest
    bundle_upload.publish(ready(again))
    assert not remove_sources(store.job(), ready(again).manifest)
    assert ready(store.stage(intent=first.intent, epoch=3)).manifest == first.manifest
    assert not store.parts()


@both_packs
def test_a_crash_between_manifest_and_bundle(far: Ends, pack: Pack) -> None:
    store = Archive(far, pack)
    some_files(store, 10)
    first = ready(store.stage())
    bundle_upload._publish_manifest(first)
    left = store.stored.with_name(temporary_name(store.beside.name, store.transfer, 1))
    left.write_text("half a mani")
    second = ready(store.stage(intent=first.intent, epoch=2))
    assert not second.published
    bundle_upload.publish(second)
    assert manifest.load(store.beside.read_bytes()) == second.manifest
    assert_debians_tar_agrees(store, second.manifest)
    assert not store.parts()


def test_somebody_elses_file_is_left(far: Ends) -> None:
    store = Archive(far)
    some_files(store, 3)
    store.stored.parent.mkdir(parents=True)
    store.stored.write_text("mine")
    with pytest.raises(DestinationExists):
        store.stage()
    assert store.stored.read_text() == "mine"
    assert [file.name for file in store.stored.parent.iterdir()] == [store.stored.name]
