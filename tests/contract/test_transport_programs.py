"""Programs run on the machine over SSH: their input, our agent, and the copy by `cp`; none outlives its use."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from paramiko.common import cMSG_CHANNEL_DATA, cMSG_CHANNEL_EOF

from datamanager.errors import ConnectionLost, NotSupported, PathExists, PathMissing, RemoteFailure, TransportTimeout
from datamanager.machines import Machine
from datamanager.transports.channel import RemoteProgram
from datamanager.transports.sftp.session import SftpSession
from datamanager.transports.ssh.paramiko import ParamikoChannel
from datamanager.transports.ssh.paramiko_program import ParamikoProgram
from datamanager.transports.values import FileKind, no_progress
from tests.contract.conftest import MachineMaker, ask_for_programs, commands, impatient, kill_sessions, opened, until
from tests.contract.test_transport import NAMES
from tests.support.sshd import PrivateSshd


def output(program: RemoteProgram) -> bytes:
    """Return all that the program says."""
    out = b""
    while (piece := program.read(60)) != b"":
        assert piece is not None, "the program says nothing"
        out += piece
    return out


@contextmanager
def sessions(machine: Machine, control_dir: Path) -> Iterator[SftpSession]:
    with opened(machine, control_dir) as storage, storage.session() as session:
        assert isinstance(session, SftpSession)
        yield session


@pytest.fixture
def ssh_session(ssh_machine: MachineMaker, control_dir: Path) -> Iterator[SftpSession]:
    with sessions(ssh_machine(), control_dir) as session:
        yield session


@pytest.mark.parametrize("message", [cMSG_CHANNEL_EOF, cMSG_CHANNEL_DATA], ids=["eof", "data"])
def test_input_that_meets_the_end_of_its_program_keeps_the_connection(
    server: PrivateSshd, tmp_path: Path, control_dir: Path, monkeypatch: pytest.MonkeyPatch, message: bytes
) -> None:
    """Paramiko's thread learns of the program's end after our message was made, and before it is sent."""
    with sessions(server.machine("remote", tmp_path, connection="paramiko"), control_dir) as session:
        assert isinstance(session.channel, ParamikoChannel)
        with session.channel.run(["true"], stdin=True) as program:
            assert isinstance(program, ParamikoProgram)
            transport: Any = program._transport
            send, held = transport._send_user_message, []

            def late(made: Any) -> None:
                if made.asbytes()[:1] == message:
                    held.append(made)
                    assert until(lambda: program._channel.closed)
                send(made)

            monkeypatch.setattr(transport, "_send_user_message", late)
            if message == cMSG_CHANNEL_DATA:
                program._send(memoryview(b"x"), 10)
            program.close_input()
            assert output(program) == b""
        assert held
        assert session.stat(str(tmp_path)).kind is FileKind.DIRECTORY


@pytest.mark.parametrize("size", [0, 1, 30_000_001])
def test_a_program_is_given_all_its_input(ssh_session: SftpSession, size: int) -> None:
    data = os.urandom(size)
    with ssh_session.channel.run(["sha256sum"], stdin=True) as program:
        for start in range(0, size, 5_000_000):
            program.write(memoryview(data)[start : start + 5_000_000])
        program.close_input()
        program.close_input()
        assert output(program).split()[0].decode() == hashlib.sha256(data).hexdigest()
        assert program.exit_status() == 0
        with pytest.raises(RemoteFailure):
            program.write(b"more")


@pytest.mark.parametrize("raw", NAMES)
def test_a_word_is_only_a_word(ssh_session: SftpSession, raw: bytes) -> None:
    with ssh_session.channel.run(["printf", "%s", os.fsdecode(raw)]) as program:
        assert output(program) == raw
        assert program.exit_status() == 0


def test_a_program_without_input_sees_its_end(ssh_session: SftpSession) -> None:
    with ssh_session.channel.run(["cat"]) as program:
        assert output(program) == b""
        assert program.exit_status() == 0
        with pytest.raises(RemoteFailure):
            program.write(b"x")


def test_a_program_that_ends_early_is_told(ssh_session: SftpSession) -> None:
    with ssh_session.channel.run(["sh", "-c", "head -c 1; exit 3"], stdin=True) as program:
        with pytest.raises(RemoteFailure):
            for _ in range(100):
                program.write(bytes(1_000_000))
        assert program.exit_status() == 3
    assert ssh_session.stat("/").mode


def test_a_program_that_takes_no_input(alone_machine: Machine, control_dir: Path) -> None:
    """It is given up after the patience that the machine has; the session goes on."""
    with sessions(impatient(alone_machine), control_dir) as session:
        with session.channel.run(["sleep", "600"], stdin=True) as program:
            assert program.write_some(b"x") == 1
            with pytest.raises(TransportTimeout):
                program.write(bytes(32_000_000))
            assert program.write_some(b"x") == 0
        assert session.stat("/").mode


def test_the_watchdog_does_not_come_before_the_patience_with_a_program(
    alone_machine: Machine, control_dir: Path
) -> None:
    with sessions(impatient(alone_machine), control_dir) as session:
        channel, seen = session.channel, threading.Event()

        def look() -> None:  # half the patience later: a clock that began with the wait would have run out
            while not seen.wait(0.1):
                channel.check_stall(time.monotonic() + channel.patience / 2)

        watchdog = threading.Thread(target=look)
        with channel.run(["sleep", "600"], stdin=True) as program:
            watchdog.start()
            try:
                with pytest.raises(TransportTimeout, match="accepted no input"):
                    program.write(bytes(32_000_000))
            finally:
                seen.set()
                watchdog.join()
        assert session.stat("/").mode


@pytest.mark.faults
def test_a_connection_lost_under_the_input(alone: PrivateSshd, alone_machine: Machine, control_dir: Path) -> None:
    with opened(alone_machine, control_dir) as storage, storage.session() as session:
        assert isinstance(session, SftpSession)
        with session.channel.run(["cat"], stdin=True) as program:
            program.write(b"x")
            assert program.read(60) == b"x"
            kill_sessions(alone)
            with pytest.raises(ConnectionLost):
                for _ in range(100):
                    program.write(bytes(1_000_000))


def test_a_program_with_input_ends_with_its_context(
    alone: PrivateSshd, alone_machine: Machine, control_dir: Path
) -> None:
    with sessions(alone_machine, control_dir) as session:
        before = set(alone.descendants())
        with session.channel.run(["cat"], stdin=True) as program:
            program.write(b"x")
            assert program.read(60) == b"x"
            assert set(alone.descendants()) > before
        assert until(lambda: set(alone.descendants()) <= before)


@pytest.fixture
def agent(server: PrivateSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An SSH agent of ours that holds the client key; returns the line by which it shows."""
    socket = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL) as process:
        assert until(socket.exists)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(socket))
        subprocess.run(["ssh-add", "-q", server.client_key], check=True, stderr=subprocess.DEVNULL)
        yield subprocess.run(["ssh-add", "-l"], check=True, capture_output=True, text=True).stdout
        process.terminate()


def test_our_agent_is_forwarded_to_the_one_program_only(
    ssh_machine: MachineMaker, agent: str, control_dir: Path
) -> None:
    with sessions(ssh_machine(), control_dir) as session:
        for forward in (False, True, False):
            with session.channel.run(["ssh-add", "-l"], forward_agent=forward) as program:
                assert output(program).decode() == (agent if forward else "")
                assert program.exit_status() == (0 if forward else 2)


class NoCopyData(PrivateSshd):
    """A server that refuses the copy-data extension, as older ones don't have it; `bin_dir` comes first in its PATH."""

    def __init__(self, directory: Path) -> None:
        self.bin_dir = directory / "bin"
        super().__init__(directory, path=f"{self.bin_dir}:/usr/local/bin:/usr/bin:/bin")

    def _prepare(self) -> None:
        super()._prepare()
        self.bin_dir.mkdir(exist_ok=True)
        config = self.directory / "sshd_config"
        config.write_text(config.read_text().replace("internal-sftp", "internal-sftp -P copy-data"))

    def cp_does(self, script: str) -> None:
        """Put a `cp` into the PATH that shows its version as the real one does, and else does this."""
        real = shlex.quote(str(shutil.which("cp")))
        program = self.bin_dir / "cp"
        program.write_text(f'#!/bin/sh\ncase "$*" in *--version) exec {real} "$@" ;; esac\n{script}\n')
        program.chmod(0o755)


@pytest.fixture
def no_copy_data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NoCopyData]:
    with NoCopyData(tmp_path_factory.mktemp("nocopy")) as running:
        yield running


@pytest.fixture(params=["openssh", "paramiko"])
def by_cp(
    request: pytest.FixtureRequest, no_copy_data: NoCopyData, tmp_path: Path, control_dir: Path
) -> Iterator[Callable[[], SftpSession]]:
    """A session on a machine that copies by `cp`."""
    machine = no_copy_data.machine("remote", tmp_path, connection=request.param)
    with opened(machine, control_dir) as storage:
        with storage.session() as session:
            assert isinstance(session, SftpSession)
            yield lambda: session


@pytest.mark.parametrize("size", [0, 1, 50_000_001])
def test_cp_copies_every_byte(by_cp: Callable[[], SftpSession], tmp_path: Path, size: int) -> None:
    session, told = by_cp(), [0]
    file, copy = tmp_path / "file", tmp_path / "copy"
    file.write_bytes(os.urandom(size))
    assert session.programs.can_copy
    session.programs.copy(str(file), str(copy), told.append)
    assert copy.read_bytes() == file.read_bytes()
    assert sum(told) == size
    assert copy.stat().st_mode & 0o777 == 0o600
    with pytest.raises(PathExists):
        session.programs.copy(str(file), str(copy))
    with pytest.raises(PathMissing):
        session.programs.copy(str(tmp_path / "nothing"), str(tmp_path / "another"))
    with pytest.raises(RemoteFailure):
        session.programs.copy(str(tmp_path), str(tmp_path / "another"))
    assert sorted(os.listdir(tmp_path)) == ["copy", "file"]


def test_cp_takes_names_as_names(by_cp: Callable[[], SftpSession], tmp_path: Path) -> None:
    session = by_cp()
    for raw in NAMES:
        source = os.path.join(str(tmp_path), os.fsdecode(raw))
        destination = os.path.join(str(tmp_path), os.fsdecode(raw[:-1] + b"#"))
        Path(source).write_bytes(raw)
        session.programs.copy(source, destination)
        assert Path(destination).read_bytes() == raw
        os.remove(source)
        os.remove(destination)
    assert os.listdir(tmp_path) == []


def test_cp_does_not_follow_a_link_at_its_destination(by_cp: Callable[[], SftpSession], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("new")
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "link").symlink_to("mine")
    with pytest.raises(PathExists):
        by_cp().programs.copy(str(tmp_path / "file"), str(tmp_path / "link"))
    assert (tmp_path / "mine").read_text() == "mine"


def test_cp_is_ended_when_told(by_cp: Callable[[], SftpSession], no_copy_data: NoCopyData, tmp_path: Path) -> None:
    no_copy_data.cp_does('for name do :; done; printf 12345 >"$name"; exec sleep 600')
    session = by_cp()
    (tmp_path / "file").write_bytes(b"1234567890")
    told = [0]

    def stop(count: int) -> None:
        told.append(count)
        if sum(told) == 5:
            raise KeyError

    assert session.programs.can_copy
    before = set(no_copy_data.descendants())
    with pytest.raises(KeyError):
        session.programs.copy(str(tmp_path / "file"), str(tmp_path / "copy"), stop)
    assert until(lambda: set(no_copy_data.descendants()) <= before)
    assert session.stat(str(tmp_path / "copy")).size == 5  # its owner removes it


@pytest.mark.parametrize("script", ["exit 1", 'for name do :; done; echo part >"$name"; kill -9 $$'])
def test_a_cp_that_fails_leaves_nothing(
    by_cp: Callable[[], SftpSession], no_copy_data: NoCopyData, tmp_path: Path, script: str
) -> None:
    no_copy_data.cp_does(script)
    (tmp_path / "file").write_text("data")
    with pytest.raises(NotSupported):
        by_cp().programs.copy(str(tmp_path / "file"), str(tmp_path / "copy"))
    assert os.listdir(tmp_path) == ["file"]


def test_a_cp_that_does_not_know_reflinks_is_not_asked(
    by_cp: Callable[[], SftpSession], no_copy_data: NoCopyData, tmp_path: Path
) -> None:
    program = no_copy_data.bin_dir / "cp"
    program.write_text("#!/bin/sh\necho unrecognized option >&2; exit 1\n")
    program.chmod(0o755)
    (tmp_path / "file").write_text("data")
    assert not by_cp().programs.can_copy
    with pytest.raises(NotSupported):
        by_cp().programs.copy(str(tmp_path / "file"), str(tmp_path / "copy"))
    assert os.listdir(tmp_path) == ["file"]


def test_a_head_that_reads_on_is_not_used(
    by_cp: Callable[[], SftpSession], no_copy_data: NoCopyData, tmp_path: Path
) -> None:
    """As busybox's: it takes more from a file than it passes on, so that the next one would begin too far."""
    program = no_copy_data.bin_dir / "head"
    program.write_text('#!/bin/sh\n{ cat | /usr/bin/head "$@"; }\n')
    program.chmod(0o755)
    (tmp_path / "file").write_text("data")
    with pytest.raises(NotSupported), by_cp().programs.follow(str(tmp_path / "file")):
        pass
    assert by_cp().programs.digest(str(tmp_path / "file"), no_progress) == hashlib.sha256(b"data").hexdigest()


@pytest.mark.faults
def test_a_digest_cancelled_before_its_program_has_spoken(
    alone: PrivateSshd, alone_machine: Machine, own_control_dir: Path
) -> None:
    """Its process id is waited for then: closing the channel does not end it."""
    file = Path(alone_machine.base_dir) / "huge"
    with file.open("wb") as out:
        out.truncate(2**40)

    def stop(_: int) -> None:
        raise KeyError

    with sessions(alone_machine, own_control_dir) as session:
        ask_for_programs(session, Path(alone_machine.base_dir))
        before = set(alone.descendants())
        for _ in range(3):
            with pytest.raises(KeyError):
                session.programs.digest(str(file), stop)
        assert until(lambda: set(alone.descendants()) <= before)
    assert until(lambda: not commands(str(own_control_dir)))
