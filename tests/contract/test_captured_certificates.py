"""What a certificate is worth to a thief who has it with its key, against a real sshd and by both implementations."""

from __future__ import annotations

import io
import os
import secrets
import socket
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import paramiko
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from typer.testing import CliRunner

from datamanager.cli.main import app
from datamanager.signing.builtin_ca import BuiltinCa, sshd_lines
from datamanager.signing.certificate import Person
from datamanager.signing.revocation import revocation_list
from datamanager.signing.signer import PersonLogin
from tests.support.callers import accounts
from tests.support.sshd import PrivateSshd

OWN, OTHER = "127.0.0.1", "127.0.0.2"
REFUSED = "refused"
ONLY_SFTP = "This service allows sftp connections only.\n"
Thief = Callable[..., str]
"""Uses a login from an address; returns what was printed, or REFUSED."""


@pytest.fixture(scope="module")
def server(servers: list[PrivateSshd]) -> PrivateSshd:
    return servers[0]


@pytest.fixture(scope="module")
def login(server: PrivateSshd, place: Path, ca: BuiltinCa) -> Iterator[PersonLogin]:
    with accounts(1) as (name,):
        yield PersonLogin(server.machine("archer2", place, acts_as="caller"), Person(name, "t", "p"), ca)


@pytest.fixture(params=["openssh", "paramiko"])
def thief(request: pytest.FixtureRequest, place: Path) -> Thief:
    return {"openssh": lambda *args: by_openssh(place, *args), "paramiko": by_paramiko}[request.param]


def by_openssh(place: Path, login: PersonLogin, server: PrivateSshd, address: str, words: list[str]) -> str:
    key, certificate = login.make()
    file = place / f"stolen-{secrets.token_hex(4)}"
    file.touch(mode=0o600)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    Path(f"{file}-cert.pub").write_text(certificate.line + "\n")
    options = [f"UserKnownHostsFile={server.known_hosts}", "BatchMode=yes", "IdentitiesOnly=yes"]
    argv = ["ssh", "-F", "none", "-T", *(word for one in options for word in ("-o", one)), "-i", os.fspath(file)]
    host = f"{login.person.principal}@{server.host}"
    ran = subprocess.run(
        [*argv, "-b", address, "-p", str(server.port), host, *words],
        input=b"",
        capture_output=True,
        timeout=60,
        check=False,
    )
    return REFUSED if b"Permission denied" in ran.stderr else ran.stdout.decode()


def by_paramiko(login: PersonLogin, server: PrivateSshd, address: str, words: list[str]) -> str:
    private, certificate = login.make()
    text = private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()
    key = paramiko.Ed25519Key.from_private_key(io.StringIO(text))
    key.load_certificate(certificate.line)
    connection = socket.create_connection((server.host, server.port), 60, (address, 0))
    with paramiko.Transport(connection) as transport:
        try:
            transport.connect(username=str(login.person.principal), pkey=key)
        except paramiko.AuthenticationException:
            return REFUSED
        channel = transport.open_session()
        if words:
            channel.exec_command(" ".join(words))
        else:
            channel.invoke_shell()
        channel.shutdown_write()
        return channel.makefile("rb").read().decode()


def shifted(login: PersonLogin, minutes: float, **changes: timedelta) -> PersonLogin:
    """Return the same login at another time."""
    clock = lambda: datetime.now(UTC) + timedelta(minutes=minutes)  # noqa: E731
    return PersonLogin(login.machine, login.person, login.signer, clock=clock, **changes)


@pytest.mark.attack(cwe=250, title="A captured certificate opens a shell")
def test_it_opens_no_shell_and_runs_no_program(login: PersonLogin, server: PrivateSshd, thief: Thief) -> None:
    for words in (["echo", "shell"], []):
        assert thief(login, server, OWN, words) == ONLY_SFTP


@pytest.mark.attack(cwe=294, title="A captured certificate is used from another address")
def test_it_opens_nothing_from_another_address(login: PersonLogin, server: PrivateSshd, thief: Thief) -> None:
    assert thief(login, server, OTHER, []) == REFUSED
    assert "not from a permitted source address" in server.log.read_text()


@pytest.mark.attack(cwe=613, title="A captured certificate is used after five minutes")
def test_it_opens_nothing_after_its_time(login: PersonLogin, server: PrivateSshd, thief: Thief) -> None:
    assert thief(shifted(login, -4.9), server, OWN, []) == ONLY_SFTP
    assert thief(shifted(login, -5.1), server, OWN, []) == REFUSED
    assert thief(shifted(login, -0.1, validity=timedelta(seconds=3)), server, OWN, []) == REFUSED
    assert "Certificate invalid: expired" in server.log.read_text()


def test_it_opens_nothing_before_its_time(login: PersonLogin, server: PrivateSshd, thief: Thief) -> None:
    assert thief(shifted(login, 2), server, OWN, []) == REFUSED


@pytest.mark.attack(cwe=863, title="A captured certificate opens another account")
def test_it_opens_no_other_account(login: PersonLogin, server: PrivateSshd, thief: Thief, ca: BuiltinCa) -> None:
    with accounts(1) as (other,):
        foreign = PersonLogin(login.machine, Person(other, "t", "p"), ca)
        key, certificate = login.make()
        assert thief(Stolen(foreign, key, certificate), server, OWN, []) == REFUSED


class Stolen:
    """Another person's account, and a certificate that is not for it."""

    def __init__(self, login: PersonLogin, *made: object) -> None:
        self.person, self._made = login.person, made

    def make(self) -> tuple[object, ...]:
        return self._made


def test_revocation_lists_are_understood_by_sshd(place: Path, ca: BuiltinCa, login: PersonLogin, thief: Thief) -> None:
    made = [login.make() for _ in range(2)]
    one, other = (Stolen(login, *both) for both in made)
    folder = place / f"revoking-{secrets.token_hex(4)}"
    krl = folder / "krl"
    folder.mkdir()
    lines = sshd_lines(os.fspath(place / "ca.pub"), os.fspath(krl)).splitlines()
    krl.write_bytes(revocation_list(ca.public_line, [made[0][1].serial]))
    with PrivateSshd(folder, extra=lines) as server:
        assert thief(one, server, OWN, []) == REFUSED
        assert thief(other, server, OWN, []) == ONLY_SFTP
        krl.write_bytes(revocation_list(ca.public_line, [], whole=True))
        assert thief(other, server, OWN, []) == REFUSED


def test_dm_machine_ca_prints_what_sshd_needs(
    place: Path, login: PersonLogin, thief: Thief, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = place / f"home-{secrets.token_hex(4)}"
    monkeypatch.setenv("DM_HOME", os.fspath(home))
    said = CliRunner().invoke(app, ["machine", "ca"], catch_exceptions=False).stdout
    assert (home / "ssh-ca.key").stat().st_mode & 0o777 == 0o600
    assert CliRunner().invoke(app, ["machine", "ca"], catch_exceptions=False).stdout == said  # the same key
    signer = BuiltinCa(home / "ssh-ca.key")
    own = PersonLogin(login.machine, login.person, signer)
    key, certificate = own.make()
    krl = home / "krl"
    argv = ["machine", "ca", "--krl", os.fspath(krl), "--revoke", str(certificate.serial)]
    assert CliRunner().invoke(app, argv, catch_exceptions=False).exit_code == 0
    (home / "ca.pub").write_text("\n".join(line for line in said.splitlines() if line.startswith("ecdsa")))
    files = {"/etc/ssh/dm_ca.pub": home / "ca.pub", "/etc/ssh/dm_revoked.krl": krl}
    lines = [line for line in said.splitlines() if line.partition(" ")[2] in files]
    assert [line.partition(" ")[0] for line in lines] == ["TrustedUserCAKeys", "RevokedKeys"]
    lines = [f"{name} {files[path]}" for name, _, path in (line.partition(" ") for line in lines)]
    with PrivateSshd(home / "sshd", extra=lines) as server:
        assert thief(own, server, OWN, []) == ONLY_SFTP
        assert thief(Stolen(own, key, certificate), server, OWN, []) == REFUSED
