"""A directory below base_dir is exchanged with a link that leads out, between the look at a path and its use.

On this host nothing outside is read, written or removed. Over SSH that can't be prevented, but what happened is told.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self
from uuid import uuid4

import pytest
from paramiko import sftp

from datamanager.domain.location import PART_SUFFIX
from datamanager.domain.states import Route, TransferKind
from datamanager.engine.attempt import Attempt, Intent, KnownFile, SourceMark
from datamanager.engine.bulk.bulk_chunk import Staged
from datamanager.engine.bulk.bulk_publish import publish as publish_small
from datamanager.engine.bulk.bulk_removal import Removal
from datamanager.engine.bulk.bulk_removal import remove_sources as remove_small
from datamanager.engine.control import Control
from datamanager.engine.path_confinement import moved_away
from datamanager.engine.single import publish as publishing
from datamanager.engine.single import transfer
from datamanager.engine.single.probe import probe
from datamanager.engine.single.same_file import is_one_name
from datamanager.engine.single.source_removal import machine_time, remove_file, remove_source
from datamanager.engine.single.verify import verify
from datamanager.errors import DataManagerError, PathReplaced
from datamanager.machines import Machine
from datamanager.transports.local.beneath import Beneath
from datamanager.transports.local.processes import LocalProcesses
from datamanager.transports.local.storage import LocalSession
from datamanager.transports.port import Session
from datamanager.transports.remote.running import InstalledPrograms
from datamanager.transports.sftp import looks
from datamanager.transports.sftp.session import SftpSession
from datamanager.transports.sftp.wire import NO_ATTRIBUTES, u32
from datamanager.transports.values import NewFile
from tests.support.ends import Ends
from tests.support.folding_sftp import FoldingSftp
from tests.support.process import open_files
from tests.support.sshd import PrivateSshd

TRIES = 60
PUBLIC, SECRET = b"public".ljust(5000), b"SECRET".ljust(5000)
MTIME = 1_600_000_000
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2

EXCHANGER = f"""
import ctypes, os, random, sys, time
sys.stdout.write("!"), sys.stdout.flush()
libc, one, other = ctypes.CDLL(None), os.fsencode(sys.argv[1]), os.fsencode(sys.argv[2])
while True:
    for _ in range(random.choice((1, 2, 3, 50))):
        if libc.renameat2(-100, one, -100, other, {_EXCHANGE}):
            os._exit(1)
    time.sleep(random.choice((0, 0.0003, 0.002)))
"""


@dataclass
class Site:
    """Machine `a`, where `run` is a directory and `way` a link that leads to `outside`, and machine `b`."""

    ends: Ends
    inside: Path
    outside: Path
    local: bool

    @property
    def way(self) -> Path:
        return self.ends.folder("a") / "way"

    @property
    def run(self) -> Path:
        return self.ends.folder("a") / "run"

    def exchange(self) -> None:
        """Exchange the directory and the link."""
        found = ctypes.CDLL(None, use_errno=True).renameat2(
            -100, os.fsencode(self.run), -100, os.fsencode(self.way), _EXCHANGE
        )
        assert found == 0, os.strerror(ctypes.get_errno())

    def restore(self) -> None:
        """Let `run` be the directory, with its file, and the file outside be as it was."""
        if self.run.is_symlink():
            self.exchange()
        for folder, content in ((self.run, PUBLIC), (self.outside, SECRET)):
            for file in folder.iterdir():
                file.unlink()
            (folder / "in.nc").write_bytes(content)
            os.utime(folder / "in.nc", (MTIME, MTIME))
        # what an owner is to an attacker who has another login
        (self.outside / "in.nc").chmod(0o640)

    def untouched(self) -> bool:
        """Say whether outside is what `restore` made."""
        return {file.name: file.read_bytes() for file in self.outside.iterdir()} == {"in.nc": SECRET}

    def attacked(self) -> Attacker:
        """Have the directory and the link exchanged again and again meanwhile."""
        return Attacker([sys.executable, "-c", EXCHANGER, os.fspath(self.run), os.fspath(self.way)])


class Attacker:
    """A process that stands still outside of `at_work`."""

    def __init__(self, argv: list[str]) -> None:
        self._process = subprocess.Popen(argv, stdout=subprocess.PIPE)

    def __enter__(self) -> Self:
        assert self._process.stdout is not None
        assert self._process.stdout.read(1) == b"!"
        self._stop()
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        self._process.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            self._stop()

    def _stop(self) -> None:
        self._process.send_signal(signal.SIGSTOP)
        _, status = os.waitpid(self._process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status), "the exchange failed"


@pytest.fixture(params=["local", "sftp"])
def site(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Site]:
    folders = {name: tmp_path / name for name in ("a", "b")}
    for folder in (*folders.values(), folders["a"] / "run", tmp_path / "outside"):
        folder.mkdir()
    (folders["a"] / "way").symlink_to(tmp_path / "outside")
    if request.param == "local":
        machines = {
            name: Machine.model_validate({"name": name, "transport": "local", "base_dir": str(folder)})
            for name, folder in folders.items()
        }
    else:
        servers: tuple[PrivateSshd, PrivateSshd] = request.getfixturevalue("sshd_pair")
        machines = {name: servers[0].machine(name, folder, connection="paramiko") for name, folder in folders.items()}
    ends = Ends(machines, tmp_path / "control")
    with closing(ends.storages):
        made = Site(ends, folders["a"] / "run", tmp_path / "outside", request.param == "local")
        made.restore()
        yield made


def carry(job: Attempt) -> None:
    """Do what the flow does, step by step."""
    control, found = Control(), probe(job)
    if found.route is Route.RENAME:
        assert publishing.rename(job, found)
        return
    try:
        proof = verify(job, found, transfer.send(job, found, control), control)
        intent = found.intent(job, proof.size, proof.sha256)
        publishing.publish(job, found, intent)
    except DataManagerError:
        with suppress(DataManagerError):
            transfer.discard(job, found)
        raise
    if job.kind is TransferKind.MOVE:
        remove_source(job.origin, intent, job.target, uuid4())


def copy_read(site: Site, number: int) -> None:
    carry(site.ends.job("a:run/in.nc", f"b:{number}"))


def copy_read_within(site: Site, number: int) -> None:
    carry(site.ends.job("a:run/in.nc", f"a:{number}"))


def copy_write(site: Site, number: int) -> None:
    (site.ends.folder("b") / "in").write_bytes(PUBLIC)
    carry(site.ends.job("b:in", f"a:run/{number}"))


def move(site: Site, number: int) -> None:
    carry(site.ends.job("a:run/in.nc", f"b:{number}", TransferKind.MOVE))


def move_within(site: Site, number: int) -> None:
    carry(site.ends.job("a:run/in.nc", f"a:{number}", TransferKind.MOVE))


def delete(site: Site, number: int) -> None:
    remove_file(site.ends.end("a", "run/in.nc"), KnownFile(), uuid4())


def delete_known(site: Site, number: int) -> None:
    known = KnownFile(len(PUBLIC), hashlib.sha256(PUBLIC).hexdigest())
    remove_file(site.ends.end("a", "run/in.nc"), known, uuid4())


@pytest.mark.parametrize("act", [copy_read, copy_read_within, copy_write, move, move_within, delete, delete_known])
def test_nothing_happens_outside_untold(
    site: Site, act: Callable[[Site, int], None], caplog: pytest.LogCaptureFixture
) -> None:
    untold, happened, open_before = list[str](), 0, Counter(open_files())
    tries = TRIES if act not in (copy_read_within, move_within) else TRIES // 2
    with site.attacked() as attacker:
        for number in range(tries):
            site.restore()
            caplog.clear()
            said = ""
            with attacker.at_work():
                try:
                    act(site, number)
                except DataManagerError as error:
                    said = repr(error)
            copies = [site.ends.folder(name) / str(number) for name in ("a", "b")]
            leaked = any(file.is_file() and file.read_bytes() != PUBLIC for file in copies)
            if leaked or not site.untouched():
                happened += 1
                if not any(record.getMessage().startswith("path_replaced: ") for record in caplog.records):
                    untold.append(f"{number}: {sorted(os.listdir(site.outside))} {leaked=} {said}")
    assert untold == []
    if site.local:
        assert happened == 0
        assert not Counter(open_files()) - open_before


def read(session: Session, path: str) -> bytes:
    with session.open_read(path) as reader:
        return b"".join(bytes(block) for block in reader.blocks())


def write(session: Session, path: str, *, new: bool) -> None:
    with session.create(path) if new else session.reopen(path) as writer:
        writer.write(0, b"ours")


VERBS: dict[str, Callable[[Session, str, str], object]] = {  # session, the directory that is exchanged, the one above
    "read": lambda session, run, _: read(session, f"{run}/in.nc"),
    "create": lambda session, run, _: write(session, f"{run}/new", new=True),
    "reopen": lambda session, run, _: write(session, f"{run}/in.nc", new=False),
    "rename from": lambda session, run, base: session.rename(f"{run}/in.nc", f"{base}/taken", overwrite=False),
    "rename to": lambda session, run, base: session.rename(f"{base}/own", f"{run}/new", overwrite=False),
    "replace": lambda session, run, base: session.rename(f"{base}/own", f"{run}/in.nc", overwrite=True),
    "remove": lambda session, run, _: session.remove(f"{run}/in.nc"),
    "attributes": lambda session, run, _: session.set_attributes(f"{run}/in.nc", mode=0o777, mtime=1),
    "list": lambda session, run, _: list(session.list_dir(run)),
    "copy from": lambda session, run, base: session.programs.copy(f"{run}/in.nc", f"{base}/taken"),
    "copy to": lambda session, run, base: session.programs.copy(f"{base}/own", f"{run}/new"),
    "digest": lambda session, run, _: session.programs.digest(f"{run}/in.nc"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_notices_an_exchange_after_the_check(site: Site, verb: str, caplog: pytest.LogCaptureFixture) -> None:
    base = os.fspath(site.ends.folder("a"))
    Path(base, "own").write_bytes(PUBLIC)
    before = (site.outside / "in.nc").stat()
    with site.ends.storages.get("a").session() as session:
        find_out_how_names_are_given(session, site)
        run = session.real_path(os.fspath(site.run))  # the check
        site.exchange()
        with pytest.raises(PathReplaced):
            VERBS[verb](session, run, base)
        site.exchange()
        assert read(session, f"{run}/in.nc") == PUBLIC
    assert [record.getMessage().partition(":")[0] for record in caplog.records].count("path_replaced") == 1
    if site.local:
        after = (site.outside / "in.nc").stat()
        assert site.untouched()
        assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
        assert sorted(os.listdir(base)) == ["own", "run", "way"]


def find_out_how_names_are_given(session: Session, site: Site) -> None:
    """Rename a file elsewhere: what a server does is tried before its first rename."""
    base = os.fspath(site.ends.folder("a"))
    Path(base, "before").write_bytes(PUBLIC)
    session.rename(f"{base}/before", f"{base}/after", overwrite=False)
    session.remove(f"{base}/after")


def small(site: Site) -> Staged:
    """Return a small file that is to be published, and whose source is to be removed, in the exchanged directory."""
    return small_at(os.fspath(site.run))


def small_at(run: str) -> Staged:
    size = len(SECRET)
    intent = Intent(size, None, MTIME)
    return Staged(0, f"{run}/in.nc", f"{run}/new", f"{run}/.new.part", "run/new", size, 0o600, None, intent)


def test_many_small_files_are_not_published_outside_untold(site: Site) -> None:
    (site.outside / ".new.part").write_bytes(b"as an attacker makes it")
    with site.ends.storages.get("a").session() as session:
        find_out_how_names_are_given(session, site)
        site.exchange()
        [error] = publish_small(session, [small(site)], overwrite=False)
    assert isinstance(error, PathReplaced)
    assert (site.outside / "new").exists() is not site.local


def test_many_small_files_are_not_removed_outside_untold(site: Site) -> None:
    with site.ends.storages.get("a").session() as session:
        find_out_how_names_are_given(session, site)
        site.exchange()
        intent = replace(small(site).intent, source=SourceMark(MTIME, time.time() + 60))
        [error] = remove_small(session, [Removal(small(site).source_path, intent, "b:new", uuid4())])
    assert isinstance(error, PathReplaced)
    assert (site.outside / "in.nc").exists() is site.local


def test_a_trial_of_names_in_an_exchanged_directory_is_told_and_leaves_nothing(site: Site) -> None:
    site.exchange()
    with site.ends.storages.get("a").session() as session:
        [error] = publish_small(session, [small(site)], overwrite=False)
    assert isinstance(error, PathReplaced)
    assert site.untouched()


class ToAndFro(FoldingSftp):
    """A server whose directories are exchanged to and fro so that looks are deceived: a temporary file is `outside` the
    first `times` that its name is used, and in its directory from then on.
    """

    def __init__(self, directory: Path, times: int) -> None:
        super().__init__(directory, folds=True)
        self.outside = directory / "outside"
        self.outside.mkdir()
        self._times = times
        self._used = Counter[str]()

    def real(self, path: str) -> str:
        if path.endswith(PART_SUFFIX):
            self._used[path] += 1
            if self._used[path] <= self._times:
                return os.fspath(self.outside / path.replace("/", "_"))
        return super().real(path)


def work_with_own_file(act: str, session: Session) -> None:
    """Do what makes a file, and removes, renames or changes it later."""
    part = f"/run/.new{PART_SUFFIX}"
    match act:
        case "trial of names":
            session.rename("/run/in.nc", "/run/new", overwrite=False)
        case "clock":
            machine_time(session, "/run")
        case "mark of a name":
            is_one_name((session, "/run/IN.nc"), (session, "/run/in.nc"))
        case "mark of a directory":
            is_one_name((session, "/run/in.nc"), (session, "/run2/in.nc"))
        case "small file":
            [(_, kept)] = session.bulk.write([NewFile(part, b"ours", 0o600, MTIME)])
            if isinstance(kept, DataManagerError):
                raise kept
        case _:
            write(session, part, new=True)
            [error] = publish_small(session, [small_at("/run")._replace(part=part)], overwrite=True)
            if error is not None:
                raise error


@pytest.mark.parametrize(
    ("act", "times"),
    [
        ("trial of names", 2),
        ("clock", 2),
        ("mark of a name", 2),
        ("mark of a directory", 2),  # its attributes can't be set
        ("mark of a directory", 3),  # it can't be read
        ("mark of a directory", 5),  # it can't be removed
        ("small file", 2),
        ("small partial file", 2),
    ],
)
def test_a_file_of_ours_that_is_gone_later_is_told(
    act: str, times: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ToAndFro(tmp_path, times) as server:
        for name in ("run", "run2"):
            (server.root / name).mkdir()
        (server.root / "run" / "in.nc").write_bytes(PUBLIC)
        ends = Ends({"a": server.machine("a")}, tmp_path / "control")
        with closing(ends.storages), ends.storages.get("a").session() as session, pytest.raises(PathReplaced):
            work_with_own_file(act, session)
        assert list(server.outside.iterdir())
        assert any(record.getMessage().startswith("path_replaced: ") for record in caplog.records)
        assert {file.name for file in (server.root / "run").iterdir()} == {"in.nc"}


@pytest.mark.attack(cwe=367, title="A directory is exchanged for a link between the check and the use")
def test_each_bulk_verb_refuses_a_link_on_this_host(site: Site) -> None:
    site.exchange()
    run, moved = os.fspath(site.run), os.fspath(site.ends.folder("a") / "moved")
    with site.ends.storages.get("a").session() as session:
        if site.local:
            bulk = session.bulk
            results = [
                *bulk.lstat([f"{run}/in.nc"]),
                *bulk.make_dir([f"{run}/new"]),
                *bulk.read([f"{run}/in.nc"], 10_000),
                *bulk.write([NewFile(f"{run}/new", b"ours", 0o600, 0)]),
                *bulk.digest([f"{run}/in.nc"], 10_000),
                *bulk.rename([(f"{run}/in.nc", moved)], overwrite=True),
                *bulk.rename([(f"{run}/in.nc", moved)], overwrite=False),
                *bulk.remove([f"{run}/in.nc"]),
            ]
            assert [type(found) for _, found in results] == [PathReplaced] * 8
            assert site.untouched()
        # over SFTP one look per directory, behind the acts
        assert [type(error) for error in moved_away(session, [run, run]).values()] == [PathReplaced]


@pytest.mark.parametrize("site", ["sftp"], indirect=True)
def test_a_directory_that_was_exchanged_back_in_time_is_noticed(site: Site) -> None:
    base, run = os.fspath(site.ends.folder("a")), os.fspath(site.run)
    with site.ends.storages.get("a").session() as session:
        assert isinstance(session, SftpSession)
        before = looks.begin_look(session._wire, f"{run}/in.nc")
        session.stat(base)  # until it was answered
        site.exchange()
        assert list(session.bulk.rename([(f"{run}/in.nc", f"{base}/taken")], overwrite=False)) == [(0, None)]
        site.exchange()
        with pytest.raises(PathReplaced, match="is still there"):
            looks.look_at_rename(session._wire, before, f"{run}/in.nc", f"{base}/taken")
        site.restore()
        Path(base, "taken").unlink()
        # a server that renames by link and unlink may do each of them in another directory
        before = looks.begin_look(session._wire, f"{run}/in.nc")
        session.stat(base)
        os.link(site.outside / "in.nc", Path(base, "taken"))
        Path(run, "in.nc").unlink()
        with pytest.raises(PathReplaced, match="another file"):
            looks.look_at_rename(session._wire, before, f"{run}/in.nc", f"{base}/taken")
        site.restore()
        site.exchange()
        handle = session._handle(sftp.CMD_OPEN, f"{run}/in.nc", u32(sftp.SFTP_FLAG_READ), NO_ATTRIBUTES)
        site.exchange()
        with pytest.raises(PathReplaced, match="not the one"):
            looks.same_file(session._wire, handle, f"{run}/in.nc")


def test_a_base_directory_may_be_a_link_and_become_another_one(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    base = tmp_path / "base"
    base.symlink_to("one")
    session = LocalSession(Beneath(os.fspath(base)), LocalProcesses(60.0), InstalledPrograms())
    assert read(session, session.real_path(f"{base}/file")) == read(session, f"{base}/file") == b"one"
    base.unlink()
    base.symlink_to("two")
    assert read(session, session.real_path(f"{base}/file")) == read(session, f"{base}/file") == b"two"
    with pytest.raises(PathReplaced):
        read(session, f"{base}/../one/file")
    with pytest.raises(PathReplaced):
        read(session, os.fspath(tmp_path / "one" / "file"))
