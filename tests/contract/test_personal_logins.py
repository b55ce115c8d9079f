"""Nobody's shared account: two real sshd that trust our CA, two people, both SSH implementations."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from pathlib import Path
from pwd import getpwnam

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from datamanager.errors import InvalidRequest, RemoteFailure, SettingsError
from datamanager.machines import Connection, Machine, Machines
from datamanager.signing.builtin_ca import BuiltinCa, create_key
from datamanager.signing.certificate import Certificate, CertificateRequest, Person
from datamanager.transports.factory import Storages
from tests.support.callers import accounts
from tests.support.process import children_of
from tests.support.sshd import PrivateSshd


class Recorded:
    """The CA, and what it signed."""

    def __init__(self, ca: BuiltinCa) -> None:
        self.ca = ca
        self.public_line = ca.public_line
        self.made: list[Certificate] = []

    def sign(self, request: CertificateRequest) -> Certificate:
        self.made.append(self.ca.sign(request))
        return self.made[-1]


@pytest.fixture(scope="module")
def people() -> Iterator[list[str]]:
    with accounts(2) as names:
        yield names


@pytest.fixture(params=["openssh", "paramiko"])
def machines(request: pytest.FixtureRequest, place: Path, servers: list[PrivateSshd]) -> Machines:
    found = {}
    for name, server in zip(("archer2", "cirrus"), servers, strict=True):
        base = place / f"{name}-{request.param}"
        base.mkdir(exist_ok=True)
        base.chmod(0o777)
        found[name] = server.machine(name, base, connection=request.param, acts_as="caller", max_connections=1)
    return Machines(found)


def put(storages: Storages, machine: Machine, name: str, data: bytes) -> None:
    path = f"{machine.base_dir}/{name}"
    with storages.get(machine.name).session() as session, session.create(path) as writer:
        writer.write(0, data)


def test_files_belong_to_the_person_and_the_log_names_the_task(
    machines: Machines, people: list[str], servers: list[PrivateSshd], ca: BuiltinCa, control_dir: Path
) -> None:
    signer = Recorded(ca)
    storages = Storages(machines, control_dir, signer)
    for name in people:
        person = Person(name, f"task-{name}", f"{name}@site")
        with storages.acting_as(person) as own:
            for machine, server in zip(machines, servers, strict=True):
                put(own, machines[machine], f"of-{name}", b"data")
                assert (Path(machines[machine].base_dir) / f"of-{name}").stat().st_uid == getpwnam(name).pw_uid
                assert f"dm:task-{name}:{name}@site" in server.log.read_text()
                with own.get(machine).session() as session, pytest.raises(RemoteFailure):
                    session.channel.run(["id"])  # type: ignore[attr-defined]
    assert len({one.serial for one in signer.made}) == len(signer.made) == 4
    assert not list(control_dir.glob("ag-*"))
    storages.close()


def test_each_connection_has_a_new_certificate_and_idle_sessions_of_others_close_first(
    machines: Machines, people: list[str], ca: BuiltinCa, control_dir: Path
) -> None:
    signer = Recorded(ca)
    storages = Storages(machines, control_dir, signer)
    with (
        storages.acting_as(Person(people[0], "a", "p")) as first,
        storages.acting_as(Person(people[1], "b", "q")) as second,
    ):
        put(first, machines["archer2"], "first", b"1")
        assert first.get("archer2").idle == 1  # type: ignore[attr-defined]
        put(second, machines["archer2"], "second", b"2")
        assert first.get("archer2").idle == 0  # type: ignore[attr-defined]
        with first.get("archer2").session() as session:
            session.channel.abort()  # type: ignore[attr-defined]
        before = len(signer.made)
        put(first, machines["archer2"], "third", b"3")
        assert [one.key_id for one in signer.made[before:]] == ["dm:a:p"]
    serials = [one.serial for one in signer.made]
    assert len(set(serials)) == len(serials) >= 3
    storages.close()


def test_a_private_key_is_nowhere_but_in_memory(
    machines: Machines,
    people: list[str],
    ca: BuiltinCa,
    control_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    keys: list[Ed25519PrivateKey] = []
    generate = Ed25519PrivateKey.generate

    def recorded() -> Ed25519PrivateKey:
        keys.append(generate())
        return keys[-1]

    monkeypatch.setattr(Ed25519PrivateKey, "generate", recorded)
    caplog.set_level("DEBUG")
    others = set(children_of(os.getpid()))
    with Storages(machines, control_dir, ca).acting_as(Person(people[0], "t", "p")) as own:
        with own.get("archer2").session():
            seen = caplog.text.encode()
            programs = set(children_of(os.getpid())) - others
            assert len(programs) == (machines["archer2"].connection is Connection.OPENSSH)
            for pid in programs:
                seen += Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            for path in control_dir.iterdir():
                assert path.is_socket()
    assert len(keys) == 1
    raw = keys[0].private_bytes_raw()
    assert not [form for form in (raw, raw.hex().encode(), base64.b64encode(raw)[:40]) if form in seen]
    assert b"PRIVATE KEY" not in seen


@pytest.mark.attack(cwe=732, title="The authority's key can be read by other users")
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    create_key(tmp_path / "ca")
    assert (tmp_path / "ca").stat().st_mode & 0o777 == 0o600
    (tmp_path / "ca").chmod(mode)
    with pytest.raises(SettingsError, match="accessible"):
        BuiltinCa(tmp_path / "ca")


@pytest.mark.attack(cwe=250, title="A person's account is `root`")
@pytest.mark.parametrize("principal", ["root", "-l", "a,b", "", "a b"])
def test_such_an_account_is_no_principal(principal: str) -> None:
    with pytest.raises(InvalidRequest):
        Person(principal, "t", "p")
