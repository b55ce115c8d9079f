"""Sessions that are made before somebody acquires them: while Prefect makes a run, and its items are read."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from datamanager.errors import MachineUnavailable
from datamanager.machines import Machine
from datamanager.transports.factory import open_storage
from datamanager.transports.sftp.pool import SftpStorage
from datamanager.transports.sftp.session import SftpSession
from tests.contract.conftest import commands, opened, until
from tests.support.process import signal_each
from tests.support.sshd import PrivateSshd

PROGRAM = "dm-many"


@pytest.fixture(params=["openssh", "paramiko"])
def machine(request: pytest.FixtureRequest, alone: PrivateSshd, tmp_path: Path) -> Machine:
    return alone.machine("remote", tmp_path, connection=request.param, max_connections=2)


def programs(server: PrivateSshd) -> int:
    """Count the programs for many files: each is a python3."""
    return len(commands("python3 -I -S", server.descendants()))


def test_who_acquires_one_gets_the_expected_session(
    alone: PrivateSshd, machine: Machine, own_control_dir: Path
) -> None:
    with opened(machine, own_control_dir) as storage:
        for _ in range(3):
            storage.expect(many=True)
        with storage.session() as session:
            assert isinstance(session, SftpSession)
            assert session.has_program
            assert programs(alone) == 1
            storage.expect(many=False)  # the machine's second connection
            assert until(lambda: storage.idle == 1)
            assert storage._sessions == 2
        storage.expect(many=True)
        assert (storage.idle, storage._expected) == (2, None)
    assert until(lambda: not alone.descendants())


def test_an_expected_session_that_nobody_acquires_is_idle(
    alone: PrivateSshd, machine: Machine, own_control_dir: Path
) -> None:
    with opened(machine, own_control_dir) as storage:
        storage.expect(many=False)
        assert until(lambda: storage.idle == 1)
        assert programs(alone) == 0
        storage.expect(many=True)  # it gets a program
        assert until(lambda: storage.idle == 1 and programs(alone) == 1)
        with storage.session() as session:
            assert isinstance(session, SftpSession)
            assert session.has_program
        assert storage._sessions == 1


def test_no_session_is_made_beyond_the_limit(machine: Machine, own_control_dir: Path) -> None:
    with opened(machine, own_control_dir) as storage:
        with storage.session_pair():
            storage.expect(many=False)
            assert storage._expected is None
        assert storage._sessions == 2


def test_an_expected_session_counts_while_it_is_made(
    alone: PrivateSshd, machine: Machine, own_control_dir: Path
) -> None:
    with opened(machine, own_control_dir) as storage:
        signal_each([alone.pid], signal.SIGSTOP)
        try:
            storage.expect(many=False)
            assert storage.in_use == 1
        finally:
            os.kill(alone.pid, signal.SIGCONT)
        assert until(lambda: (storage.in_use, storage.idle) == (0, 1))


def test_a_failure_is_raised_by_who_acquires_the_session(
    alone: PrivateSshd, machine: Machine, own_control_dir: Path
) -> None:
    alone.stop()
    with opened(machine, own_control_dir) as storage:
        storage.expect(many=True)
        with pytest.raises(MachineUnavailable), storage.session():
            pass
        storage.expect(many=True)
        assert until(lambda: storage._expected is None)  # nobody's
        alone.start()
        storage.expect(many=True)
        with storage.session() as session:
            session.stat("/")


def test_nothing_is_left_of_what_was_expected(alone: PrivateSshd, machine: Machine, own_control_dir: Path) -> None:
    threads = threading.active_count()
    storage = open_storage(machine, control_dir=own_control_dir)
    assert isinstance(storage, SftpStorage)
    storage.expect(many=True)
    storage.close()  # while it is made
    assert until(lambda: threading.active_count() <= threads)
    assert storage.in_use == 0
    assert until(lambda: not alone.descendants())
    storage.expect(many=True)
    assert storage._expected is None
