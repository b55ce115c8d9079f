"""Further sessions without waiting, and what the length of the path to a machine changes."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from datamanager.errors import MachineUnavailable
from datamanager.machines import Machine
from datamanager.transports.factory import open_storage
from datamanager.transports.local.storage import LocalStorage
from datamanager.transports.port import Storage
from datamanager.transports.sftp.pool import SftpStorage
from datamanager.transports.ssh.hostkeys import address
from datamanager.transports.ssh.paramiko import connect_transport
from datamanager.transports.values import FileKind
from tests.contract.conftest import opened, until
from tests.support.proxy import Proxy
from tests.support.sshd import PrivateSshd

ROUND_TRIP = 0.02


@contextmanager
def bounded(machine: Machine, control_dir: Path, most: int) -> Iterator[LocalStorage | SftpStorage]:
    storage = open_storage(machine.model_copy(update={"max_connections": most}), control_dir=control_dir)
    assert isinstance(storage, SftpStorage | LocalStorage)
    try:
        yield storage
        assert storage.in_use == 0
    finally:
        storage.close()


def test_extra_sessions_are_those_that_are_left(machine: Machine, control_dir: Path, tmp_path: Path) -> None:
    with bounded(machine, control_dir, 4) as storage:
        with storage.session(), storage.extra_sessions(2) as two:
            assert len(two) == 2
            assert storage.in_use == 3
            with storage.extra_sessions(5) as one:
                assert len(one) == 1
                for number, session in enumerate([*two, *one]):
                    with session.create(str(tmp_path / str(number))) as writer:
                        writer.write(0, b"x")
                with storage.extra_sessions(1) as none:
                    assert none == []
            assert storage.in_use == 3
            with storage.extra_sessions(0) as none:
                assert none == []
        assert storage.in_use == 0
        assert sorted(os.listdir(tmp_path)) == ["0", "1", "2"]
        with storage.extra_sessions(4) as four:
            assert len(four) == 4


def test_of_many_sessions_one_is_kept_for_who_comes_next(machine: Machine, control_dir: Path, tmp_path: Path) -> None:
    with bounded(machine, control_dir, 6) as storage, storage.session(), storage.extra_sessions(9) as four:
        assert len(four) == 4
        with storage.extra_sessions(1) as none:
            assert none == []
        with storage.session() as last:
            assert last.stat(str(tmp_path)).kind is FileKind.DIRECTORY


def test_extra_sessions_take_nothing_from_those_who_wait(machine: Machine, control_dir: Path) -> None:
    """One waits for two sessions while one is free: that one is not to be had."""
    got = threading.Event()

    def wait(storage: Storage) -> None:
        with storage.session_pair():
            got.set()

    with bounded(machine, control_dir, 2) as storage:
        with storage.session():
            thread = threading.Thread(target=wait, args=(storage,), daemon=True)
            thread.start()
            assert until(lambda: bool(storage._limiter._waiting))
            with storage.extra_sessions(1) as none:
                assert none == []
            assert not got.is_set()
        assert got.wait(60)
        thread.join()


def test_extra_sessions_never_wait_for_each_other(machine: Machine, control_dir: Path) -> None:
    most, done, lock = [0], [0], threading.Lock()

    def work(storage: LocalStorage | SftpStorage) -> None:
        for _ in range(5):
            with storage.session() as session, storage.extra_sessions(3) as further:
                with lock:
                    most[0] = max(most[0], storage.in_use)
                for one in [session, *further]:
                    one.stat(machine.base_dir)
        with lock:
            done[0] += 1

    with bounded(machine, control_dir, 3) as storage:
        threads = [threading.Thread(target=work, args=(storage,), daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert done[0] == 8
        assert most[0] <= 3


def test_an_exception_releases_extra_sessions(machine: Machine, control_dir: Path) -> None:
    with bounded(machine, control_dir, 3) as storage:
        with pytest.raises(KeyError), storage.session(), storage.extra_sessions(2):
            raise KeyError
        assert storage.in_use == 0


def test_a_closed_storage_has_no_extra_sessions(machine: Machine, control_dir: Path) -> None:
    with bounded(machine, control_dir, 3) as storage:
        storage.close()
        with storage.extra_sessions(2) as none:
            assert none == []


@pytest.mark.faults
def test_extra_sessions_that_can_not_be_made_are_left_out(
    alone: PrivateSshd, alone_machine: Machine, control_dir: Path
) -> None:
    with opened(alone_machine, control_dir) as storage:
        with storage.session():
            alone.stop()
            with storage.extra_sessions(2) as none:
                assert none == []
                assert storage.in_use == 1
        with pytest.raises(MachineUnavailable), storage.session():
            pass
        alone.start()
        with storage.extra_sessions(2) as two:
            assert len(two) == 2


def test_this_host_is_no_way_off(tmp_path: Path, control_dir: Path) -> None:
    here = Machine.model_validate({"name": "here", "transport": "local", "base_dir": str(tmp_path)})
    with open_storage(here, control_dir=control_dir).session() as session:
        assert session.round_trip == 0


@pytest.mark.parametrize("connection", ["openssh", "paramiko"])
def test_over_a_long_path_every_session_has_its_connection(
    alone: PrivateSshd, tmp_path: Path, control_dir: Path, connection: str
) -> None:
    data = os.urandom(20_000_003)
    (tmp_path / "file").write_bytes(data)
    with Proxy(alone.port, delay=ROUND_TRIP) as proxy:
        known = tmp_path / "known_hosts"
        known.write_text(alone.known_host_line().replace(f"]:{alone.port}", f"]:{proxy.port}"))
        settings = {"connection": connection, "port": proxy.port, "known_hosts": known, "max_connections": 4}
        machine = alone.machine("remote", tmp_path, **settings)
        with opened(machine, control_dir) as storage:
            with storage.session() as session, storage.extra_sessions(2) as further:
                assert session.round_trip >= ROUND_TRIP
                assert len(alone.children()) == 1 + len(further) == 3
                for one in [session, *further]:
                    with one.open_read(str(tmp_path / "file")) as reader:
                        assert b"".join(bytes(block) for block in reader.blocks()) == data
            with storage.session_pair(), storage.extra_sessions(4) as rest:
                assert len(rest) == 2
                assert len(alone.children()) == 4
        assert until(lambda: not alone.children())


def test_over_a_short_path_sessions_share_a_connection(alone: PrivateSshd, tmp_path: Path, control_dir: Path) -> None:
    with opened(alone.machine("remote", tmp_path, connection="openssh"), control_dir) as storage:
        with storage.session() as session, storage.extra_sessions(3) as further:
            assert len(further) == 3
            if session.round_trip < 0.004:  # a machine under load may look far away
                assert len(alone.children()) == 1


def test_the_receive_window_follows_the_path(alone: PrivateSshd, tmp_path: Path) -> None:
    machine = alone.machine("remote", tmp_path)
    sizes = []
    for round_trip in (0.0, ROUND_TRIP):
        transport = connect_transport(machine, address(machine), round_trip=round_trip)
        sizes.append(transport.default_window_size)
        transport.close()
    assert sizes == [4 << 20, 16 << 20]
