"""The transports under the contract: two lines per backend."""

from __future__ import annotations

import hashlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from datamanager.machines import Machine
from datamanager.signing.builtin_ca import BuiltinCa
from datamanager.signing.certificate import Person
from datamanager.transports.factory import open_storage
from datamanager.transports.port import Session, Storage
from datamanager.transports.sftp.pool import SftpStorage
from tests.support.callers import accounts, authority, open_folder, trusting
from tests.support.process import all_pids, command_line, signal_each
from tests.support.sshd import PrivateSshd

MachineMaker = Callable[..., Machine]


@contextmanager
def opened(machine: Machine, control_dir: Path) -> Iterator[SftpStorage]:
    """Open the machine's storage, and check that every session was released."""
    storage = open_storage(machine, control_dir=control_dir)
    assert isinstance(storage, SftpStorage)
    try:
        yield storage
        assert storage.in_use == 0
    finally:
        storage.close()


def until(true: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Wait until something is so; say whether it came to be."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def commands(word: str, pids: Iterable[int] | None = None) -> list[str]:
    """Return the command lines that hold this word: of these processes, or of all, where only this test has the word
    (tests beside it run the same programs)."""
    lines = [command_line(pid) for pid in (all_pids() if pids is None else pids) if pid != os.getpid()]
    return [line for line in lines if word in line]


def ask_for_programs(session: Session, folder: Path) -> None:
    """Have the machine say which programs it has, which it is asked once."""
    file = folder / "asked"
    file.write_bytes(b"")
    assert session.programs.digest(str(file)) == hashlib.sha256(b"").hexdigest()
    file.unlink()


def usable(storage: SftpStorage) -> int:
    """Count the idle sessions that would be used again."""
    return sum(session.usable for _, session in list(storage._idle))


def kill_sessions(server: PrivateSshd, which: signal.Signals = signal.SIGKILL) -> None:
    signal_each(server.descendants(), which)


@pytest.fixture(scope="session")
def control_dir() -> Iterator[Path]:
    """A private directory whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture
def own_control_dir() -> Iterator[Path]:
    """A control directory of the test's own: no other test's connections are there."""
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def server(sshd_pair: tuple[PrivateSshd, PrivateSshd]) -> PrivateSshd:
    """The server of all tests that do it no harm."""
    return sshd_pair[0]


@pytest.fixture(params=["openssh", "paramiko"])
def ssh_machine(request: pytest.FixtureRequest, server: PrivateSshd, tmp_path: Path) -> MachineMaker:
    """Makes a machine whose storage is reached over SSH, in either way."""

    def make(**overrides: Any) -> Machine:
        return server.machine("remote", tmp_path, connection=request.param, **overrides)

    return make


@pytest.fixture(params=["local", "openssh", "paramiko"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    """A machine of every backend, whose files are also under `tmp_path` here."""
    if request.param == "local":
        return Machine.model_validate({"name": "here", "transport": "local", "base_dir": str(tmp_path)})
    server: PrivateSshd = request.getfixturevalue("server")
    return server.machine("remote", tmp_path, connection=request.param)


@pytest.fixture(scope="session")
def storages(control_dir: Path) -> Iterator[dict[str, Storage]]:
    """Storages that stay open, by their machine: to connect takes longer than most tests."""
    opened: dict[str, Storage] = {}
    yield opened
    for storage in opened.values():
        storage.close()


@pytest.fixture
def storage(machine: Machine, control_dir: Path, storages: dict[str, Storage]) -> Storage:
    anywhere = machine.model_copy(update={"base_dir": "/"})
    key = anywhere.model_dump_json()  # the port takes whole paths
    if key not in storages:
        storages[key] = open_storage(anywhere, control_dir=control_dir)
    return storages[key]


@pytest.fixture
def session(storage: Storage) -> Iterator[Session]:
    with storage.session() as acquired:
        yield acquired


@pytest.fixture
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSshd]:
    """A server of the test's own, to be ill-treated."""
    with PrivateSshd(tmp_path_factory.mktemp("alone")) as running:
        assert until(lambda: not running.children())
        yield running


@pytest.fixture(params=["openssh", "paramiko"])
def alone_machine(request: pytest.FixtureRequest, alone: PrivateSshd, tmp_path: Path) -> Machine:
    overrides = {"connection": request.param, "max_connections": 3, "connect_timeout": 30}
    return alone.machine("remote", tmp_path, **overrides)


def impatient(machine: Machine) -> Machine:
    """Return the machine with a connection that counts as dead after two seconds without a byte."""
    return machine.model_copy(update={"stall_timeout": 2})


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder that other accounts reach."""
    with open_folder() as place:
        yield place


@pytest.fixture(scope="module")
def ca(place: Path) -> BuiltinCa:
    """An authority for certificates."""
    return authority(place)


@pytest.fixture(scope="module")
def servers(place: Path, ca: BuiltinCa) -> Iterator[list[PrivateSshd]]:
    """Two servers that trust the authority."""
    with trusting(place, 2) as servers:
        yield servers


@pytest.fixture(scope="module")
def person() -> Iterator[Person]:
    """Somebody with an account on this host."""
    with accounts(1) as (name,):
        yield Person(name, "t", "p")
