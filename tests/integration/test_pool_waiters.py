"""Those who wait for a session of a machine that swallows all they send, and of one that has a live session."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.errors import DataManagerError, MachineUnavailable
from datamanager.machines import Machine
from datamanager.transports.factory import open_storage
from datamanager.transports.session_limiter import SessionLimiter
from datamanager.transports.sftp.pool import SftpStorage
from tests.contract.conftest import control_dir, until

__all__ = ["control_dir"]
WAITERS = 7


@pytest.fixture
def mute() -> Iterator[socket.socket]:
    """Accepts connections, in its backlog, and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        server.setblocking(False)
        yield server


def connections(server: socket.socket) -> int:
    count = 0
    try:
        while True:
            server.accept()[0].close()
            count += 1
    except BlockingIOError:
        return count


@pytest.mark.parametrize("connection", ["openssh", "paramiko"])
def test_nobody_tries_in_turn_what_has_just_failed(
    mute: socket.socket, tmp_path: Path, control_dir: Path, connection: str
) -> None:
    machine = Machine.model_validate(
        {
            "name": "remote",
            "transport": "sftp",
            "base_dir": "/data",
            "host": "127.0.0.1",
            "port": mute.getsockname()[1],
            "known_hosts": tmp_path / "known_hosts",
            "connection": connection,
            "max_connections": 1,
            "connect_timeout": 4,
        }
    )
    storage = open_storage(machine, control_dir=control_dir)
    assert isinstance(storage, SftpStorage)
    errors: list[DataManagerError] = []

    def ask() -> None:
        try:
            with storage.session():
                pass
        except DataManagerError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(1 + WAITERS)]
    threads[0].start()
    assert until(lambda: storage.in_use == 1)
    for thread in threads[1:]:
        thread.start()
    assert until(lambda: len(storage._limiter._waiting) == WAITERS or bool(errors))
    for thread in threads:
        thread.join()
    storage.close()
    assert [type(error) for error in errors] == [MachineUnavailable] * (1 + WAITERS)
    assert len({id(error) for error in errors}) == 1 + WAITERS  # each its own: errors are changed by who has them
    assert connections(mute) == 1


def test_who_comes_later_asks_anew() -> None:
    limiter, refused = SessionLimiter("remote", 1), threading.Event()

    def wait() -> None:
        with pytest.raises(MachineUnavailable, match="it is away"), limiter.acquired(1):
            pass
        refused.set()

    with limiter.acquired(1):
        waiter = threading.Thread(target=wait)
        waiter.start()
        assert until(lambda: len(limiter._waiting) == 1)
        limiter.refuse_waiting("it is away")
        assert refused.wait(60)
    waiter.join()
    with limiter.acquired(1):
        assert limiter.in_use == 1
    assert limiter.in_use == 0
