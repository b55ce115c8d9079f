"""A person's short transfers: logged in to over paramiko where ssh would make the same connection, once for a task."""

from __future__ import annotations

import os
import shutil
import socket
import struct
from pathlib import Path

import pytest

from datamanager.errors import MachineUnavailable
from datamanager.machines import Machine, Machines
from datamanager.signing.builtin_ca import BuiltinCa
from datamanager.signing.certificate import Person
from datamanager.signing.signer import PersonLogin
from datamanager.transports.factory import Storages
from datamanager.transports.sftp.session import SftpSession
from datamanager.transports.ssh.openssh import OpenSshChannel
from datamanager.transports.ssh.paramiko import ParamikoChannel, PromptSocket
from datamanager.transports.ssh.short_transfers import SEEN_FOR, PlainMachines, ShortConnector
from tests.contract.conftest import until
from tests.support.sshd import PrivateSshd


@pytest.fixture(scope="module")
def server(servers: list[PrivateSshd]) -> PrivateSshd:
    return servers[0]


@pytest.fixture
def machine(server: PrivateSshd, place: Path) -> Machine:
    return server.machine("m", place, acts_as="caller")


@pytest.fixture
def storages(machine: Machine, control_dir: Path, ca: BuiltinCa) -> Storages:
    return Storages(Machines({"m": machine}), control_dir, ca)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration of ssh, which is empty; its `asked` counts how often ssh was started."""
    config, ssh, real = tmp_path / "config", tmp_path / "bin" / "ssh", shutil.which("ssh")
    ssh.parent.mkdir()
    ssh.write_text(f'#!/bin/sh\necho >>"{tmp_path}/asked"\nexec "{real}" -F "{config}" "$@"\n')
    ssh.chmod(0o755)
    config.write_text("")
    monkeypatch.setenv("PATH", f"{ssh.parent}:{os.environ['PATH']}")
    return config


def channels(storages: Storages, person: Person, *, short: bool = True) -> list[type]:
    """Use two sessions together; return what carries them."""
    with storages.acting_as(person, short=short) as own:
        own.get("m").expect(2)
        with own.get("m").session_pair() as pair:
            for session in pair:
                session.stat("/")
            assert all(isinstance(session, SftpSession) for session in pair)
            return [type(session.channel) for session in pair if isinstance(session, SftpSession)]


def logins(server: PrivateSshd) -> int:
    return server.log.read_text().count("Accepted publickey")


def test_a_short_transfer_logs_in_once_over_paramiko(
    storages: Storages, server: PrivateSshd, person: Person, config: Path
) -> None:
    before, text = logins(server), server.log.read_text()
    assert channels(storages, person) == [ParamikoChannel] * 2
    assert logins(server) - before == 1
    assert "ID dm:t:p" in server.log.read_text().removeprefix(text)
    assert until(lambda: not server.children())  # nothing is kept for the next task
    assert channels(storages, person, short=False) == [OpenSshChannel] * 2
    assert logins(server) - before == 2


def test_each_task_logs_in_for_itself(storages: Storages, server: PrivateSshd, person: Person, config: Path) -> None:
    text = server.log.read_text()
    for task in ("one", "two"):
        channels(storages, Person(person.principal, task, "p"))
    said = server.log.read_text().removeprefix(text)
    assert [said.count(f"ID dm:{task}:p (serial") for task in ("one", "two")] == [1, 1]


@pytest.mark.parametrize(
    ("line", "channel"),
    [
        ("Host *\n  SendEnv LANG\n  HashKnownHosts yes\n  GSSAPIAuthentication yes", ParamikoChannel),
        ("Host other\n  ProxyJump nowhere", ParamikoChannel),
        ("Host *\n  BindAddress 127.0.0.1", OpenSshChannel),
        ("Host *\n  Ciphers aes256-ctr", OpenSshChannel),
        ("Match exec true\n  ConnectionAttempts 3", OpenSshChannel),
    ],
)
def test_what_the_configuration_of_ssh_says_is_observed(
    line: str, channel: type, storages: Storages, person: Person, config: Path
) -> None:
    config.write_text(line + "\n")
    assert channels(storages, person) == [channel] * 2


@pytest.mark.parametrize(
    "setting",
    ["ProxyJump gate", "ProxyCommand nc %h %p", "HostName 127.0.0.2", "HostKeyAlias other", "UserKnownHostsFile /none"],
)
def test_a_machine_that_is_reached_otherwise_is_not_plain(setting: str, machine: Machine, config: Path) -> None:
    config.write_text(f"Host 127.0.0.1\n  {setting}\n")
    assert machine not in PlainMachines()


def test_a_host_that_an_authority_vouches_for_is_left_to_ssh(
    machine: Machine, server: PrivateSshd, person: Person, ca: BuiltinCa, control_dir: Path, tmp_path: Path
) -> None:
    known = tmp_path / "known_hosts"
    known.write_text("@cert-authority " + server.known_hosts.read_text())
    connector = ShortConnector(
        machine.model_copy(update={"known_hosts": known, "username": person.principal, "identity_file": None}),
        control_dir,
        PersonLogin(machine, person, ca),
        PlainMachines(),
    )
    channel = connector.open_channel()
    assert isinstance(channel, OpenSshChannel)
    channel.close()
    connector.close()


def test_the_configuration_is_read_once_in_a_while(machine: Machine, config: Path, tmp_path: Path) -> None:
    now = 1000.0
    plain, asked = PlainMachines(lambda: now), tmp_path / "asked"
    assert [machine in plain for _ in range(3)] == [True] * 3
    assert len(asked.read_text()) == 2
    config.write_text("Host *\n  BindAddress 127.0.0.1\n")
    now += SEEN_FOR - 1
    assert machine in plain
    now += 1
    assert machine not in plain
    assert len(asked.read_text()) == 4
    assert machine.model_copy(update={"username": "other"}) not in plain


def test_a_server_that_allows_one_session_gets_a_login_for_each(
    place: Path, ca: BuiltinCa, person: Person, control_dir: Path, config: Path
) -> None:
    with PrivateSshd(place / "strict", extra=[f"TrustedUserCAKeys {place}/ca.pub", "MaxSessions 1"]) as server:
        machine = server.machine("m", place, acts_as="caller")
        assert channels(Storages(Machines({"m": machine}), control_dir, ca), person) == [ParamikoChannel] * 2
        assert logins(server) == 2


def test_a_session_that_ends_leaves_the_other_its_connection(
    storages: Storages, server: PrivateSshd, person: Person, config: Path
) -> None:
    with storages.acting_as(person, short=True) as own:
        storage = own.get("m")
        with storage.session_pair() as (first, second):
            assert isinstance(first, SftpSession)
            first.channel.close()
            first.channel.close()
            second.stat("/")
        before = logins(server)
        with storage.session() as again:
            again.stat("/")
            assert again is second
        assert logins(server) == before
    assert until(lambda: not server.children())


def test_a_connector_that_is_closed_opens_nothing(
    machine: Machine, person: Person, ca: BuiltinCa, control_dir: Path, config: Path, tmp_path: Path
) -> None:
    connector = ShortConnector(machine, control_dir, PersonLogin(machine, person, ca), PlainMachines())
    connector.close()
    with pytest.raises(MachineUnavailable):
        connector.open_channel()
    assert not (tmp_path / "asked").exists()
    assert not [path for path in control_dir.iterdir() if path.name.startswith("ag-")]


def test_what_comes_during_a_login_is_acknowledged_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ours = PromptSocket(socket.AF_INET, socket.SOCK_STREAM)
        ours.connect(listening.getsockname())
        theirs, _ = listening.accept()
        with ours, theirs:
            for _ in range(20):  # a dialogue: from now on the kernel waits for our answer, to acknowledge with it
                theirs.sendall(b"a")
                ours.sendall(ours.recv(1))
                theirs.recv(1)
            for _ in range(5):
                theirs.sendall(b"b")
                ours.recv(1)
                assert _unacknowledged(theirs) == 0


def _unacknowledged(sock: socket.socket) -> int:
    """Return how many packets the peer has not acknowledged (tcpi_unacked of Linux's struct tcp_info)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 28)
    return int(struct.unpack_from("=I", info, 24)[0])
