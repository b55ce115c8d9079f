"""A login by certificate offers nothing else: no key of ssh's configuration, none of an agent."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from datamanager.errors import AuthenticationFailed, MachineUnavailable, NoLogin, SigningUnavailable
from datamanager.machines import Connection, Machines
from datamanager.signing.builtin_ca import BuiltinCa
from datamanager.signing.certificate import Certificate, CertificateRequest, Person
from datamanager.transports.factory import Storages
from tests.support.ports import free_port
from tests.support.sshd import PrivateSshd, make_key


class Shifted:
    """The authority; its certificates are valid so many minutes later."""

    def __init__(self, ca: BuiltinCa, minutes: float) -> None:
        self._ca, self._shift = ca, timedelta(minutes=minutes)
        self.public_line = ca.public_line

    def sign(self, request: CertificateRequest) -> Certificate:
        after, before = request.valid_after + self._shift, request.valid_before + self._shift
        return self._ca.sign(replace(request, valid_after=after, valid_before=before))


class Away:
    """A signer that does not answer; `asked`: how often it was."""

    public_line = ""
    asked = 0

    def sign(self, request: CertificateRequest) -> Certificate:
        self.asked += 1
        raise SigningUnavailable(f"the signer can't be reached for {request.key_id}")


@pytest.fixture(scope="module")
def server(servers: list[PrivateSshd]) -> PrivateSshd:
    return servers[0]


@pytest.fixture(params=["openssh", "paramiko"])
def machines(request: pytest.FixtureRequest, server: PrivateSshd, place: Path) -> Machines:
    return Machines({"m": server.machine("m", place, connection=request.param, acts_as="caller")})


@pytest.fixture
def other_keys(server: PrivateSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An agent and a configuration of ssh with keys that the server accepts; their fingerprints."""
    (tmp_path / "bin").mkdir()
    in_agent = make_key(tmp_path / "agent_key")
    config, ssh, real = tmp_path / "config", tmp_path / "bin" / "ssh", shutil.which("ssh")
    config.write_text(f"Host *\n  IdentityFile {server.client_key}\n  AddKeysToAgent yes\n")
    ssh.write_text(f'#!/bin/sh\nexec "{real}" -F "{config}" "$@"\n')
    ssh.chmod(0o755)
    with (server.directory / "authorized_keys").open("a") as file:
        file.write(in_agent.with_suffix(".pub").read_text())
    agent = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", agent], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()  # it listens
    monkeypatch.setenv("SSH_AUTH_SOCK", os.fspath(agent))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    subprocess.run(["ssh-add", "-q", in_agent], check=True)
    keys = (in_agent, server.client_key)
    yield [subprocess.check_output(["ssh-keygen", "-lf", key], text=True).split()[1] for key in keys]
    process.terminate()
    process.wait()


def test_a_certificate_that_is_refused_is_all_that_was_offered(
    machines: Machines, server: PrivateSshd, ca: BuiltinCa, person: Person, control_dir: Path, other_keys: list[str]
) -> None:
    before = server.log.read_text()
    with (
        Storages(machines, control_dir, Shifted(ca, -10)).acting_as(person) as own,
        pytest.raises(AuthenticationFailed),
        own.get("m").session(),
    ):
        pass
    said = server.log.read_text().removeprefix(before)
    assert "Certificate invalid: expired" in said
    assert not [key for key in other_keys if key in said]


def test_a_certificate_that_is_accepted_is_all_that_was_offered(
    machines: Machines, server: PrivateSshd, ca: BuiltinCa, person: Person, control_dir: Path, other_keys: list[str]
) -> None:
    before = server.log.read_text()
    with Storages(machines, control_dir, ca).acting_as(person) as own, own.get("m").session():
        said = server.log.read_text().removeprefix(before)
    assert "Accepted publickey" in said
    assert "ID dm:t:p" in said
    assert "Failed" not in said
    assert not [key for key in other_keys if key in said]
    shared = Machines({"m": machines["m"].model_copy(update={"acts_as": "shared"})})
    with closing(Storages(shared, control_dir)) as storages, storages.get("m").session():
        pass  # without a certificate such a key is what opens the machine


def test_without_a_signer_or_a_login_there_is_no_connection(
    machines: Machines, server: PrivateSshd, ca: BuiltinCa, person: Person, control_dir: Path, other_keys: list[str]
) -> None:
    before = server.log.read_text().count("Accepted")
    storages = Storages(machines, control_dir, ca)
    with pytest.raises(NoLogin):
        storages.get("m")
    with storages.acting_as(Person(None, "t", "p")) as nobody, pytest.raises(NoLogin):
        nobody.get("m")
    with Storages(machines, control_dir, Away()).acting_as(person) as own, pytest.raises(SigningUnavailable):
        own.get("m").session().__enter__()
    assert server.log.read_text().count("Accepted") == before


def test_the_services_own_work_has_its_own_login(
    machines: Machines, server: PrivateSshd, ca: BuiltinCa, person: Person, control_dir: Path
) -> None:
    machine = machines["m"].model_copy(update={"service_login": person.principal})
    storages = Storages(Machines({"m": machine}), control_dir, ca)
    with storages.get("m").session():
        assert "ID dm:service:data-manager" in server.log.read_text()
    storages.close()


def test_a_knock_reaches_the_machine_for_nobody(machines: Machines, server: PrivateSshd, control_dir: Path) -> None:
    before = server.log.read_text().count("Accepted")
    Storages(machines, control_dir).knock("m")
    away = Machines({"m": machines["m"].model_copy(update={"port": free_port()})})
    with pytest.raises(MachineUnavailable):
        Storages(away, control_dir).knock("m")
    assert server.log.read_text().count("Accepted") == before


def test_sessions_that_were_prepared_are_the_next_callers(
    machines: Machines, server: PrivateSshd, ca: BuiltinCa, person: Person, control_dir: Path
) -> None:
    before = server.log.read_text().count("Accepted publickey")
    with Storages(machines, control_dir, ca).acting_as(person) as own:
        own.get("m").expect(2)
        with own.get("m").session_pair() as pair:
            opened = own.get("m").opened  # type: ignore[attr-defined]
        with own.get("m").session() as again:
            assert again in pair
        assert opened == own.get("m").opened == 2  # type: ignore[attr-defined]
    logins = 1 if machines["m"].connection is Connection.OPENSSH else 2
    assert server.log.read_text().count("Accepted publickey") - before == logins


def test_the_next_caller_gets_the_error_of_a_preparation(machines: Machines, person: Person, control_dir: Path) -> None:
    away = Away()
    with Storages(machines, control_dir, away).acting_as(person) as own:
        own.get("m").expect(1)
        for asked in (1, 2):
            with pytest.raises(SigningUnavailable), own.get("m").session():
                pass
            assert away.asked == asked


def test_storages_that_are_closed_meanwhile_keep_nothing(
    machines: Machines, ca: BuiltinCa, person: Person, control_dir: Path
) -> None:
    storages = Storages(Machines({"m": machines["m"].model_copy(update={"max_connections": 1})}), control_dir, ca)
    for _ in range(5):
        with storages.acting_as(person) as own:
            own.get("m").expect(1)
    with storages.acting_as(person) as own, own.get("m").session():  # the only place is free again
        assert storages.limiter_of(machines["m"]).in_use == 1
    assert not [path for path in control_dir.iterdir() if path.name.startswith("ag-")]
