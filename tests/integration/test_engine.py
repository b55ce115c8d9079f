"""The publish protocol on real storages: what is published is exact, and what fails leaves nothing."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from datamanager.domain.location import Place
from datamanager.domain.states import Route, TransferKind, Verified
from datamanager.engine.attempt import Attempt, Endpoint, Found, Intent
from datamanager.engine.control import Control
from datamanager.engine.single import publish as publishing
from datamanager.engine.single import transfer
from datamanager.engine.single import verify as verifying
from datamanager.engine.single.probe import probe
from datamanager.engine.single.source_removal import remove_source
from datamanager.engine.single.verify import verify
from datamanager.errors import (
    Cancelled,
    ChecksumMismatch,
    DataManagerError,
    DestinationExists,
    NoSpace,
    PathNotAllowed,
    PathReplaced,
    RemoteFailure,
    SizeMismatch,
    SourceChanged,
    SourceMissing,
    SourceNotRemoved,
)
from datamanager.machines import Machine, VerifyPolicy
from datamanager.transports.factory import open_storage
from datamanager.transports.port import Session
from tests.support.ends import Ends
from tests.support.sshd import PrivateSshd

DATA = os.urandom(3 * 2**20 + 7)


@pytest.fixture(params=["local", "openssh", "paramiko"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    """Two machines of one kind; `c` is a second name for the folder of `b`."""
    folders = {name: tmp_path / name for name in ("a", "b")}
    for folder in folders.values():
        folder.mkdir()
    folders["c"] = folders["b"]
    if request.param == "local":
        machines = {
            name: Machine.model_validate({"name": name, "transport": "local", "base_dir": str(folder)})
            for name, folder in folders.items()
        }
    else:
        servers: tuple[PrivateSshd, PrivateSshd] = request.getfixturevalue("sshd_pair")
        by_name = {"a": servers[0], "b": servers[1], "c": servers[1]}
        machines = {
            name: by_name[name].machine(name, str(folder), connection=request.param) for name, folder in folders.items()
        }
    both = Ends(machines, tmp_path / "run")
    yield both
    both.storages.close()


def carry(job: Attempt, control: Control | None = None) -> tuple[Found, Verified]:
    """Do what the flow does, step by step."""
    control = control or Control()
    found = probe(job)
    moved = (
        transfer.copy_within(job, found, control)
        if found.route is Route.WITHIN
        else transfer.relay(job, found, control)
    )
    proof = verify(job, found, moved, control)
    intent = Intent(proof.size, proof.sha256, found.source_stat.mtime)
    publishing.publish(job, found, publishing.set_attributes(job, found, intent))
    return found, proof.verified


def parts(ends: Ends) -> list[str]:
    return [file.name for name in ends.machines for file in ends.folder(name).rglob("*.dmpart")]


@pytest.mark.parametrize("destination", ["b:new/dir/out.bin", "a:new/dir/out.bin"])
def test_exact_bytes_mode_and_time(ends: Ends, destination: str) -> None:
    source = ends.folder("a") / "in.bin"
    source.write_bytes(DATA)
    source.chmod(0o640)
    os.utime(source, (1_600_000_000, 1_600_000_000))
    found, verified = carry(ends.job("a:in.bin", destination))
    out = Path(found.final)
    assert out.read_bytes() == DATA
    assert (out.stat().st_mode & 0o7777, int(out.stat().st_mtime)) == (0o640, 1_600_000_000)
    assert verified is Verified.SHA256
    assert not parts(ends)


def test_setuid_is_not_carried(ends: Ends) -> None:
    source = ends.folder("a") / "tool"
    source.write_bytes(b"#!")
    source.chmod(0o6755)
    found, _ = carry(ends.job("a:tool", "b:tool"))
    assert Path(found.final).stat().st_mode & 0o7777 == 0o755


def test_an_empty_file(ends: Ends) -> None:
    (ends.folder("a") / "empty").touch()
    found, _ = carry(ends.job("a:empty", "b:empty"))
    assert Path(found.final).read_bytes() == b""


def test_nothing_is_overwritten_unless_asked(ends: Ends) -> None:
    (ends.folder("a") / "in").write_bytes(b"new")
    there = ends.folder("b") / "out"
    there.write_bytes(b"old")
    with pytest.raises(DestinationExists):
        probe(ends.job("a:in", "b:out"))
    carry(ends.job("a:in", "b:out", overwrite=True))
    assert there.read_bytes() == b"new"


def test_a_file_that_appears_in_the_last_moment_is_left(ends: Ends) -> None:
    (ends.folder("a") / "in").write_bytes(DATA)
    job, control = ends.job("a:in", "b:out"), Control()
    found = probe(job)
    proof = verify(job, found, transfer.relay(job, found, control), control)
    Path(found.final).write_bytes(b"somebody else's")
    with pytest.raises(DestinationExists):
        publishing.publish(job, found, Intent(proof.size, proof.sha256, 1))
    assert Path(found.final).read_bytes() == b"somebody else's"
    transfer.discard(job, found)
    assert not parts(ends)


def test_our_own_file_from_a_retry_is_accepted(ends: Ends) -> None:
    (ends.folder("a") / "in").write_bytes(DATA)
    job, control = ends.job("a:in", "b:out"), Control()
    found = probe(job)
    proof = verify(job, found, transfer.relay(job, found, control), control)
    intent = Intent(proof.size, proof.sha256, found.source_stat.mtime)
    publishing.publish(job, found, intent)
    publishing.publish(job, found, intent)  # the answer of the first was lost
    assert (
        probe(replace(job, epoch=2, intent=intent)).published == intent
    )  # or the mover was, before it told the catalogue
    with pytest.raises(DestinationExists):
        probe(replace(job, epoch=2, intent=replace(intent, sha256="0" * 64)))


@pytest.mark.parametrize("fault", ["flip", "truncate", "extend"])
def test_damage_to_what_was_stored_is_caught(ends: Ends, fault: str) -> None:
    (ends.folder("a") / "in").write_bytes(DATA)
    job, control = ends.job("a:in", "b:out"), Control()
    found = probe(job)
    moved = transfer.relay(job, found, control)
    part = Path(found.part)
    with part.open("r+b") as file:
        if fault == "flip":
            file.seek(1_000_000)
            byte = file.read(1)
            file.seek(1_000_000)
            file.write(bytes([byte[0] ^ 1]))
        else:
            file.truncate(len(DATA) + (1 if fault == "extend" else -1))
    with pytest.raises(ChecksumMismatch if fault == "flip" else SizeMismatch):
        verify(job, found, moved, control)
    assert not Path(found.final).exists()


def test_a_partial_file_that_disappears_under_the_comparison_is_told(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ends.folder("a") / "in").write_bytes(DATA)
    job, control = ends.job("a:in", "b:out"), Control()
    found = probe(job)
    moved = transfer.relay(job, found, control)
    read = verifying.stored_sha256

    def read_late(session: Session, path: str, *args: Any, **rules: Any) -> str:
        Path(found.part).unlink()  # it was there a moment ago, as the size was compared
        return read(session, path, *args, **rules)

    monkeypatch.setattr(verifying, "stored_sha256", read_late)
    with pytest.raises(PathReplaced, match="partial file was written"):
        verify(job, found, moved, control)


def test_a_source_that_changes_under_the_copy_is_caught(ends: Ends) -> None:
    source = ends.folder("a") / "in"
    source.write_bytes(DATA)
    job, control = ends.job("a:in", "b:out"), Control()
    found = probe(job)
    moved = transfer.relay(job, found, control)
    os.utime(source, (time.time() + 10, time.time() + 10))
    with pytest.raises(SourceChanged):
        verify(job, found, moved, control)
    source.write_bytes(DATA[:-1])
    with pytest.raises(SourceChanged):
        transfer.relay(job, found, Control())  # shorter than it was when probed


def test_the_size_policy_says_what_it_proved(ends: Ends) -> None:
    (ends.folder("a") / "in").write_bytes(DATA)
    job = ends.job("a:in", "b:out", verify=VerifyPolicy.SIZE)
    assert carry(job)[1] is Verified.SIZE


@pytest.mark.parametrize("ends", ["local"], indirect=True)
def test_relay_flushes_the_partial_file_before_it_is_renamed(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    (ends.folder("a") / "in").write_bytes(DATA)
    done: list[str] = []
    fsync, link = os.fsync, os.link

    def note_fsync(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).suffix)
        fsync(handle)

    def note_link(source: str, destination: str, **rules: Any) -> None:
        done.append("named")
        link(source, destination, **rules)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "link", note_link)
    carry(ends.job("a:in", "b:out"))
    assert done.index(".dmpart") < done.index("named")


@pytest.mark.parametrize("kind", [TransferKind.MOVE, TransferKind.COPY])
def test_two_names_of_one_directory_never_destroy_the_file(ends: Ends, kind: TransferKind) -> None:
    file = ends.folder("b") / "in"
    file.write_bytes(DATA)
    job = ends.job("b:in", "c:in", kind, overwrite=True)
    with pytest.raises(DestinationExists, match="the same file"):
        transfer.relay(job, probe(job), Control())  # on this host the probe sees it, else the partial file shows it
    for part in ends.folder("b").glob("*.dmpart"):
        part.unlink()
    assert [one.name for one in ends.folder("b").iterdir()] == ["in"]
    assert file.read_bytes() == DATA


def test_a_stop_ends_the_work_at_once(ends: Ends) -> None:
    (ends.folder("a") / "in").write_bytes(DATA)
    job, control = ends.job("a:in", "b:out"), Control()
    found = probe(job)
    control.stop(Cancelled("enough"))
    with pytest.raises(Cancelled):
        transfer.relay(job, found, control)
    transfer.discard(job, found)
    assert not parts(ends)


def test_what_earlier_attempts_left_goes(ends: Ends) -> None:
    (ends.folder("a") / "in").write_bytes(DATA)
    job = ends.job("a:in", "b:out")
    transfer.relay(job, probe(job), Control())
    assert len(parts(ends)) >= 1
    carry(replace(job, epoch=2))
    assert not parts(ends)


def test_move_by_rename(ends: Ends) -> None:
    source = ends.folder("a") / "in"
    source.write_bytes(DATA)
    job = ends.job("a:in", "a:deep/er/out", TransferKind.MOVE)
    found = probe(job)
    assert found.route is Route.RENAME
    intent = Intent(found.source_stat.size, None, found.source_stat.mtime)
    assert publishing.rename(job, found)
    assert not source.exists()
    assert Path(found.final).read_bytes() == DATA
    # after a crash: source gone and destination matching is done, not missing
    again = probe(replace(job, epoch=2, intent=intent))
    assert again.published == intent
    with pytest.raises(SourceMissing):
        probe(replace(job, epoch=2, intent=None))


def test_a_rename_does_not_replace(ends: Ends) -> None:
    source = ends.folder("a") / "in"
    source.write_bytes(DATA)
    job = ends.job("a:in", "a:out", TransferKind.MOVE)
    found = probe(job)
    Path(found.final).write_bytes(b"precious")
    with pytest.raises(DestinationExists):
        publishing.rename(job, found)
    assert source.read_bytes() == DATA
    assert Path(found.final).read_bytes() == b"precious"


def test_a_source_is_removed_only_if_it_is_what_was_read(ends: Ends) -> None:
    source = ends.folder("a") / "in"
    source.write_bytes(DATA)
    end, kept, stat, key = ends.end("a", "in"), ends.end("b", "out"), source.stat(), uuid4()
    source.write_bytes(DATA + b"more")
    (ends.folder("b") / "out").write_bytes(DATA + b"more")
    with pytest.raises(SourceNotRemoved):
        remove_source(end, Intent(len(DATA), None, int(stat.st_mtime)), kept, key)
    assert source.exists()
    with pytest.raises(SourceNotRemoved):
        remove_source(end, Intent(len(DATA) + 4, None, int(source.stat().st_mtime)), end, key)
    assert source.exists()
    remove_source(end, Intent(len(DATA) + 4, None, int(source.stat().st_mtime)), kept, key)
    assert not source.exists()
    remove_source(end, Intent(1, None, 1), kept, key)  # gone already: fine


def test_moving_through_a_link_takes_the_bytes_and_the_link(ends: Ends) -> None:
    target, link = ends.folder("a") / "target", ends.folder("a") / "link"
    target.write_bytes(DATA)
    link.symlink_to("target")
    job = ends.job("a:link", "a:sub/out", TransferKind.MOVE)
    found, _ = carry(job)
    assert found.route is not Route.RENAME
    remove_source(job.origin, found.intent(job, len(DATA)), job.target, job.transfer)
    assert Path(found.final).read_bytes() == DATA
    assert target.exists()
    assert not link.is_symlink()


@pytest.mark.parametrize("path", ["out/secret", "deep/out/secret", "loop/x", "dangling/x", "file-link"])
def test_links_that_lead_out_are_refused(ends: Ends, path: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    base = ends.folder("a")
    (base / "deep").mkdir()
    (base / "out").symlink_to(outside)
    (base / "deep/out").symlink_to("../../outside")
    (base / "dangling").symlink_to(tmp_path / "nowhere")
    (base / "loop").symlink_to("loop")
    (base / "file-link").symlink_to(outside / "secret")
    (ends.folder("b") / "in").write_bytes(b"x")
    with pytest.raises(DataManagerError) as refused:
        probe(ends.job(f"a:{path}", "b:copy"))
    assert isinstance(refused.value, DataManagerError if path == "loop/x" else PathNotAllowed)
    if path != "file-link":
        with pytest.raises(DataManagerError):
            probe(ends.job("b:in", f"a:{path}", overwrite=True))
    assert [file.name for file in outside.iterdir()] == ["secret"]
    assert not (tmp_path / "nowhere").exists()


def test_a_base_dir_that_is_a_link_is_fine(ends: Ends, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "in").write_bytes(DATA)
    (tmp_path / "linked").symlink_to(real)
    machine = ends.machines["a"].model_copy(update={"base_dir": str(tmp_path / "linked")})
    with closing(open_storage(machine, control_dir=tmp_path / "run")) as storage:
        end = Endpoint(Place.of(machine, "in"), machine, storage)
        found, _ = carry(replace(ends.job("a:x", "b:out"), source=end))
    assert Path(found.final).read_bytes() == DATA


def test_no_space_is_said_before_a_byte_moves(ends: Ends) -> None:
    sparse = ends.folder("a") / "huge"
    with sparse.open("wb") as file:
        file.truncate(2**43)
    with pytest.raises(NoSpace):
        probe(ends.job("a:huge", "b:out"))


def test_a_directory_is_no_source_and_no_destination(ends: Ends) -> None:
    (ends.folder("a") / "dir").mkdir()
    (ends.folder("b") / "in").write_bytes(b"x")
    with pytest.raises(SourceMissing, match="not a regular file"):
        probe(ends.job("a:dir", "b:out"))
    with pytest.raises(DestinationExists):
        probe(ends.job("b:in", "a:dir", overwrite=True))
    (ends.folder("a") / "file").write_bytes(b"x")
    with pytest.raises(DestinationExists):
        probe(ends.job("b:in", "a:file/below"))


def test_opposite_directions_at_once_do_not_wait_for_each_other(ends: Ends) -> None:
    from concurrent.futures import ThreadPoolExecutor

    for name in ("a", "b"):
        (ends.folder(name) / "in").write_bytes(DATA)
    jobs = [ends.job("a:in", f"b:out{n}") for n in range(8)] + [ends.job("b:in", f"a:out{n}") for n in range(8)]
    with ThreadPoolExecutor(16) as pool:
        done = list(pool.map(carry, jobs))
    digest = hashlib.sha256(DATA).digest()
    assert all(hashlib.sha256(Path(found.final).read_bytes()).digest() == digest for found, _ in done)


@pytest.mark.parametrize("kind", [TransferKind.MOVE, TransferKind.COPY])
def test_a_file_is_never_put_onto_itself_through_a_linked_directory(ends: Ends, kind: TransferKind) -> None:
    base = ends.folder("a")
    (base / "d").mkdir()
    (base / "d/z").write_bytes(DATA)
    (base / "l").symlink_to("d")
    for there, back in (("a:d/z", "a:l/z"), ("a:l/z", "a:d/z")):
        with pytest.raises(DestinationExists, match="the same file"):
            probe(ends.job(there, back, kind, overwrite=True))
    assert (base / "d/z").read_bytes() == DATA


def test_the_canonical_place_is_told(ends: Ends) -> None:
    base = ends.folder("a")
    (base / "d/e").mkdir(parents=True)
    (base / "l").symlink_to("d/e")
    (ends.folder("b") / "in").write_bytes(b"x")
    assert probe(ends.job("b:in", "a:l/new/out")).canonical == "d/e/new/out"
    assert probe(ends.job("b:in", "a:d/e/out")).canonical == "d/e/out"


@pytest.mark.parametrize(
    ("kind", "destination"),
    [(TransferKind.COPY, "b:new/out"), (TransferKind.COPY, "a:new/out"), (TransferKind.MOVE, "a:new/out")],
    ids=["relay", "copy within", "rename"],
)
@pytest.mark.parametrize("gone", ["source", "destination"])
def test_what_disappears_is_named(ends: Ends, kind: TransferKind, destination: str, gone: str) -> None:
    source = ends.folder("a") / "in"
    source.write_bytes(DATA)
    job = replace(ends.job("a:in", destination), kind=kind)
    found = probe(job)
    if gone == "source":
        source.unlink()
    else:
        Path(found.directory).rmdir()
    with pytest.raises(SourceMissing if gone == "source" else RemoteFailure) as caught:
        if found.route is Route.RENAME:
            publishing.rename(job, found)
        else:
            transfer.send(job, found, Control())
    assert (job.origin if gone == "source" else job.target).place.path in caught.value.detail
    assert caught.value.retryable == (gone == "destination")
