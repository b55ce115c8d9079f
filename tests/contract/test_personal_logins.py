"""Nobody's shared account: two real sshd that trust our CA, two people, both SSH implementations."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from pwd import getpwnam

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from datamanager.errors import InvalidRequest, RemoteFailure, SettingsError
from datamanager.machines import Machine, Machines
from datamanager.signing.builtin_ca import BuiltinCa, create_key, sshd_lines
from datamanager.signing.certificate import Certificate, CertificateRequest, Person
from datamanager.signing.signer import PersonLogin
from datamanager.transports.factory import Storages
from tests.support.process import children_of
from tests.support.sshd import PrivateSshd


class Recorded:
    """The CA, and what it signed."""

    def __init__(self, ca: BuiltinCa) -> None:
        self.ca = ca
        self.made: list[Certificate] = []

    def sign(self, request: CertificateRequest) -> Certificate:
        self.made.append(self.ca.sign(request))
        return self.made[-1]


@pytest.fixture(scope="module")
def people() -> Iterator[list[str]]:
    names = [f"dm{secrets.token_hex(4)}" for _ in range(2)]
    try:
        for name in names:  # "*": no password, but not locked, as sshd without PAM wants it
            subprocess.run(["useradd", "-M", "-d", "/", "-p", "*", "-s", "/bin/sh", name], check=True)
        yield names
    finally:
        for name in names:
            subprocess.run(["userdel", "-f", name], check=True, capture_output=True)


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    place = Path(tempfile.mkdtemp(dir="/tmp", prefix="dmca"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.fixture(scope="module")
def ca(place: Path) -> BuiltinCa:
    create_key(place / "ca")
    ca = BuiltinCa(place / "ca")
    (place / "ca.pub").write_text(ca.public_line + "\n")
    return ca


@pytest.fixture(scope="module")
def servers(place: Path, ca: BuiltinCa) -> Iterator[list[PrivateSshd]]:
    lines = sshd_lines(os.fspath(place / "ca.pub")).splitlines()
    with ExitStack() as stack:
        yield [stack.enter_context(PrivateSshd(place / name, extra=lines)) for name in ("one", "two")]


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
    with Storages(machines, control_dir, ca).acting_as(Person(people[0], "t", "p")) as own:
        with own.get("archer2").session():
            seen = caplog.text.encode()
            for pid in children_of(os.getpid()):
                seen += Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            for path in control_dir.iterdir():
                assert path.is_socket()
    assert len(keys) == 1
    raw = keys[0].private_bytes_raw()
    assert not [form for form in (raw, raw.hex().encode(), base64.b64encode(raw)[:40]) if form in seen]
    assert b"PRIVATE KEY" not in seen


def captured(
    place: Path, login: PersonLogin, server: PrivateSshd, words: list[str], *options: str
) -> subprocess.CompletedProcess[bytes]:
    """Use a key and certificate as a thief would."""
    key, certificate = login.make()
    file = place / f"stolen-{secrets.token_hex(4)}"
    file.touch(mode=0o600)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    Path(f"{file}-cert.pub").write_text(certificate.line + "\n")
    known = ["-o", f"UserKnownHostsFile={server.known_hosts}", "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes"]
    argv = ["ssh", "-F", "none", "-T", *known, "-i", os.fspath(file), "-p", str(server.port), *options]
    host = f"{login.person.principal}@127.0.0.1"
    return subprocess.run([*argv, host, *words], input=b"", capture_output=True, timeout=60, check=False)


def test_a_captured_certificate_is_worth_little(
    place: Path, people: list[str], servers: list[PrivateSshd], ca: BuiltinCa
) -> None:
    machine = servers[0].machine("archer2", place, acts_as="caller")
    login = PersonLogin(machine, Person(people[0], "t", "p"), ca)
    ran = captured(place, login, servers[0], ["echo", "shell"])
    assert b"shell" not in ran.stdout
    assert b"Permission denied" not in ran.stderr
    assert b"Permission denied" in captured(place, login, servers[0], [], "-b", "127.0.0.2").stderr
    past = PersonLogin(machine, login.person, ca, lambda: datetime.now(UTC) - timedelta(minutes=6))
    assert b"Permission denied" in captured(place, past, servers[0], []).stderr
    log = servers[0].log.read_text()
    assert "not from a permitted source address" in log or "not permitted to authenticate from" in log
    assert "Certificate invalid: expired" in log


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    create_key(tmp_path / "ca")
    assert (tmp_path / "ca").stat().st_mode & 0o777 == 0o600
    (tmp_path / "ca").chmod(mode)
    with pytest.raises(SettingsError, match="accessible"):
        BuiltinCa(tmp_path / "ca")


def test_revoked_serials_are_found_by_openssh(place: Path, servers: list[PrivateSshd], ca: BuiltinCa) -> None:
    login = PersonLogin(servers[0].machine("a", place), Person("alice", "t", "p"), ca)
    (revoked, other) = (login.make()[1] for _ in range(2))
    (place / "krl").write_bytes(ca.revocation_list([revoked.serial]))
    for one, status in ((revoked, 1), (other, 0)):
        (place / "asked.pub").write_text(one.line + "\n")
        found = subprocess.run(
            ["ssh-keygen", "-Q", "-f", place / "krl", place / "asked.pub"], capture_output=True, check=False
        )
        assert found.returncode == status, found.stderr


@pytest.mark.parametrize("principal", ["root", "-l", "a,b", "", "a b"])
def test_such_an_account_is_no_principal(principal: str) -> None:
    with pytest.raises(InvalidRequest):
        Person(principal, "t", "p")
