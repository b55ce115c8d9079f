"""The hash of a file beside its being written, on every transport: right or none, and nothing is left behind."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from pathlib import Path

import pytest

from datamanager.errors import ConnectionLost, NotSupported
from datamanager.machines import Machine
from datamanager.transports.port import Session
from datamanager.transports.values import no_progress
from tests.contract.conftest import ask_for_programs, commands, kill_sessions, opened, until
from tests.contract.test_transport import BLOCK, NAMES
from tests.support.process import signal_each
from tests.support.sshd import PrivateSshd

STEP = 32 * 1024 * 1024


def at_work(file: Path) -> bool:
    """Say whether the program runs on the machine: our own ssh has its words, too, but begins otherwise."""
    return any(line.startswith("sh -c ") for line in commands(str(file)))


def write_followed(session: Session, path: str, data: bytes, *, told: int = 0) -> str:
    """Write the data while it is followed, and return the hash; `told` is how much more is told of than there is."""
    with session.create(path) as writer, session.programs.follow(path) as follower:
        for offset in range(0, len(data), 1_000_003):
            writer.write(offset, data[offset : offset + 1_000_003])
            unsettled = writer.unsettled
            follower.advance(min(offset + 1_000_003, len(data)) if unsettled is None else unsettled)
        writer.settle()
        follower.advance(len(data) + told)
        return follower.result(no_progress)


@pytest.mark.parametrize("size", [0, 1, 3 * BLOCK + 1, 20 * 1024 * 1024 + 7, 3 * STEP + 5])
def test_the_hash_of_what_was_written(session: Session, tmp_path: Path, size: int) -> None:
    data, file = os.urandom(size), tmp_path / "file"
    assert write_followed(session, str(file), data) == hashlib.sha256(data).hexdigest()
    assert file.read_bytes() == data


@pytest.mark.parametrize("raw", NAMES)
def test_a_followed_name_is_only_a_name(session: Session, tmp_path: Path, raw: bytes) -> None:
    data = os.urandom(1000)
    path = os.path.join(str(tmp_path), os.fsdecode(raw))
    assert write_followed(session, path, data) == hashlib.sha256(data).hexdigest()
    assert os.listdir(os.fsencode(tmp_path)) == [raw]


def test_the_hash_is_of_the_storage_and_of_what_was_told_only(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"a" * 100 + b"b" * 100)
    with session.programs.follow(str(file)) as follower:
        follower.advance(100)
        assert follower.result(no_progress) == hashlib.sha256(b"a" * 100).hexdigest()


@pytest.mark.parametrize("size", [0, 1000, STEP])
def test_a_file_shorter_than_told_has_no_hash(session: Session, tmp_path: Path, size: int) -> None:
    with pytest.raises(NotSupported):
        write_followed(session, str(tmp_path / "file"), bytes(size), told=1)
    with pytest.raises(NotSupported):
        write_followed(session, str(tmp_path / "another"), bytes(size), told=2 * STEP)


def test_a_file_that_is_not_there_has_no_hash(session: Session, tmp_path: Path) -> None:
    with session.programs.follow(str(tmp_path / "nothing")) as follower:
        follower.advance(0)
        with pytest.raises(NotSupported):
            follower.result(no_progress)
    assert session.stat(str(tmp_path)).mtime


def test_what_progress_raises_ends_the_waiting(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "huge"
    with file.open("wb") as out:
        out.truncate(2**40)

    def stop(count: int) -> None:
        assert count == 0
        raise KeyError

    threads = threading.active_count()
    with pytest.raises(KeyError), session.programs.follow(str(file)) as follower:
        follower.advance(2**40)
        follower.result(stop)
    assert until(lambda: not commands(str(file)))
    assert until(lambda: threading.active_count() <= threads)
    assert session.stat(str(file)).size == 2**40


@pytest.mark.parametrize("told", [0, 2**40])
def test_a_follower_left_early_leaves_nothing(
    alone: PrivateSshd, alone_machine: Machine, control_dir: Path, told: int
) -> None:
    file = Path(alone_machine.base_dir) / "huge"
    with file.open("wb") as out:
        out.truncate(2**40)
    with opened(alone_machine, control_dir) as storage, storage.session() as session:
        ask_for_programs(session, Path(alone_machine.base_dir))
        before = set(alone.descendants())
        with pytest.raises(KeyError), session.programs.follow(str(file)) as follower:
            assert until(lambda: at_work(file))
            follower.advance(told)
            raise KeyError
        assert until(lambda: not commands(str(file)))
        assert until(lambda: set(alone.descendants()) <= before)
        with session.programs.follow(str(file)):
            pass
        assert until(lambda: not commands(str(file)))
        assert session.stat(str(file)).size == 2**40


@pytest.mark.faults
@pytest.mark.parametrize("killed", ["everything", "connections"])
def test_a_follower_whose_server_is_killed(
    alone: PrivateSshd, alone_machine: Machine, control_dir: Path, killed: str
) -> None:
    """Also where only the connections go: what they started ends by itself then."""
    file = Path(alone_machine.base_dir) / "file"
    file.write_bytes(bytes(2 * STEP))
    with opened(alone_machine, control_dir) as storage:
        with (
            pytest.raises(ConnectionLost),
            storage.session() as session,
            session.programs.follow(str(file)) as follower,
        ):
            assert until(lambda: at_work(file))
            if killed == "everything":
                kill_sessions(alone)
            else:
                signal_each(alone.children(), signal.SIGKILL)
            follower.advance(2 * STEP)
            with pytest.raises(NotSupported):
                follower.result(no_progress)
            session.stat(str(file))
        assert until(lambda: not commands(str(file)))
        assert until(lambda: not alone.descendants())


def test_advance_does_not_wait_for_a_program_that_stands_still(
    alone: PrivateSshd, tmp_path: Path, control_dir: Path
) -> None:
    """Told of more often than a pipe and a window can hold: 4 million bytes of numbers."""
    file = tmp_path / "file"
    file.write_bytes(b"short")
    machine = alone.machine("remote", tmp_path, connection="openssh")
    with opened(machine, control_dir) as storage, storage.session() as session:
        ask_for_programs(session, tmp_path)
        before = set(alone.descendants())
        with session.programs.follow(str(file)) as follower:
            assert until(lambda: at_work(file))
            programs = set(alone.descendants()) - before
            signal_each(programs, signal.SIGSTOP)
            for end in range(0, 450_000 * STEP, STEP):
                follower.advance(end)
            signal_each(programs, signal.SIGCONT)
            with pytest.raises(NotSupported):
                follower.result(no_progress)
        assert until(lambda: set(alone.descendants()) <= before)


@pytest.mark.server
def test_no_shell_no_follower(tmp_path: Path, control_dir: Path) -> None:
    (tmp_path / "file").write_text("data")
    with PrivateSshd(tmp_path / "sshd", extra=["ForceCommand internal-sftp"]) as server:
        with opened(server.machine("remote", tmp_path), control_dir) as storage, storage.session() as session:
            with pytest.raises(NotSupported), session.programs.follow(str(tmp_path / "file")):
                pass
