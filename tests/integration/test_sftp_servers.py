"""SFTP servers that are not OpenSSH: an extension's name is no proof of its meaning, and what need not work is not
required. rclone's server (Go's pkg/sftp) is one; what it does not show, OpenSSH's does behind a filter.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from datamanager.domain.location import Place
from datamanager.domain.states import TransferKind
from datamanager.engine.attempt import Attempt, Intent
from datamanager.engine.bulk import bulk_publish, bulk_staging
from datamanager.engine.bulk.bulk_chunk import BulkEndpoints, BulkRules, SmallItem, Staged
from datamanager.engine.control import Control
from datamanager.engine.single import endpoints, restart, staged_file, transfer
from datamanager.engine.single.probe import probe
from datamanager.errors import DestinationExists, NoSpace, PathExists, PathMissing, RemoteFailure
from datamanager.machines import Machine, VerifyPolicy
from datamanager.transports.port import Session
from tests.contract.test_transport_limits import small_file_system
from tests.support.ends import Ends
from tests.support.filtered_sshd import FilteredSshd
from tests.support.rclone import RcloneSftp

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("sftp servers")]
MTIME = 1_500_000_000
MODE_OF_PARTS = 0o600
REPLACING = ("rename=replaces",)
NO_LINKS = (*REPLACING, "hardlink@openssh.com=8")
RULES = {"links": REPLACING, "looks": NO_LINKS, "refuses": ()}
"""Servers behind a filter, by how they rename."""


@dataclass
class Target:
    """A server `b` and its folder; machine `a` is this host."""

    ends: Ends
    folder: Path

    def source(self, name: str, data: bytes) -> Path:
        """Write a file to be copied."""
        file = self.ends.folder("a") / name
        file.write_bytes(data)
        file.chmod(0o640)
        os.utime(file, (MTIME, MTIME))
        return file

    def job(self, name: str, **rules: object) -> Attempt:
        """Describe the copy of a file to the server."""
        return self.ends.job(f"a:{name}", f"b:{name}", TransferKind.COPY, **rules)

    def names(self) -> list[str]:
        """Return what is on the server, also hidden."""
        return sorted(one.name for one in self.folder.rglob("*") if one.is_file())

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Acquire a session."""
        with self.ends.storages.get("b").session() as session:
            yield session


@contextmanager
def on(machine: Machine, folder: Path, home: Path) -> Iterator[Target]:
    """Have a machine on the server as `b`."""
    (home / "a").mkdir()
    here = Machine.model_validate({"name": "a", "transport": "local", "base_dir": str(home / "a")})
    ends = Ends({"a": here, "b": machine}, home / "run")
    yield Target(ends, folder)
    ends.storages.close()


@contextmanager
def filtered(home: Path, *rules: str, shell: bool = True) -> Iterator[Target]:
    """Run OpenSSH's server behind a filter."""
    folder = home / "b"
    folder.mkdir()
    with (
        FilteredSshd(home / "sshd", rules, shell=shell) as server,
        on(server.machine("b", folder), folder, home) as target,
    ):
        yield target


@contextmanager
def rclone(home: Path) -> Iterator[Target]:
    """Run rclone's server."""
    with RcloneSftp(home / "rclone") as server, on(server.machine("b"), server.root, home) as target:
        yield target


@pytest.fixture(params=["rclone", "links", "looks", "refuses"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    """Servers that rename in different ways."""
    made = rclone(tmp_path) if request.param == "rclone" else filtered(tmp_path, *RULES[request.param])
    with made as running:
        yield running


@pytest.fixture(params=["alone", "together"])
def together(request: pytest.FixtureRequest) -> bool:
    """Whether files go by the one-file engine or by that of batches."""
    return bool(request.param == "together")


class Copy:
    """A copy of one file in two halves: staged, then published."""

    def __init__(self, target: Target, name: str, *, together: bool, overwrite: bool = False, **rules: object) -> None:
        self.target, self.together, self.overwrite = target, together, overwrite
        self.job = target.job(name, overwrite=overwrite, **rules)
        if not together:
            self.ready = staged_file.stage(self.job, Control())
            self.intent = self.ready.intent
            return
        ends, storages = target.ends, target.ends.storages
        item = SmallItem(0, Place.of(ends.machines["a"], name), Place.of(ends.machines["b"], name))
        terms = BulkRules(
            self.job.transfer, self.job.epoch, self.job.verify, overwrite, ours=dict(self._known(self.job.intent))
        )
        with storages.get("a").session() as source, target.session() as sink:
            both = BulkEndpoints(source, sink, ends.machines["a"], ends.machines["b"])
            [one] = bulk_staging.stage(both, [item], terms, Control())
        assert isinstance(one, Staged), one
        self.small, self.intent = one, one.intent

    def publish(self) -> None:
        """Give it its name."""
        if not self.together:
            staged_file.publish(self.ready, Control())
            return
        with self.target.session() as sink:
            [error] = bulk_publish.publish(sink, [self.small], overwrite=self.overwrite)
            if error is not None:
                bulk_publish.discard(sink, [self.small])
                raise error

    @staticmethod
    def _known(intent: Intent | None) -> Iterator[tuple[int, Intent]]:
        if intent is not None:
            yield 0, intent


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_file_that_appears_during_a_copy_is_left(target: Target, together: bool) -> None:
    target.source("june.nc", b"ours")
    copy = Copy(target, "june.nc", together=together)
    (target.folder / "june.nc").write_bytes(b"somebody else's")
    with pytest.raises(DestinationExists):
        copy.publish()
    assert (target.folder / "june.nc").read_bytes() == b"somebody else's"
    assert target.names() == ["june.nc"]


def test_a_free_name_is_given_and_a_taken_one_replaced_where_that_is_wanted(target: Target, together: bool) -> None:
    target.source("june.nc", b"first")
    Copy(target, "june.nc", together=together).publish()
    target.source("june.nc", b"second")
    Copy(target, "june.nc", together=together, overwrite=True).publish()
    assert (target.folder / "june.nc").read_bytes() == b"second"
    assert target.names() == ["june.nc"]


def test_rename_refuses_a_taken_name_and_leaves_both(target: Target) -> None:
    (target.folder / "one").write_bytes(b"1")
    (target.folder / "two").write_bytes(b"2")
    with target.session() as session:
        base = target.ends.machines["b"].base_dir.rstrip("/")
        with pytest.raises(PathExists):
            session.rename(f"{base}/one", f"{base}/two", overwrite=False)
        with pytest.raises(PathMissing):
            session.rename(f"{base}/none", f"{base}/three", overwrite=False)
    assert [(name, (target.folder / name).read_bytes()) for name in target.names()] == [("one", b"1"), ("two", b"2")]


@pytest.mark.parametrize(
    ("rules", "said"),
    [(REPLACING, "names are given by hard links"), (NO_LINKS, "is overwritten"), ((), "")],
    ids=["links", "looks", "refuses"],
)
def test_how_a_server_renames_is_found_out_and_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rules: tuple[str, ...], said: str
) -> None:
    caplog.set_level(logging.WARNING)
    with filtered(tmp_path, *rules) as target:
        storage, base = target.ends.storages.get("b"), target.ends.machines["b"].base_dir
        with storage.session_pair() as sessions:
            for number, session in enumerate([*sessions, *sessions]):
                (target.folder / "file").write_bytes(b"")
                session.rename(f"{base}/file", f"{base}/file-{number}", overwrite=False)
        assert target.names() == [f"file-{number}" for number in range(4)]
    told = [one.getMessage() for one in caplog.records if "RENAME" in one.getMessage()]
    assert len(told) == bool(said)
    assert all(said in one for one in told)


def test_a_full_disk_is_not_taken_for_a_server_that_replaces(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_file_system(tmp_path / "b", size=1 << 20):
        folder = tmp_path / "b"
        with FilteredSshd(tmp_path / "sshd", ()) as server, on(server.machine("b", folder), folder, tmp_path) as target:
            (folder / "one").write_bytes(b"1")
            (folder / "taken").write_bytes(b"2")
            with contextlib.suppress(OSError), (folder / "filler").open("wb", buffering=0) as filler:
                while True:
                    filler.write(bytes(1 << 12))
            with target.session() as session:
                with pytest.raises(PathExists):
                    session.rename(f"{folder}/one", f"{folder}/taken", overwrite=False)
                session.rename(f"{folder}/one", f"{folder}/two", overwrite=False)
            assert target.names() == ["filler", "taken", "two"]
    assert "RENAME" not in caplog.text


def test_a_link_made_before_a_crash_is_recognised(tmp_path: Path, together: bool) -> None:
    with filtered(tmp_path, *REPLACING) as target:
        target.source("june.nc", b"ours")
        copy = Copy(target, "june.nc", together=together, verify=VerifyPolicy.SIZE)
        [part] = target.folder.glob(".*.dmpart")
        (target.folder / "june.nc").hardlink_to(part)
        again = Copy(target, "june.nc", together=together, **later(copy))
        again.publish()
        assert target.names() == ["june.nc"]


def test_a_posix_rename_that_is_only_announced_is_done_without(tmp_path: Path, together: bool) -> None:
    with filtered(tmp_path, *REPLACING, "posix-rename@openssh.com=8") as target:
        target.source("june.nc", b"new")
        (target.folder / "june.nc").write_bytes(b"old")
        copy = Copy(target, "june.nc", together=together, overwrite=True)
        copy.publish()
        assert (target.folder / "june.nc").read_bytes() == b"new"


def test_what_can_not_be_replaced_is_left(tmp_path: Path) -> None:
    with filtered(tmp_path, "posix-rename@openssh.com=8") as target:
        target.source("june.nc", b"new")
        (target.folder / "june.nc").write_bytes(b"old")
        copy = Copy(target, "june.nc", together=False, overwrite=True)
        with pytest.raises(RemoteFailure, match="can't replace"):
            copy.publish()
        assert (target.folder / "june.nc").read_bytes() == b"old"


# --- what need not work -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "lost"),
    [
        (("setstat=3", "fsetstat=3", "statvfs@openssh.com=zeroes"), {"mode", "mtime"}),
        (("setstat=4", "statvfs@openssh.com=8", "fsync@openssh.com=3"), {"mode", "mtime", "fsync"}),
        (("setstat=0", "limits@openssh.com=zeroes"), {"mode", "mtime"}),
        (("fsync@openssh.com=8", "statvfs@openssh.com=4"), {"fsync"}),
    ],
    ids=["denied", "failed", "ignored", "no fsync"],
)
def test_the_bytes_arrive_and_what_could_not_be_kept_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, rules: tuple[str, ...], lost: set[str]
) -> None:
    caplog.set_level(logging.WARNING)
    with filtered(tmp_path, *rules) as target:
        for name, together in (("a", False), ("b", True), ("c", False), ("d", True)):
            data = os.urandom(300_000)
            target.source(name, data)
            copy = Copy(target, name, together=together)
            copy.publish()
            file = target.folder / name
            assert file.read_bytes() == data
            # where a shell is, a program there syncs what goes together
            assert set(copy.intent.not_kept) == (lost - {"fsync"} if together else lost)
            assert copy.intent.mtime == int(file.stat().st_mtime)
            assert ("mtime" in lost) is not (file.stat().st_mtime == MTIME)
            assert (file.stat().st_mode & 0o777) == (MODE_OF_PARTS if "mode" in lost else 0o640)
    told = [one.getMessage() for one in caplog.records if one.name.endswith("server_behaviour")]
    assert len(told) == len(set(told)) >= len(lost)


def test_a_machine_without_shell_and_fsync_tells_it_of_what_goes_together(tmp_path: Path) -> None:
    with filtered(tmp_path, "fsync@openssh.com=8", shell=False) as target:
        target.source("june.nc", b"ours")
        copy = Copy(target, "june.nc", together=True)
        copy.publish()
        assert copy.intent.not_kept == ("fsync",)
        assert (target.folder / "june.nc").read_bytes() == b"ours"


def test_rclone_keeps_times_but_no_modes(tmp_path: Path, together: bool) -> None:
    with rclone(tmp_path) as target:
        target.source("june.nc", b"ours")
        copy = Copy(target, "june.nc", together=together)
        copy.publish()
        assert set(copy.intent.not_kept) == {"mode", "fsync"}
        assert int((target.folder / "june.nc").stat().st_mtime) == MTIME


@pytest.mark.parametrize(
    "rules", [("setstat=3", "fsetstat=3"), ("setstat=0", "fsetstat=0")], ids=["refused", "ignored"]
)
def test_a_file_without_its_time_is_recognised_after_a_crash(
    tmp_path: Path, together: bool, rules: tuple[str, ...]
) -> None:
    with filtered(tmp_path, *rules) as target:
        target.source("june.nc", b"ours")
        copy = Copy(target, "june.nc", together=together, verify=VerifyPolicy.SIZE)
        copy.publish()
        inode = (target.folder / "june.nc").stat().st_ino
        again = Copy(target, "june.nc", together=together, **later(copy))
        again.publish()
        assert (target.folder / "june.nc").stat().st_ino == inode
        assert set(again.intent.not_kept) == {"mode", "mtime"}
        (target.folder / "june.nc").write_bytes(b"them")
        os.utime(target.folder / "june.nc", (MTIME, MTIME))  # the source's time is not that of our file there
        with pytest.raises((DestinationExists, AssertionError), match="unregistered file exists"):
            Copy(target, "june.nc", together=together, **later(copy))


def test_a_partial_file_that_can_not_be_written_on_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(restart, "BLOCK", 1 << 16)
    monkeypatch.setattr(restart, "WINDOW", 1 << 17)
    with rclone(tmp_path) as target:
        data = os.urandom(1_000_000)
        target.source("june.nc", data)
        job = target.job("june.nc")
        found = probe(job)
        (target.folder / job.part_name).write_bytes(data[:700_000])
        again = replace(job, epoch=2, restart=restart.marker_of(found))
        transfer.relay(again, probe(again), Control())
        assert "can't be written on" in caplog.text
        assert (target.folder / again.part_name).read_bytes() == data
        assert target.names() == [again.part_name]


def test_a_server_that_does_not_write_a_file_over_several_connections(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endpoints, "LONG_PATH", 1e-9)
    monkeypatch.setattr(endpoints, "WANTED_RATE", 1e12)
    monkeypatch.setattr(endpoints, "LARGE", 1 << 20)
    with rclone(tmp_path) as target:
        data = os.urandom(9_000_000)
        target.source("june.nc", data)
        Copy(target, "june.nc", together=False).publish()
        assert "is written over one connection" in caplog.text
        assert (target.folder / "june.nc").read_bytes() == data
        assert target.names() == ["june.nc"]


def test_a_failed_fsync_is_an_error(tmp_path: Path) -> None:
    """A disk's error has the code of many things; it must not pass for a server without fsync."""
    with filtered(tmp_path, "fsync@openssh.com=4") as target:
        target.source("june.nc", b"ours")
        with pytest.raises(RemoteFailure):
            Copy(target, "june.nc", together=False)
        assert target.names() == []


def test_a_copy_data_that_is_only_announced_is_done_without(tmp_path: Path) -> None:
    for status in (3, 8):
        home = tmp_path / str(status)
        home.mkdir()
        with filtered(home, f"copy-data={status}") as target, target.session() as session:
            base = target.ends.machines["b"].base_dir
            (target.folder / "file").write_bytes(b"bytes")
            session.programs.copy(f"{base}/file", f"{base}/copy")
            assert (target.folder / "copy").read_bytes() == b"bytes"


def test_a_full_disk_is_told_where_free_space_is_known(tmp_path: Path) -> None:
    with small_file_system(tmp_path / "b", size=1 << 20):
        folder = tmp_path / "b"
        with FilteredSshd(tmp_path / "sshd", ()) as server, on(server.machine("b", folder), folder, tmp_path) as target:
            target.source("june.nc", bytes(3 << 20))
            with pytest.raises(NoSpace):
                Copy(target, "june.nc", together=False)


def later(copy: Copy) -> dict[str, Any]:
    """Return what the attempt after a crash knows of this copy; its intent comes back from a note, which is JSON."""
    intent = Intent(**json.loads(json.dumps(asdict(copy.intent))))
    return {"transfer": copy.job.transfer, "epoch": 2, "verify": copy.job.verify, "intent": intent}
