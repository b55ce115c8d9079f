"""SSH transports when things break: processes killed or stopped, logins refused, and nothing left behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from datamanager.errors import (
    AuthenticationFailed,
    ConnectionLost,
    LoginOutput,
    MachineUnavailable,
    NotSupported,
    TransportTimeout,
)
from datamanager.machines import Machine
from datamanager.transports.factory import open_storage
from datamanager.transports.local.storage import LocalStorage
from datamanager.transports.sftp.pool import SftpStorage
from tests.contract.conftest import MachineMaker, commands, impatient, kill_sessions, opened, until, usable
from tests.support.ports import free_port
from tests.support.sshd import PrivateSshd, make_key

LARGE = 256 * 1024 * 1024
GUARD = 60.0
"""Seconds until what never ends fails its test."""


@pytest.mark.faults
def test_a_server_killed_in_mid_read(alone: PrivateSshd, alone_machine: Machine, control_dir: Path) -> None:
    file = Path(alone_machine.base_dir) / "file"
    with file.open("wb") as out:
        out.truncate(LARGE)
    with opened(alone_machine, control_dir) as storage:
        with pytest.raises(ConnectionLost), storage.session() as session, session.open_read(str(file)) as reader:
            for number, _ in enumerate(reader.blocks()):
                if number == 3:
                    kill_sessions(alone)
        assert (storage.in_use, storage.idle) == (0, 0)
        with storage.session() as session:
            assert session.stat(str(file)).size == LARGE


@pytest.mark.faults
def test_a_server_killed_in_mid_write(alone: PrivateSshd, alone_machine: Machine, control_dir: Path) -> None:
    file = Path(alone_machine.base_dir) / "file"
    with opened(alone_machine, control_dir) as storage:
        with pytest.raises(ConnectionLost), storage.session() as session, session.create(str(file)) as writer:
            for number in range(LARGE >> 20):
                writer.write(number << 20, bytes(1 << 20))
                if number == 3:
                    kill_sessions(alone)
            writer.flush()
        assert (storage.in_use, storage.idle) == (0, 0)
        with storage.session() as session:
            session.remove(str(file))


@pytest.mark.faults
def test_a_session_that_broke_while_idle_is_not_used(
    alone: PrivateSshd, alone_machine: Machine, control_dir: Path
) -> None:
    with opened(alone_machine, control_dir) as storage:
        with storage.session() as session:
            session.stat("/")
        assert storage.idle == 1
        kill_sessions(alone)
        assert until(lambda: not alone.children())
        assert until(lambda: not usable(storage))  # the end must reach us, too
        with storage.session() as session:
            session.stat("/")


@pytest.mark.faults
@pytest.mark.parametrize("doing", ["nothing", "reading", "writing"])
def test_a_server_that_stalls(alone: PrivateSshd, alone_machine: Machine, control_dir: Path, doing: str) -> None:
    file = Path(alone_machine.base_dir) / "file"
    if doing == "reading":
        with file.open("wb") as out:
            out.truncate(LARGE)
    with opened(impatient(alone_machine), control_dir) as storage:
        began = 0.0
        with pytest.raises(TransportTimeout), storage.session() as session:
            session.stat("/")
            kill_sessions(alone, signal.SIGSTOP)
            began = time.monotonic()
            match doing:
                case "nothing":
                    session.stat("/")
                case "reading":
                    with session.open_read(str(file)) as reader:
                        for _ in reader.blocks():
                            pass
                case "writing":
                    with session.create(str(file)) as writer:
                        writer.write(0, bytes(LARGE))
        assert 1.5 < time.monotonic() - began < GUARD
        with storage.session() as session:  # the stopped process is still there: a new one serves
            session.stat("/")


def test_a_pause_of_the_user_is_no_stall(alone_machine: Machine, control_dir: Path) -> None:
    file = Path(alone_machine.base_dir) / "file"
    file.write_bytes(bytes(30_000_000))
    with opened(impatient(alone_machine), control_dir) as storage, storage.session() as session:
        with session.open_read(str(file)) as reader:
            blocks = reader.blocks()
            size = len(next(blocks))
            time.sleep(3.5)
            size += sum(len(block) for block in blocks)
    assert size == 30_000_000


def test_a_wrong_key_is_refused(ssh_machine: MachineMaker, tmp_path: Path, control_dir: Path) -> None:
    machine = ssh_machine(identity_file=make_key(tmp_path / "other"))
    with opened(machine, control_dir) as storage:
        with pytest.raises(AuthenticationFailed, match="remote"), storage.session():
            pass


def test_a_missing_key_is_refused(ssh_machine: MachineMaker, tmp_path: Path, control_dir: Path) -> None:
    with opened(ssh_machine(identity_file=tmp_path / "none"), control_dir) as storage:
        with pytest.raises(AuthenticationFailed), storage.session():
            pass


def test_nobody_listens(ssh_machine: MachineMaker, control_dir: Path) -> None:
    with opened(ssh_machine(port=free_port()), control_dir) as storage:
        with pytest.raises(MachineUnavailable, match="refused"), storage.session():
            pass


def test_something_listens_that_says_nothing(ssh_machine: MachineMaker, control_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        machine = ssh_machine(port=mute.getsockname()[1], connect_timeout=1)
        began = time.monotonic()
        with opened(machine, control_dir) as storage:
            with pytest.raises(MachineUnavailable), storage.session():
                pass
        assert time.monotonic() - began < GUARD


def test_no_name(ssh_machine: MachineMaker, control_dir: Path) -> None:
    with opened(ssh_machine(host="nowhere.invalid"), control_dir) as storage:
        with pytest.raises(MachineUnavailable), storage.session():
            pass


TEXT = "echo This is not SFTP, it is text"


@pytest.mark.parametrize("connection", ["openssh", "paramiko"])
@pytest.mark.parametrize(
    ("command", "works"),
    # ends before the client has spoken, or after it
    [("internal-sftp", True), (TEXT, False), (f"{TEXT}; head -c 1 >/dev/null", False)],
)
def test_no_shell(tmp_path: Path, control_dir: Path, connection: str, command: str, works: bool) -> None:
    file = tmp_path / "file"
    file.write_text("data")
    with PrivateSshd(tmp_path / "sshd", extra=[f"ForceCommand {command}"]) as server:
        machine = server.machine("remote", tmp_path, connection=connection, connect_timeout=30)
        with opened(machine, control_dir) as storage:
            if not works:
                with pytest.raises(LoginOutput, match="'This is not SFTP, it is text'"), storage.session():
                    pass
                return
            with storage.session() as session:
                with pytest.raises(NotSupported):
                    session.programs.digest(str(file))
                assert session.stat(str(file)).size == 4


def test_a_digest_ends_when_told(alone: PrivateSshd, alone_machine: Machine, control_dir: Path) -> None:
    file, calls = Path(alone_machine.base_dir) / "huge", [0]
    with file.open("wb") as out:
        out.truncate(2**40)

    def stop(_: int) -> None:
        calls[0] += 1
        if calls[0] > 3:
            raise KeyError

    with opened(alone_machine, control_dir) as storage, storage.session() as session:
        with pytest.raises(KeyError):
            session.programs.digest(str(file), stop)
        assert until(lambda: not commands("dgst -sha256", alone.descendants()))
        session.stat(str(file))


def test_sessions_are_bounded_and_waiters_wake(machine: Machine, control_dir: Path) -> None:
    bounded = machine.model_copy(update={"max_connections": 3})
    storage = open_storage(bounded, control_dir=control_dir)
    assert isinstance(storage, SftpStorage | LocalStorage)
    most, done, lock = [0], [0], threading.Lock()

    def work() -> None:
        for _ in range(5):
            with storage.session() as session:
                with lock:
                    most[0] = max(most[0], storage.in_use)
                session.stat(machine.base_dir)
                time.sleep(0.005)
            with storage.session_pair() as (one, two):
                one.stat(machine.base_dir)
                two.stat(machine.base_dir)
        with lock:
            done[0] += 1

    threads = [threading.Thread(target=work, daemon=True) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert done[0] == 12
    assert 1 < most[0] <= 3
    assert storage.in_use == 0
    assert storage.idle <= 3
    storage.close()
    assert storage.idle == 0
    with pytest.raises(MachineUnavailable), storage.session():
        pass


def test_a_waiter_waits_and_is_woken_by_close(machine: Machine, control_dir: Path) -> None:
    storage = open_storage(machine.model_copy(update={"max_connections": 1}), control_dir=control_dir)
    entered, refused = threading.Event(), threading.Event()

    def wait() -> None:
        try:
            with storage.session():
                entered.set()
            with storage.session_pair() as (one, two):
                assert one.stat(machine.base_dir) == two.stat(machine.base_dir)
        except MachineUnavailable:
            refused.set()

    with storage.session():
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        assert not entered.wait(0.3)
    assert entered.wait(GUARD)
    thread.join(GUARD)
    assert not thread.is_alive()
    assert not refused.is_set()
    with storage.session():
        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        assert isinstance(storage, SftpStorage | LocalStorage)
        assert until(lambda: bool(storage._limiter._waiting))
        storage.close()
        thread.join(GUARD)
    assert refused.is_set()


def test_idle_sessions_are_closed(alone: PrivateSshd, alone_machine: Machine, control_dir: Path) -> None:
    with opened(alone_machine, control_dir) as storage:
        storage._idle_seconds = 0.5
        with storage.session_pair() as (one, two):
            one.stat("/")
            two.stat("/")
        assert storage.idle == 2
        assert until(lambda: storage.idle == 1)
        time.sleep(2.5)  # the pool has looked again
        assert storage.idle == 1
        storage._last_idle_seconds = 0.5
        assert until(lambda: storage.idle == 0)
        assert until(lambda: not alone.children())


def test_nothing_is_left_after_close(alone: PrivateSshd, alone_machine: Machine, own_control_dir: Path) -> None:
    threads = threading.active_count()
    with opened(alone_machine, own_control_dir) as storage:
        for _ in range(20):
            with storage.session_pair() as (one, _two):
                one.stat("/")
        assert storage.idle == 2
    assert until(lambda: not alone.children())
    assert until(lambda: not commands(str(own_control_dir)))
    assert until(lambda: threading.active_count() <= threads)
    assert until(lambda: not list(own_control_dir.iterdir()))


@pytest.mark.faults
def test_a_parent_that_is_killed_leaves_nothing(
    alone: PrivateSshd, alone_machine: Machine, own_control_dir: Path
) -> None:
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from datamanager.machines import Machine\n"
        "from datamanager.transports.factory import open_storage\n"
        "machine = Machine.model_validate_json(sys.argv[1])\n"
        "with open_storage(machine, control_dir=Path(sys.argv[2])).session() as session:\n"
        "    session.stat('/')\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(60)\n"
    )
    argv = [sys.executable, "-c", script, alone_machine.model_dump_json(), str(own_control_dir)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        assert alone.children()
        parent.kill()
    assert until(lambda: not commands(str(own_control_dir)))
    assert until(lambda: not alone.children())
