"""The program for many small files: what the contract says of them, done by it, and what it does that SFTP can't."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.errors import ConnectionLost, PathExists, PathMissing, PathReplaced, RemoteFailure
from datamanager.machines import Machine
from datamanager.transports.factory import open_storage
from datamanager.transports.local.storage import LocalStorage
from datamanager.transports.port import Session, Storage
from datamanager.transports.remote.running import MANY_AT_ONCE
from datamanager.transports.sftp.pool import SftpStorage
from datamanager.transports.values import FileStat, KeptAttributes, NewFile, SmallFile
from tests.contract.conftest import commands, until, usable
from tests.contract.test_many import (  # noqa: F401 - the contract's own, over the session below
    MTIME,
    assert_made,
    everything,
    kill,
    mixed_files,
    test_a_full_file_system_fails_what_did_not_fit,
    test_a_missing_directory_fails_its_files_only,
    test_a_name_that_is_taken_is_left_and_the_others_are_written,
    test_an_iteration_that_is_left_early_leaves_a_session_that_works,
    test_nothing_to_do,
    test_some_removals_fail,
    test_some_renames_fail,
    test_sync,
    test_what_is_no_small_file_is_not_read,
    test_what_was_stored_is_read_and_hashed,
    wrong,
)
from tests.contract.test_transport import NAMES
from tests.support.process import command_line, descendants_of, signal_each
from tests.support.sshd import PrivateSshd

PROGRAM = "dm-many"


@pytest.fixture(params=["local", "openssh", "paramiko"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    if request.param == "local":
        return Machine.model_validate({"name": "here", "transport": "local", "base_dir": str(tmp_path)})
    server: PrivateSshd = request.getfixturevalue("server")
    return server.machine("remote", tmp_path, connection=request.param)


@pytest.fixture
def storage(machine: Machine, control_dir: Path) -> Iterator[Storage]:
    """A storage of the test's own: a session that has begun stays so."""
    opened = open_storage(machine, control_dir=control_dir)
    yield opened
    opened.close()


@pytest.fixture
def session(storage: Storage) -> Iterator[Session]:
    with storage.session() as acquired:
        assert acquired.begin_many()
        assert acquired.begin_many()
        yield acquired


def empty(folder: Path) -> None:
    """Remove all files of a folder."""
    for file in folder.iterdir():
        file.unlink()


def test_names_are_only_names(session: Session, tmp_path: Path) -> None:
    folders = [tmp_path / "sub" / os.fsdecode(raw) for raw in NAMES]
    for folder in folders:
        folder.mkdir(parents=True)
    files = [
        NewFile(f"{folder}/{os.fsdecode(raw)}", os.urandom(100 + number), 0o640, MTIME)
        for number, raw in enumerate(NAMES)
        for folder in (tmp_path, folders[number])
    ]
    assert not wrong(session.bulk.write(files))
    assert_made(files)
    paths = [file.path for file in files]
    read = everything(session.bulk.read(paths, 10_000), len(paths))
    assert [getattr(found, "data", found) for found in read] == [file.data for file in files]
    assert not wrong(
        session.bulk.rename([(path, f"{tmp_path}/{at}") for at, path in enumerate(paths)], overwrite=False)
    )
    assert {*os.listdir(tmp_path)} == {"sub", *map(str, range(len(paths)))}


def test_a_name_is_never_taken_by_a_race(session: Session, tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).write_text(name)
    pair = [(f"{tmp_path}/old", f"{tmp_path}/new")]
    assert wrong(session.bulk.rename(pair, overwrite=False)) == {0: PathExists}
    assert (tmp_path / "new").read_text() == "new"
    assert (tmp_path / "old").stat().st_nlink == 1


def test_a_directory_that_was_exchanged_for_a_link_is_not_entered(
    session: Session, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inside, outside = tmp_path / "base" / "run", tmp_path / "outside"
    for folder in (inside, outside / "deep"):
        folder.mkdir(parents=True)
    (outside / "deep" / "file").write_text("theirs")
    (inside / "deep").symlink_to(outside / "deep")
    run, bulk = f"{inside}/deep", session.bulk
    results = [
        *bulk.lstat([f"{run}/file"]),
        *bulk.read([f"{run}/file"], 1000),
        *bulk.digest([f"{run}/file"], 1000),
        *bulk.write([NewFile(f"{run}/new", b"ours", 0o600, MTIME)]),
        *bulk.rename([(f"{run}/file", f"{inside}/taken")], overwrite=True),
        *bulk.rename([(f"{run}/file", f"{inside}/taken")], overwrite=False),
        *bulk.remove([f"{run}/file"]),
    ]
    assert [type(found) for _, found in results] == [PathReplaced] * 7
    assert [path.read_text() for path in (outside / "deep").iterdir()] == ["theirs"]
    assert sum(record.getMessage().startswith("path_replaced: ") for record in caplog.records) == 7


def test_what_the_files_raise_passes_through(session: Session, tmp_path: Path) -> None:
    def failing() -> Iterator[NewFile]:
        yield from mixed_files(tmp_path)[:100]
        raise KeyError

    with pytest.raises(KeyError):
        list(session.bulk.write(failing()))
    empty(tmp_path)
    files = mixed_files(tmp_path)[:50]
    assert not wrong(session.bulk.write(files))
    assert_made(files)


@pytest.mark.faults
def test_a_connection_that_breaks_ends_all(alone: PrivateSshd, tmp_path: Path, control_dir: Path) -> None:
    storage = open_storage(alone.machine("remote", tmp_path), control_dir=control_dir)
    assert isinstance(storage, SftpStorage)
    (folder := tmp_path / "files").mkdir()
    files = mixed_files(folder)

    def killing() -> Iterator[NewFile]:
        for number, file in enumerate(files):
            if number == 150:
                kill(alone)
            yield file

    with pytest.raises((ConnectionLost, RemoteFailure)) as caught, storage.session() as session:
        assert session.begin_many()
        list(session.bulk.write(killing()))
    assert caught.value.retryable
    assert until(lambda: not usable(storage))
    empty(folder)
    with storage.session() as session:
        assert session.begin_many()
        assert not wrong(session.bulk.write(files))
    assert_made(files)
    storage.close()
    assert until(lambda: not alone.descendants())
    assert not commands(PROGRAM, descendants_of(os.getpid()))


def of_this_host() -> list[str]:
    """Return the command lines of the programs that run here for this test."""
    return [line for line in commands(PROGRAM, descendants_of(os.getpid())) if "ssh" not in line.split()[0]]


def test_a_program_of_this_host_that_was_killed_is_replaced(tmp_path: Path) -> None:
    storage = LocalStorage(Machine.model_validate({"name": "here", "transport": "local", "base_dir": str(tmp_path)}))
    (folder := tmp_path / "files").mkdir()
    files = mixed_files(folder)

    def killing() -> Iterator[NewFile]:
        for number, file in enumerate(files):
            if number == 150:
                signal_each(
                    [pid for pid in descendants_of(os.getpid()) if PROGRAM in command_line(pid)], signal.SIGKILL
                )
            yield file

    with pytest.raises(RemoteFailure) as caught, storage.session() as session:
        assert session.begin_many()
        list(session.bulk.write(killing()))
    assert caught.value.retryable
    assert until(lambda: not of_this_host())
    empty(folder)
    with storage.session() as session:
        assert session.begin_many()
        assert not wrong(session.bulk.write(files))
    assert_made(files)
    storage.close()
    assert until(lambda: not of_this_host())


def test_a_program_of_this_host_tells_of_files_what_system_calls_tell(tmp_path: Path) -> None:
    storage = LocalStorage(Machine.model_validate({"name": "here", "transport": "local", "base_dir": str(tmp_path)}))
    times = {"old": -(10**9) - 1, "new": 2**33 * 10**9 + 7, "usual": MTIME * 10**9}
    for name, time in times.items():
        (tmp_path / name).write_text(name)
        os.utime(tmp_path / name, ns=(time, time))
    paths = [f"{tmp_path}/{name}" for name in times]
    with storage.session() as session:
        before = list(session.bulk.lstat(paths))
        assert session.begin_many()
        assert list(session.bulk.lstat(paths)) == before
        assert [read.stat for _, read in session.bulk.read(paths, 10) if isinstance(read, SmallFile)] == [
            stat for _, stat in before
        ]
        survey = session.bulk.in_one_turn
        assert survey is not None
        told = survey.survey(str(tmp_path), {"": list(times)}, make=False).directories[""].entries
        assert list(told.values()) == [stat for _, stat in before]
        for name, time in times.items():
            [(_, kept)] = session.bulk.write([NewFile(f"{tmp_path}/{name}.copy", b"x", 0o600, time // 10**9)])
            assert kept == KeptAttributes(time // 10**9)
            assert (tmp_path / f"{name}.copy").stat().st_mtime == time // 10**9
    storage.close()


def test_a_program_of_this_host_is_kept_for_the_next_use_for_a_while(tmp_path: Path) -> None:
    machine = Machine.model_validate({"name": "here", "transport": "local", "base_dir": str(tmp_path)})
    storage = LocalStorage(machine, idle_seconds=0.3)
    storage.expect(many=True)
    assert until(lambda: storage.idle == 1)
    for _ in range(2):
        with storage.session() as session:
            assert session.begin_many()
        assert storage.idle == 1
    assert until(lambda: storage.idle == 0 and not of_this_host())
    with storage.session() as session:
        assert session.begin_many()
        storage.close()
    assert storage.idle == 0
    assert until(lambda: not of_this_host())


def test_few_programs_run_at_once_on_a_machine(alone: PrivateSshd, tmp_path: Path, control_dir: Path) -> None:
    storage = open_storage(alone.machine("remote", tmp_path), control_dir=control_dir)
    with storage.extra_sessions(MANY_AT_ONCE + 1) as sessions:
        assert len(sessions) == MANY_AT_ONCE + 1
        assert [one.begin_many() for one in sessions] == [True] * MANY_AT_ONCE + [False]
        files = [NewFile(f"{tmp_path}/{number}", b"x", 0o600, MTIME) for number in range(3)]
        assert not wrong(sessions[-1].bulk.write(files))  # over SFTP
    storage.close()
    assert until(lambda: not alone.descendants())


@pytest.mark.parametrize("lacks", ["shell", "python3"])
def test_a_machine_that_has_no_program_works_over_sftp(tmp_path: Path, control_dir: Path, lacks: str) -> None:
    (tools := tmp_path / "tools").mkdir()
    for name in ("sh", "printf", "xargs", "sha256sum"):
        (tools / name).symlink_to(f"/usr/bin/{name}")
    (folder := tmp_path / "files").mkdir()
    files = mixed_files(folder)[:20]
    extra = ["ForceCommand internal-sftp"] if lacks == "shell" else []
    with PrivateSshd(tmp_path / "sshd", extra=extra, path=os.fspath(tools)) as server:
        storage = open_storage(server.machine("remote", tmp_path), control_dir=control_dir)
        with storage.session() as session:
            assert not session.begin_many()
            assert not wrong(session.bulk.write(files))
            assert_made(files)
        storage.close()


@pytest.mark.parametrize("make", [True, False])
def test_a_survey_makes_nothing_beyond_the_base_directory(session: Session, tmp_path: Path, *, make: bool) -> None:
    base, outside = tmp_path / "base", tmp_path / "outside"
    for folder in (base / "real", outside):
        folder.mkdir(parents=True)
    (base / "real" / "there").write_text("four")
    (base / "file").touch()
    for name, target in {"link": Path("real"), "out": outside, "dangling": Path("nowhere")}.items():
        (base / name).symlink_to(target)
    (tmp_path / "linked").symlink_to(base)
    names = {place: ["there", "gone"] for place in ("link", "link/new/deep", "out/new", "dangling/new", "file/new", "")}
    assert session.bulk.in_one_turn is not None
    found = session.bulk.in_one_turn.survey(f"{tmp_path}/linked", names, make=make)
    told = found.directories
    assert found.base == str(base)
    assert {place: (one.existing, one.missing) for place, one in told.items() if not one.outside} == {
        "link": (f"{base}/real", ""),
        "link/new/deep": (f"{base}/real", "new/deep"),
        "dangling/new": (str(base), "dangling/new"),
        "file/new": (f"{base}/file", "new"),
        "": (str(base), ""),
    }
    assert [place for place, one in told.items() if one.outside] == ["out/new"]
    assert [place for place, one in told.items() if one.dangling] == ["dangling/new"]
    assert [place for place, one in told.items() if isinstance(one.error, PathExists)] == (["file/new"] if make else [])
    assert [type(one) for one in told["link"].entries.values()] == [FileStat, PathMissing]
    assert [type(one) for one in told["link/new/deep"].entries.values()] == [PathMissing] * 2
    assert (base / "real" / "new" / "deep").is_dir() is make
    assert sorted(os.listdir(tmp_path)) == ["base", "linked", "outside"]
    assert os.listdir(outside) == []
    with pytest.raises(PathMissing):
        session.bulk.in_one_turn.survey(f"{tmp_path}/nothing", names, make=make)
