"""A move or a delete removes only what was proved: whatever is written at the last moment, or wherever it dies."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import orjson
import pytest

from datamanager.domain.location import aside_name, read_part
from datamanager.domain.states import Route, TransferKind
from datamanager.engine.attempt import Attempt, Intent, KnownFile, SourceMark
from datamanager.engine.bulk.bulk_removal import Removal, remove_sources
from datamanager.engine.control import Control
from datamanager.engine.single import publish as publishing
from datamanager.engine.single.probe import probe
from datamanager.engine.single.source_removal import remove_file, remove_source, surely_is
from datamanager.engine.single.transfer import send
from datamanager.engine.single.verify import verify
from datamanager.errors import DataManagerError, RemoteFailure, SourceChanged, SourceNotRemoved
from datamanager.machines import Machine, VerifyPolicy
from datamanager.transports.port import Session, Storage
from datamanager.transports.values import FileKind, FileStat
from tests.support.ends import Ends
from tests.support.sshd import PrivateSshd

FIRST, SECOND = b"the first version", b"the other version"
OLD = 1_500_000_000


@pytest.fixture(params=["local", "openssh"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    """Two machines of one kind."""
    folders = {name: tmp_path / name for name in ("a", "b")}
    for folder in folders.values():
        folder.mkdir()
    if request.param == "local":
        machines = {
            name: Machine.model_validate({"name": name, "transport": "local", "base_dir": str(folder)})
            for name, folder in folders.items()
        }
    else:
        servers: tuple[PrivateSshd, PrivateSshd] = request.getfixturevalue("sshd_pair")
        machines = {
            name: server.machine(name, str(folders[name])) for name, server in zip(folders, servers, strict=True)
        }
    both = Ends(machines, tmp_path / "run")
    yield both
    both.storages.close()


def files(ends: Ends, name: str = "a") -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in ends.folder(name).iterdir()}


def moved(job: Attempt) -> Intent:
    """Do a move up to the removal of its source; return the intent as a later attempt reads it."""
    found = probe(job)
    proof = verify(job, found, send(job, found, Control()), Control())
    intent = found.intent(job, proof.size, proof.sha256)
    publishing.publish(job, found, intent)
    return Intent(**orjson.loads(orjson.dumps(asdict(intent))))


def written_within_the_second(source: Path, data: bytes) -> None:
    """Write a source once more: same length, same second."""
    before = int(source.stat().st_mtime)
    source.write_bytes(data)
    os.utime(source, (before, before))


def replaced_with_both_kept(source: Path, data: bytes) -> None:
    """Replace a source by another file of the same length and time, as `cp -p` and `rsync -t` do."""
    beside, stat = source.with_name("beside"), source.stat()
    beside.write_bytes(data)
    os.utime(beside, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
    beside.rename(source)


CHANGES = [written_within_the_second, replaced_with_both_kept]
Change = Callable[[Path, bytes], None]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("policy", [VerifyPolicy.SHA256, VerifyPolicy.SIZE])
def test_remove_source_keeps_what_was_written_since(ends: Ends, change: Change, policy: VerifyPolicy) -> None:
    source = ends.folder("a") / "june.nc"
    source.write_bytes(FIRST)
    job = ends.job("a:june.nc", "b:june.nc", TransferKind.MOVE, verify=policy)
    intent = moved(job)
    change(source, SECOND)
    with pytest.raises(SourceNotRemoved):
        remove_source(job.origin, intent, job.target, job.transfer)
    assert (files(ends), files(ends, "b")) == ({"june.nc": SECOND}, {"june.nc": FIRST})


def test_remove_source_keeps_an_old_file_of_another_time(ends: Ends) -> None:
    source = ends.folder("a") / "june.nc"
    source.write_bytes(FIRST)
    os.utime(source, (OLD, OLD))
    job = ends.job("a:june.nc", "b:june.nc", TransferKind.MOVE)
    intent = moved(job)
    source.write_bytes(SECOND)
    os.utime(source, (OLD - 1, OLD - 1))
    with pytest.raises(SourceNotRemoved):
        remove_source(job.origin, intent, job.target, job.transfer)
    assert files(ends) == {"june.nc": SECOND}


@pytest.mark.parametrize("ends", ["local"], indirect=True)  # SFTP tells neither inode nor ctime, as the docs say
def test_remove_source_keeps_an_old_file_that_replaced_an_old_one(ends: Ends) -> None:
    source = ends.folder("a") / "june.nc"
    source.write_bytes(FIRST)
    os.utime(source, (OLD, OLD))
    job = ends.job("a:june.nc", "b:june.nc", TransferKind.MOVE)
    intent = moved(job)
    replaced_with_both_kept(source, SECOND)
    with pytest.raises(SourceNotRemoved):
        remove_source(job.origin, intent, job.target, job.transfer)
    assert files(ends) == {"june.nc": SECOND}


@pytest.mark.parametrize("policy", [VerifyPolicy.SHA256, VerifyPolicy.SIZE])
def test_remove_source_removes_what_was_read(ends: Ends, policy: VerifyPolicy) -> None:
    source = ends.folder("a") / "june.nc"
    source.write_bytes(FIRST)
    job = ends.job("a:june.nc", "b:june.nc", TransferKind.MOVE, verify=policy)
    remove_source(job.origin, moved(job), job.target, job.transfer)
    assert (files(ends), files(ends, "b")) == ({}, {"june.nc": FIRST})


def test_remove_source_knows_intents_of_earlier_versions(ends: Ends) -> None:
    source, other = ends.folder("a") / "june.nc", ends.folder("a") / "july.nc"
    for name in ("june.nc", "july.nc"):
        (ends.folder("a") / name).write_bytes(FIRST)
        job = ends.job(f"a:{name}", f"b:{name}", TransferKind.MOVE)
        intent = moved(job)
        old = {"size": intent.size, "sha256": intent.sha256, "mtime": intent.mtime}
        if name == "july.nc":
            written_within_the_second(other, SECOND)
            with pytest.raises(SourceNotRemoved):
                remove_source(job.origin, Intent(**old), job.target, job.transfer)  # type: ignore[arg-type]
        else:
            remove_source(job.origin, Intent(**old), job.target, job.transfer)  # type: ignore[arg-type]
    assert not source.exists()
    assert files(ends) == {"july.nc": SECOND}


@pytest.mark.parametrize("policy", [VerifyPolicy.SHA256, VerifyPolicy.SIZE])
@pytest.mark.parametrize("there", [FIRST, SECOND])
def test_remove_source_continues_where_an_attempt_died(ends: Ends, there: bytes, policy: VerifyPolicy) -> None:
    source = ends.folder("a") / "june.nc"
    source.write_bytes(FIRST)
    job = ends.job("a:june.nc", "b:june.nc", TransferKind.MOVE, verify=policy)
    intent = moved(job)
    if there is SECOND:
        written_within_the_second(source, SECOND)
    source.rename(source.with_name(aside_name("june.nc", job.transfer)))
    if there is FIRST:
        remove_source(job.origin, intent, job.target, job.transfer)
        assert files(ends) == {}
    else:
        with pytest.raises(SourceNotRemoved):
            remove_source(job.origin, intent, job.target, job.transfer)
        assert files(ends) == {"june.nc": SECOND}


def test_remove_source_says_where_a_file_is_whose_name_is_taken_again(ends: Ends) -> None:
    source = ends.folder("a") / "june.nc"
    source.write_bytes(FIRST)
    job = ends.job("a:june.nc", "b:june.nc", TransferKind.MOVE)
    intent, aside = moved(job), aside_name("june.nc", job.transfer)
    written_within_the_second(source, SECOND)
    source.rename(source.with_name(aside))
    source.write_bytes(b"a third one")
    with pytest.raises(SourceNotRemoved) as kept:
        remove_source(job.origin, intent, job.target, job.transfer)
    assert aside in kept.value.detail
    assert files(ends) == {"june.nc": b"a third one", aside: SECOND}


def test_remove_source_needs_the_copy_where_nothing_else_proves_it(ends: Ends) -> None:
    source = ends.folder("a") / "june.nc"
    source.write_bytes(FIRST)
    job = ends.job("a:june.nc", "b:june.nc", TransferKind.MOVE, verify=VerifyPolicy.SIZE)
    intent = moved(job)
    (ends.folder("b") / "june.nc").unlink()
    with pytest.raises(SourceNotRemoved, match="is missing"):
        remove_source(job.origin, intent, job.target, job.transfer)
    assert files(ends) == {"june.nc": FIRST}


@pytest.mark.parametrize("to", ["a:july.nc", "b:june.nc"])
def test_move_refuses_a_file_of_another_size_than_the_objects(ends: Ends, to: str) -> None:
    (ends.folder("a") / "june.nc").write_bytes(FIRST)
    job = ends.job("a:june.nc", to, TransferKind.MOVE, known=KnownFile(len(FIRST) + 1))
    with pytest.raises(SourceChanged):
        probe(job)
    assert files(ends) == {"june.nc": FIRST}


def test_move_refuses_a_file_of_another_checksum_than_the_objects(ends: Ends) -> None:
    (ends.folder("a") / "june.nc").write_bytes(SECOND)
    with pytest.raises(SourceChanged):
        moved(ends.job("a:june.nc", "b:june.nc", TransferKind.MOVE, known=known(FIRST)))
    assert files(ends) == {"june.nc": SECOND}


def test_surely_is_asks_for_a_change_before_the_reading() -> None:
    intent = Intent(1, None, 100, SourceMark(100, read=110.0, inode=7))
    sftp = FileStat(FileKind.FILE, 1, 100, 0o644)
    local = sftp._replace(identity=(1, 7), mtime_ns=100_000_000_000, ctime_ns=100_500_000_000)
    assert surely_is(sftp, intent)
    assert surely_is(local, intent)
    assert not surely_is(local._replace(ctime_ns=109_000_000_000), intent), "within the step of the clock"
    assert not surely_is(local._replace(identity=(1, 8)), intent), "another file"
    assert not surely_is(sftp._replace(mtime=109), intent)
    assert not surely_is(local, Intent(1, None, 100)), "nobody knows when it was read"


def test_aside_names_are_no_partial_files() -> None:
    name = aside_name("n" * 255, uuid4())
    assert (len(name), read_part(name)) == (255, None)


# --- many at once ---


def test_remove_sources_keeps_what_was_written_since(ends: Ends) -> None:
    names = ["same", "written", "left aside", "taken again", "gone", "longer", "old"]
    removals = dict[str, Removal]()
    read = time.time()
    for name in names:
        file = ends.folder("a") / name
        file.write_bytes(FIRST)
        if name == "old":
            os.utime(file, (OLD, OLD))
        stat = file.stat()
        mark = SourceMark(int(stat.st_mtime), read)
        intent = Intent(len(FIRST), hashlib.sha256(FIRST).hexdigest(), int(stat.st_mtime), mark)
        removals[name] = Removal(str(file), intent, "b:there", uuid4())
    folder = ends.folder("a")
    written_within_the_second(folder / "written", SECOND)
    for name in ("left aside", "taken again"):
        if name == "taken again":
            written_within_the_second(folder / name, SECOND)
        os.rename(folder / name, removals[name].aside)
    (folder / "taken again").write_bytes(b"a third one")
    (folder / "gone").unlink()
    (folder / "longer").write_bytes(FIRST + b"!")
    with ends.storages.get("a").session() as session:
        outcomes = dict(zip(names, remove_sources(session, list(removals.values())), strict=True))
    kept = {name for name, error in outcomes.items() if error is not None}
    assert kept == {"written", "taken again", "longer"}
    assert {type(outcomes[name]) for name in kept} == {SourceNotRemoved}
    again = Path(removals["taken again"].aside).name
    assert files(ends) == {
        "written": SECOND,
        "taken again": b"a third one",
        again: SECOND,
        "longer": FIRST + b"!",
    }
    error = outcomes["taken again"]
    assert isinstance(error, DataManagerError)
    assert again in error.detail


class CountedRounds:
    """A session's bulk work, which says what was asked for."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.bulk = self
        self.rounds = list[str]()
        self.in_one_turn = session.bulk.in_one_turn

    def __getattr__(self, name: str) -> Any:
        self.rounds.append(name)
        return getattr(self._session.bulk, name)


@pytest.mark.parametrize("count", [1, 60])
def test_remove_sources_needs_as_many_rounds_for_many_files_as_for_one(ends: Ends, count: int) -> None:
    removals = []
    for number in range(count):
        file = ends.folder("a") / f"{number}"
        file.write_bytes(FIRST)
        intent = Intent(len(FIRST), hashlib.sha256(FIRST).hexdigest(), int(file.stat().st_mtime))
        removals.append(Removal(str(file), intent, "b:there", uuid4()))
    with ends.storages.get("a").session() as session:
        counted = CountedRounds(session)
        assert set(remove_sources(cast("Session", counted), removals)) == {None}
    assert counted.rounds == ["lstat", "rename", "lstat", "digest", "remove", "rename", "real_path"]
    assert files(ends) == {}


# --- renames ---


class Racing:
    """A storage whose file `path` becomes another one right after somebody has looked at it."""

    def __init__(self, inner: Storage, path: Path) -> None:
        self._inner = inner
        self.path = path

    @contextmanager
    def session(self) -> Iterator[Racing]:
        """Acquire a session."""
        with self._inner.session() as self.real:
            yield self

    def stat(self, path: str) -> FileStat:
        """Look, and let the other program be quick."""
        found = self.real.stat(path)
        self.path.write_bytes(SECOND + b"!")
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@pytest.mark.parametrize("race", [False, True])
def test_rename_refuses_a_file_that_was_replaced(ends: Ends, race: bool) -> None:
    source = ends.folder("a") / "june.nc"
    source.write_bytes(FIRST)
    job = ends.job("a:june.nc", "a:july.nc", TransferKind.MOVE)
    found = probe(job)
    assert found.route is Route.RENAME
    if race:
        storage = cast("Storage", Racing(job.target.storage, source))
        job = replace(job, destination=replace(job.target, storage=storage))
    else:
        source.write_bytes(SECOND + b"!")
    with pytest.raises(SourceChanged):
        publishing.rename(job, found)
    assert files(ends) == {"june.nc": SECOND + b"!"}


# --- deletes ---


def known(data: bytes) -> KnownFile:
    return KnownFile(len(data), hashlib.sha256(data).hexdigest())


@pytest.mark.parametrize("change", [*CHANGES, lambda path, data: path.write_bytes(data + b"!")])
def test_remove_file_keeps_a_file_that_is_not_the_objects(ends: Ends, change: Change) -> None:
    file, end = ends.folder("a") / "june.nc", ends.end("a", "june.nc")
    file.write_bytes(FIRST)
    change(file, SECOND)
    there = file.read_bytes()
    for what in (known(FIRST), KnownFile(len(FIRST) + 5)):
        with pytest.raises(SourceChanged, match="force=true"):
            remove_file(end, what, uuid4())
        assert files(ends) == {"june.nc": there}
    assert remove_file(end, known(FIRST), uuid4(), force=True)
    assert files(ends) == {}


@pytest.mark.parametrize("what", [known(FIRST), KnownFile(len(FIRST)), KnownFile()])
def test_remove_file_removes_the_objects_file(ends: Ends, what: KnownFile) -> None:
    file, end, key = ends.folder("a") / "june.nc", ends.end("a", "june.nc"), uuid4()
    for aside in (False, True):
        file.write_bytes(FIRST)
        if aside:
            file.rename(file.with_name(aside_name(file.name, key)))
        assert remove_file(end, what, key)
        assert files(ends) == {}
    assert not remove_file(end, what, key)
    file.mkdir()
    with pytest.raises(RemoteFailure):
        remove_file(end, what, key, force=True)


def test_remove_file_compares_what_a_link_leads_to(ends: Ends) -> None:
    folder, end = ends.folder("a"), ends.end("a", "link")
    (folder / "june.nc").write_bytes(SECOND)
    (folder / "link").symlink_to("june.nc")
    with pytest.raises(SourceChanged):
        remove_file(end, known(FIRST), uuid4())
    assert remove_file(end, known(SECOND), uuid4())
    assert files(ends) == {"june.nc": SECOND}
    (folder / "link").symlink_to("nowhere")
    assert remove_file(end, known(FIRST), uuid4())
    assert not (folder / "link").is_symlink()


def test_remove_file_may_be_stopped_until_it_changes_something(ends: Ends) -> None:
    file, end = ends.folder("a") / "june.nc", ends.end("a", "june.nc")
    file.write_bytes(FIRST)
    calls = list[str]()
    assert remove_file(end, known(FIRST), uuid4(), lambda _: calls.append("hash"), partial(calls.append, "commit"))
    assert calls[0] == "hash"
    assert calls.count("commit") == 1
