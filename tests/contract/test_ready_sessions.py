"""Who acquires a session that is expected has the first one that is ready, whichever was begun first."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.errors import MachineUnavailable
from datamanager.machines import Machine
from datamanager.transports.channel import Channel
from datamanager.transports.sftp.pool import SftpStorage
from datamanager.transports.ssh.paramiko import ParamikoConnector
from tests.contract.conftest import until
from tests.support.sshd import PrivateSshd


class InTurn(ParamikoConnector):
    """Opens channels one by one, in the order in which it is told how they go; True: it opens, False: it does not."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine, shares=True)
        self._told = threading.Semaphore(0)
        self._how: Iterator[bool] = iter(())
        self._turn = threading.Lock()

    def tell(self, how: list[bool]) -> None:
        """Let as many be opened as there are values."""
        self._how = iter(how)
        self._told.release(len(how))

    def open_channel(self) -> Channel:
        self._told.acquire()
        with self._turn:
            opens = next(self._how)
        if not opens:
            raise MachineUnavailable("not this one")
        return super().open_channel()


@pytest.fixture(scope="module")
def machine(server: PrivateSshd) -> Machine:
    return server.machine("remote", "/", connection="paramiko", max_connections=8)


@settings(max_examples=25)
@given(st.lists(st.booleans(), min_size=1, max_size=4), st.data())
def test_as_many_get_a_session_as_can(machine: Machine, how: list[bool], data: st.DataObject) -> None:
    callers = data.draw(st.integers(0, len(how)))
    connector = InTurn(machine)
    storage = SftpStorage(machine, connector)

    def use() -> bool:
        try:
            with storage.session() as session:
                session.stat("/")
                held.wait()
            return True
        except MachineUnavailable:
            return False

    held = threading.Event()
    with ThreadPoolExecutor(5) as threads:
        storage.expect(len(how))
        using = [threads.submit(use) for _ in range(callers)]
        assert until(lambda: len(storage._awaited) == callers)
        connector.tell(how)
        assert until(lambda: not storage._expected and not storage._awaited)
        held.set()
        served = sum(one.result() for one in using)
    assert served == min(callers, sum(how))  # a failure is nobody's while another one can be had
    assert until(lambda: storage.in_use == 0)
    assert storage.idle == storage.opened == sum(how)
    storage.close()


def test_a_session_that_hangs_keeps_nobody_from_the_next(machine: Machine) -> None:
    connector = InTurn(machine)
    storage = SftpStorage(machine, connector)
    storage.expect(2)
    connector.tell([True])
    with storage.session() as session:
        session.stat("/")
        assert len(storage._expected) == 1
    connector.tell([True])
    assert until(lambda: storage.idle == 2)
    storage.close()
