"""A transfer that is to stop: its sessions are broken from outside, and it waits for no more of them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from datamanager.engine.control import CancellableStorage, Control, unwrapped
from datamanager.errors import Cancelled, ConnectionLost
from datamanager.machines import Machine
from tests.contract.conftest import kill_sessions, opened
from tests.support.sshd import PrivateSshd

STALL = 600
"""Seconds: longer than anything here waits."""


@pytest.fixture(params=["openssh", "paramiko"])
def machine(request: pytest.FixtureRequest, alone: PrivateSshd, tmp_path: Path) -> Machine:
    return alone.machine("remote", tmp_path, connection=request.param, stall_timeout=STALL, max_connections=2)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[PrivateSshd]:
    """A server that is frozen."""
    with PrivateSshd(tmp_path / "sshd") as server:
        yield server


def test_a_thread_that_waits_for_a_frozen_machine_wakes_up(
    machine: Machine, alone: PrivateSshd, control_dir: Path, tmp_path: Path
) -> None:
    control = Control()
    with opened(machine, control_dir) as storage, ThreadPoolExecutor(1) as pool:
        waits = threading.Event()

        def work() -> None:
            with CancellableStorage(storage, control).session() as session:
                session.stat(str(tmp_path))
                kill_sessions(alone, signal.SIGSTOP)
                waits.set()
                session.stat(str(tmp_path))

        working = pool.submit(work)
        assert waits.wait(60)
        try:
            time.sleep(0.3)
            control.stop(Cancelled("c"))
            assert not working.done()
            control.abort()
            control.abort()
            with pytest.raises(ConnectionLost):
                working.result(STALL / 6)
        finally:
            kill_sessions(alone, signal.SIGCONT)
        assert (storage.in_use, storage.idle) == (0, 0)
        with storage.session() as session:  # others get a new one
            session.stat(str(tmp_path))


@pytest.mark.parametrize("two", [False, True])
def test_waiting_for_a_session_ends_and_later_ones_are_not_acquired(
    machine: Machine, control_dir: Path, two: bool
) -> None:
    control = Control()
    with opened(machine, control_dir) as storage, ThreadPoolExecutor(1) as pool:
        mine = CancellableStorage(storage, control)
        assert mine.machine == storage.machine

        def wait() -> None:
            with mine.session_pair() if two else mine.session():
                raise AssertionError("nothing was to be acquired")

        with storage.session(), storage.session():
            waiting = pool.submit(wait)
            time.sleep(0.3)
            assert not waiting.done()
            control.stop(Cancelled("c"))
            with pytest.raises(Cancelled):
                waiting.result(60)
        for acquire in (mine.session, mine.session_pair, lambda: mine.extra_sessions(1)):
            with pytest.raises(Cancelled), acquire():
                raise AssertionError("nothing was to be acquired")
        assert storage.in_use == 0
        with unwrapped(mine).session() as session:  # for clearing up
            session.stat(machine.base_dir)


def test_what_was_given_back_is_not_broken(machine: Machine, control_dir: Path) -> None:
    control = Control()
    with opened(machine, control_dir) as storage:
        with CancellableStorage(storage, control).session():
            pass
        control.abort()
        assert storage.idle == 1
        with storage.session() as session:
            session.stat(machine.base_dir)
