"""Many small files at once, on every transport; the files are looked at from outside, too."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from datamanager.errors import (
    ConnectionLost,
    NoSpace,
    NotSupported,
    PathExists,
    PathMissing,
    RemoteFailure,
    TransportError,
)
from datamanager.machines import Machine
from datamanager.transports.bulk_port import MOST_IN_FLIGHT
from datamanager.transports.factory import open_storage
from datamanager.transports.port import Session, Storage
from datamanager.transports.sftp.pool import SftpStorage
from datamanager.transports.values import FileKind, KeptAttributes, NewFile
from tests.contract.conftest import ask_for_programs, commands, until, usable
from tests.contract.test_transport import NAMES
from tests.contract.test_transport_limits import small_file_system
from tests.support.process import open_files, signal_each
from tests.support.sshd import PrivateSshd

R = TypeVar("R")
Store = Callable[[list[NewFile], Path], None]

MOST = 600 * 1024
COUNT = 600
MTIME = 1_234_567_890


def mixed_files(folder: Path) -> list[NewFile]:
    """Describe 600 files of 0 to 600 KiB: empty ones, some around the size of a block, the most that is allowed."""
    rng = random.Random(7)
    sizes = [0, 1, 255 * 1024, 255 * 1024 + 1, 2 * 255 * 1024, MOST]
    sizes += [rng.randrange(0, 40_000) for _ in range(COUNT - len(sizes) - 20)]
    sizes += [rng.randrange(200_000, MOST) for _ in range(20)]
    modes = [0o600, 0o644, 0o755, 0o440, 0o4755]
    return [
        NewFile(f"{folder}/file-{number:03}", rng.randbytes(size), modes[number % len(modes)], MTIME + number)
        for number, size in enumerate(sizes)
    ]


def everything(results: Iterable[tuple[int, R]], count: int) -> list[R]:
    """Return the results in the order of what was asked; each came once."""
    found = list(results)
    assert sorted(index for index, _ in found) == list(range(count))
    return [result for _, result in sorted(found, key=lambda pair: pair[0])]


def wrong(results: Iterable[tuple[int, object]]) -> dict[int, type[object]]:
    """Return the kind of each error."""
    return {index: type(result) for index, result in results if isinstance(result, TransportError)}


def assert_made(files: Iterable[NewFile]) -> None:
    for file in files:
        found = os.lstat(file.path)
        assert Path(file.path).read_bytes() == file.data
        assert (found.st_mode & 0o7777, int(found.st_mtime)) == (file.mode & 0o777, file.mtime)


def sync(session: Session, directories: list[str]) -> None:
    with session.bulk.syncing() as synced:
        synced(directories)


@pytest.fixture(params=["write", "unpack"])
def store(request: pytest.FixtureRequest, machine: Machine, session: Session) -> Store:
    """Stores files in a folder, in either way that the transport has; this host's own are never unpacked."""

    def stored(files: list[NewFile], folder: Path) -> None:
        if request.param == "unpack" and machine.host is not None:
            session.bulk.unpack(files, str(folder))
            return
        if request.param == "unpack":
            with pytest.raises(NotSupported):
                session.bulk.unpack(files, str(folder))
        assert everything(session.bulk.write(files), len(files)) == [KeptAttributes(file.mtime) for file in files]

    return stored


def test_many_files_are_stored_exactly(session: Session, store: Store, tmp_path: Path) -> None:
    files = mixed_files(tmp_path)
    store(files, tmp_path)
    assert_made(files)
    assert len(os.listdir(tmp_path)) == COUNT


def test_names_are_only_names(session: Session, store: Store, tmp_path: Path) -> None:
    folders = [tmp_path / "sub" / os.fsdecode(raw) for raw in NAMES]
    for folder in folders:
        folder.mkdir(parents=True)
    files = [
        NewFile(f"{folder}/{os.fsdecode(raw)}", os.urandom(100 + number), 0o640, MTIME)
        for number, raw in enumerate(NAMES)
        for folder in (tmp_path, folders[number])
    ]
    store(files, tmp_path)
    assert_made(files)
    assert {os.fsencode(name) for name in os.listdir(tmp_path)} == {*NAMES, b"sub"}
    paths = [file.path for file in files]
    assert [
        found.data
        for found in everything(session.bulk.read(paths, MOST), len(paths))
        if not isinstance(found, TransportError)
    ] == [file.data for file in files]
    hashes = [hashlib.sha256(file.data).hexdigest() for file in files]
    assert everything(session.bulk.digest(paths, MOST), len(paths)) == hashes
    renamed = [(path, f"{path[: len(path) - 7]}renamed") for path in paths if len(os.path.basename(path)) > 7]
    assert not wrong(session.bulk.rename(renamed, overwrite=False))
    assert not wrong(session.bulk.lstat([new for _, new in renamed]))


def test_what_was_stored_is_read_and_hashed(session: Session, tmp_path: Path) -> None:
    files = mixed_files(tmp_path)
    for file in files:
        Path(file.path).write_bytes(file.data)
        os.chmod(file.path, file.mode)
        os.utime(file.path, (file.mtime, file.mtime))
    paths = [file.path for file in files]
    for file, found in zip(files, everything(session.bulk.read(paths, MOST), COUNT), strict=True):
        assert not isinstance(found, TransportError)
        assert found.data == file.data
        assert (found.stat.kind, found.stat.size) == (FileKind.FILE, len(file.data))
        assert (found.stat.mode, found.stat.mtime) == (file.mode, file.mtime)
    looked = everything(session.bulk.lstat(paths), COUNT)
    assert [found.size for found in looked if not isinstance(found, TransportError)] == [
        len(file.data) for file in files
    ]
    hashes = [hashlib.sha256(file.data).hexdigest() for file in files]
    assert everything(session.bulk.digest(paths, MOST), COUNT) == hashes


def test_nothing_to_do(session: Session, tmp_path: Path) -> None:
    many = session.bulk
    assert list(many.write([])) == list(many.read([], MOST)) == list(many.digest([], MOST)) == []
    assert list(many.lstat([])) == list(many.remove([])) == list(many.rename([], overwrite=True)) == []
    assert os.listdir(tmp_path) == []


def test_a_name_that_is_taken_is_left_and_the_others_are_written(session: Session, tmp_path: Path) -> None:
    files = mixed_files(tmp_path)
    Path(files[100].path).write_text("mine")
    Path(files[101].path).symlink_to("nowhere")
    Path(files[102].path).mkdir()
    assert wrong(session.bulk.write(files)) == dict.fromkeys((100, 101, 102), PathExists)
    assert Path(files[100].path).read_text() == "mine"
    assert Path(files[101].path).is_symlink()
    assert not (tmp_path / "nowhere").exists()
    assert_made(files[:100] + files[103:])


def test_unpacking_does_not_replace(session: Session, machine: Machine, tmp_path: Path) -> None:
    files = mixed_files(tmp_path)
    Path(files[100].path).write_text("mine")
    with pytest.raises(NotSupported):
        session.bulk.unpack(files, str(tmp_path))
    assert Path(files[100].path).read_text() == "mine"


def test_a_missing_directory_fails_its_files_only(session: Session, tmp_path: Path) -> None:
    files = mixed_files(tmp_path)
    for number in (0, 70, 299):
        files[number] = NewFile(f"{tmp_path}/no/{number}", files[number].data, 0o600, MTIME)
    assert wrong(session.bulk.write(files)) == dict.fromkeys((0, 70, 299), PathMissing)
    assert_made(file for number, file in enumerate(files) if number not in (0, 70, 299))
    assert len(os.listdir(tmp_path)) == COUNT - 3


def test_what_is_no_small_file_is_not_read(session: Session, tmp_path: Path) -> None:
    names = [f"{tmp_path}/{name}" for name in ("small", "large", "link", "fifo", "folder", "nothing", "small")]
    Path(names[0]).write_bytes(bytes(1000))
    Path(names[1]).write_bytes(bytes(1001))
    os.symlink("small", names[2])
    os.mkfifo(names[3])
    os.mkdir(names[4])
    refused = {1: RemoteFailure, 2: RemoteFailure, 3: RemoteFailure, 4: RemoteFailure, 5: PathMissing}
    assert wrong(session.bulk.read(names, 1000)) == refused
    assert wrong(session.bulk.lstat(names)) == {5: PathMissing}
    assert wrong(session.bulk.digest([*names[:1], *names[2:]], 1000)) == {
        1: RemoteFailure,
        2: RemoteFailure,
        3: RemoteFailure,
        4: PathMissing,
    }


@pytest.mark.parametrize("overwrite", [True, False])
def test_some_renames_fail(session: Session, tmp_path: Path, overwrite: bool) -> None:
    pairs = [(f"{tmp_path}/old-{number}", f"{tmp_path}/new-{number}") for number in range(COUNT)]
    for number, (old, _) in enumerate(pairs):
        Path(old).write_text(str(number))
    Path(pairs[5][0]).unlink()
    Path(pairs[150][1]).write_text("mine")
    Path(pairs[151][1]).mkdir()
    expected: dict[int, type[TransportError]] = {5: PathMissing, 151: RemoteFailure if overwrite else PathExists}
    if not overwrite:
        expected[150] = PathExists
    assert wrong(session.bulk.rename(pairs, overwrite=overwrite)) == expected
    assert Path(pairs[150][1]).read_text() == ("150" if overwrite else "mine")
    for number, (old, new) in enumerate(pairs):
        assert os.path.exists(old) == (number in expected and number != 5)
        if number not in (5, 150, 151):
            assert Path(new).read_text() == str(number)


def test_some_removals_fail(session: Session, tmp_path: Path) -> None:
    paths = [f"{tmp_path}/{number}" for number in range(COUNT)]
    for path in paths[:-1]:
        Path(path).touch()
    Path(paths[3]).unlink()
    Path(paths[3]).mkdir()
    failed = wrong(session.bulk.remove(paths))
    assert set(failed) == {3, COUNT - 1}
    assert failed[COUNT - 1] is PathMissing
    assert os.listdir(tmp_path) == ["3"]


def test_a_full_file_system_fails_what_did_not_fit(session: Session, tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", size=8 * 1024 * 1024) as small:
        files = [NewFile(f"{small}/{number}", os.urandom(100_000), 0o600, MTIME) for number in range(200)]
        failed = wrong(session.bulk.write(files))
        assert set(failed.values()) == {NoSpace}
        assert_made(file for number, file in enumerate(files) if number not in failed)
        assert len(os.listdir(small)) == len(files) - len(failed)
        with pytest.raises(NotSupported):
            session.bulk.unpack(files[:100], str(small))


def test_an_iteration_that_is_left_early_leaves_a_session_that_works(session: Session, tmp_path: Path) -> None:
    files = mixed_files(tmp_path)
    paths = [file.path for file in files]
    for begun in (session.bulk.write(files), session.bulk.read(paths, MOST), session.bulk.lstat(paths)):
        next(begun)
        begun.close()
        assert session.stat(str(tmp_path)).kind is FileKind.DIRECTORY
    assert len(os.listdir(tmp_path)) <= 2 * MOST_IN_FLIGHT
    assert all(found is None for _, found in session.bulk.remove([entry.path for entry in os.scandir(tmp_path)]))
    assert_made_again = everything(session.bulk.write(files), COUNT)
    assert assert_made_again == [KeptAttributes(file.mtime) for file in files]


def test_a_source_that_fails_passes_through(session: Session, machine: Machine, tmp_path: Path) -> None:
    def failing() -> Iterator[NewFile]:
        yield from mixed_files(tmp_path)[:100]
        raise KeyError

    with pytest.raises(KeyError):
        list(session.bulk.write(failing()))
    for entry in os.scandir(tmp_path):
        os.unlink(entry.path)
    if machine.host is not None:
        session.bulk.unpack([], str(tmp_path))
        with pytest.raises(KeyError):
            session.bulk.unpack(failing(), str(tmp_path))
        made = sorted(os.listdir(tmp_path))
        sync(session, [str(tmp_path)])
        assert sorted(os.listdir(tmp_path)) == made  # the program had ended
    assert session.stat(str(tmp_path)).kind is FileKind.DIRECTORY


def test_memory_does_not_hold_what_is_to_come(session: Session, tmp_path: Path) -> None:
    asked = 0

    def files() -> Iterator[NewFile]:
        nonlocal asked
        for file in mixed_files(tmp_path):
            asked += 1
            yield file

    for done, _ in enumerate(session.bulk.write(files())):
        assert asked <= done + 1 + MOST_IN_FLIGHT


def test_sync(session: Session, tmp_path: Path) -> None:
    folders = [tmp_path / os.fsdecode(raw) for raw in NAMES]
    for folder in folders:
        folder.mkdir()
    sync(session, list(map(str, folders)))
    with pytest.raises(NotSupported):
        sync(session, [str(tmp_path / "nothing")])


@pytest.fixture(params=["openssh", "paramiko"])
def remote(request: pytest.FixtureRequest, tmp_path: Path, control_dir: Path) -> Iterator[tuple[PrivateSshd, Storage]]:
    """A server of the test's own, to be ill-treated, and its storage."""
    with PrivateSshd(tmp_path / "sshd") as server:
        assert until(lambda: not server.children())
        (tmp_path / "files").mkdir()
        storage = open_storage(server.machine("remote", tmp_path, connection=request.param), control_dir=control_dir)
        yield server, storage
        storage.close()


@pytest.mark.faults
@pytest.mark.parametrize("doing", ["write", "read", "unpack"])
def test_a_connection_that_breaks_ends_all(remote: tuple[PrivateSshd, Storage], tmp_path: Path, doing: str) -> None:
    server, storage = remote
    folder = tmp_path / "files"
    files = mixed_files(folder)
    if doing == "read":
        for file in files:
            Path(file.path).write_bytes(file.data)

    def killing() -> Iterator[NewFile]:
        for number, file in enumerate(files):
            if number == 150:
                kill(server)
            yield file

    with pytest.raises(ConnectionLost), storage.session() as session:
        match doing:
            case "write":
                list(session.bulk.write(killing()))
            case "unpack":
                session.bulk.unpack(killing(), str(folder))
            case "read":
                for done, _ in enumerate(session.bulk.read([file.path for file in files], MOST)):
                    if done == 50:
                        kill(server)
    assert isinstance(storage, SftpStorage)
    assert until(lambda: not usable(storage))  # a program's end may be known before the connection's
    with storage.session() as session:
        if doing == "read":
            assert not wrong(session.bulk.read([file.path for file in files], MOST))
        else:
            left = [entry.path for entry in os.scandir(folder)]
            assert not wrong(session.bulk.remove(left))
            assert not wrong(session.bulk.write(files))
    assert_made([] if doing == "read" else files)


def test_nothing_leaks(remote: tuple[PrivateSshd, Storage], tmp_path: Path) -> None:
    server, storage = remote
    folder = tmp_path / "files"
    assert isinstance(storage, SftpStorage)
    with storage.session() as session:
        ask_for_programs(session, tmp_path)
        for turn in range(3):
            names = [f"{folder}/{turn}-{number}" for number in range(3 * MOST_IN_FLIGHT)]
            for begun in (
                session.bulk.write([NewFile(name, b"x" * 100, 0o600, MTIME) for name in names]),
                session.bulk.read(names, MOST),
            ):
                for _ in range(MOST_IN_FLIGHT // 2):  # then those after them are being opened
                    next(begun)
                begun.close()
            session.stat(str(folder))
            assert not open_below(server, folder)
        session.bulk.unpack([NewFile(f"{folder}/packed", b"x", 0o600, MTIME)], str(folder))
        sync(session, [str(folder)])
        assert not open_below(server, folder)
        assert until(lambda: not commands("tar --extract", server.descendants()))
    assert (storage.in_use, storage.idle) == (0, 1)
    storage.close()
    assert until(lambda: not server.descendants())


@pytest.mark.parametrize("connection", ["openssh", "paramiko"])
def test_without_a_shell(tmp_path: Path, control_dir: Path, connection: str) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    files = mixed_files(folder)[:50]
    with PrivateSshd(tmp_path / "sshd", extra=["ForceCommand internal-sftp"]) as server:
        storage = open_storage(server.machine("remote", tmp_path, connection=connection), control_dir=control_dir)
        with storage.session() as session:
            with pytest.raises(NotSupported):
                session.bulk.unpack(files, str(folder))
            assert os.listdir(folder) == []
            assert not wrong(session.bulk.write(files))
            hashes = [hashlib.sha256(file.data).hexdigest() for file in files]
            assert everything(session.bulk.digest([file.path for file in files], MOST), 50) == hashes
            with pytest.raises(NotSupported):
                sync(session, [str(folder)])
        storage.close()


def kill(server: PrivateSshd) -> None:
    signal_each(server.descendants(), signal.SIGKILL)


def open_below(server: PrivateSshd, folder: Path) -> list[str]:
    """Return which of the folder's files the server's processes have open."""
    return [name for pid in server.descendants() for name in open_files(pid) if name.startswith(str(folder))]


def test_links_are_resolved_as_one_by_one(session: Session, tmp_path: Path) -> None:
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "nowhere").symlink_to("missing")
    (tmp_path / "file").touch()
    names = ["real/below", "link/below", "link", "file", ".", "nowhere", "missing", "missing/below", "file/below"]
    found = everything(session.bulk.real_path([f"{tmp_path}/{name}" for name in names]), len(names))
    real = os.path.realpath(tmp_path)
    assert found[:5] == [f"{real}/real/below", f"{real}/real/below", f"{real}/real", f"{real}/file", real]
    assert [type(one) for one in found[5:7]] == [PathMissing] * 2
    for name, one in zip(names, found, strict=True):
        if isinstance(one, TransportError):
            with pytest.raises(type(one)):
                session.real_path(f"{tmp_path}/{name}")
        else:
            assert session.real_path(f"{tmp_path}/{name}") == one


def test_directories_are_made_and_found_made(session: Session, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "linked").symlink_to("there")
    (tmp_path / "file").touch()
    (tmp_path / "nowhere").symlink_to("missing")
    names = [os.fsdecode(raw) for raw in NAMES] + ["there", "linked", "file", "nowhere", "missing/below"]
    found = everything(session.bulk.make_dir([f"{tmp_path}/{name}" for name in names]), len(names))
    assert found[:-3] == [None] * (len(names) - 3)
    assert [type(one) for one in found[-3:]] == [PathExists, PathExists, PathMissing]
    assert all((tmp_path / name).is_dir() for name in names[:-3])
