"""Host keys are always checked, alike by both connections; pinning is safe."""

from __future__ import annotations

import base64
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import paramiko
import pytest

from datamanager.errors import HostKeyMismatch, MachineUnavailable
from datamanager.transports.factory import open_storage
from datamanager.transports.ssh.keyscan import fetch_host_keys, pin
from tests.contract.conftest import MachineMaker
from tests.support.ports import free_port
from tests.support.sshd import PrivateSshd, make_key

Lines = Callable[[PrivateSshd, Path], str]


def other_key(folder: Path) -> str:
    return " ".join(make_key(folder / "other").with_suffix(".pub").read_text().split()[:2])


def key_of(server: PrivateSshd) -> str:
    return server.known_host_line().split(" ", 1)[1].strip()


def hashed(server: PrivateSshd, folder: Path) -> str:
    file = folder / "hashed"
    file.write_text(server.known_host_line())
    subprocess.run(["ssh-keygen", "-H", "-f", file], check=True, capture_output=True)
    text = file.read_text()
    assert text.startswith("|1|")
    return text


ACCEPTED: dict[str, Lines] = {
    "plain": lambda server, _: server.known_host_line(),
    "hashed": hashed,
    "among others": lambda server, folder: (
        f"# text\n\n[{server.host}]:{server.port} {other_key(folder)}\n" + server.known_host_line()
    ),
    "pattern": lambda server, _: f"!*.example,[127.0.0.?]:{server.port} {key_of(server)} comment\n",
    "several names": lambda server, _: f"some.where,[{server.host}]:{server.port},other {key_of(server)}\n",
}
REFUSED: dict[str, tuple[Lines, str]] = {
    "nothing": (lambda *_: "", "run: dm machine trust remote"),
    "another port": (lambda server, _: f"[{server.host}]:1 {key_of(server)}\n", "dm machine trust"),
    "another host": (lambda server, _: f"[127.0.0.9]:{server.port} {key_of(server)}\n", "dm machine trust"),
    "changed": (lambda server, folder: f"[{server.host}]:{server.port} {other_key(folder)}\n", "differs"),
    "revoked": (lambda server, _: f"@revoked * {key_of(server)}\n{server.known_host_line()}", "revoked"),
    "excluded": (lambda server, _: "!*127.0.0.1*,* " + key_of(server) + "\n", "dm machine trust"),
    "only an authority": (lambda server, folder: f"@cert-authority * {other_key(folder)}\n", "host"),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_known_key_is_accepted(
    ssh_machine: MachineMaker, server: PrivateSshd, tmp_path: Path, control_dir: Path, name: str
) -> None:
    known = tmp_path / "known hosts"  # a blank in the name
    known.write_text(ACCEPTED[name](server, tmp_path))
    storage = open_storage(ssh_machine(known_hosts=known), control_dir=control_dir)
    with storage.session() as session:
        session.stat("/")
    storage.close()


@pytest.mark.attack(cwe=322, title="A machine shows another host key")
@pytest.mark.parametrize("name", REFUSED)
def test_every_other_key_is_refused(
    ssh_machine: MachineMaker, server: PrivateSshd, tmp_path: Path, control_dir: Path, name: str
) -> None:
    lines, words = REFUSED[name]
    known = tmp_path / "known"
    before = lines(server, tmp_path)
    known.write_text(before)
    storage = open_storage(ssh_machine(known_hosts=known), control_dir=control_dir)
    with pytest.raises(HostKeyMismatch, match=words), storage.session():
        pass
    storage.close()
    assert known.read_text() == before


def test_the_user_s_file_of_our_own_is_missing(ssh_machine: MachineMaker, tmp_path: Path, control_dir: Path) -> None:
    storage = open_storage(ssh_machine(known_hosts=tmp_path / "none"), control_dir=control_dir)
    with pytest.raises(HostKeyMismatch), storage.session():
        pass
    storage.close()


@pytest.mark.server
def test_a_host_certificate_needs_openssh(tmp_path: Path, control_dir: Path) -> None:
    """OpenSSH accepts a certificate of a known authority; paramiko can't check one, and refuses instead of guessing."""
    authority = make_key(tmp_path / "authority")
    with PrivateSshd(tmp_path / "sshd") as first:
        pass
    subprocess.run(
        ["ssh-keygen", "-q", "-s", authority, "-I", "host", "-h", "-n", first.host, first.host_key], check=True
    )
    certificate = first.host_key.with_name("host_key-cert.pub")
    known = tmp_path / "known"
    known.write_text(f"@cert-authority * {authority.with_suffix('.pub').read_text()}")
    with PrivateSshd(tmp_path / "sshd", extra=[f'HostCertificate "{certificate}"']) as server:
        machine = server.machine("remote", tmp_path, known_hosts=known, connection="openssh")
        storage = open_storage(machine, control_dir=control_dir)
        with storage.session() as session:
            session.stat("/")
        storage.close()
        machine = server.machine("remote", tmp_path, known_hosts=known, connection="paramiko")
        storage = open_storage(machine, control_dir=control_dir)
        with pytest.raises(HostKeyMismatch, match="openssh"), storage.session():
            pass
        storage.close()


@pytest.mark.parametrize("connection", ["openssh", "paramiko"])
def test_a_server_is_asked_for_the_key_that_is_known(tmp_path: Path, control_dir: Path, connection: str) -> None:
    """A server with several keys shows its favourite one; only another one is known."""
    (tmp_path / "sshd").mkdir()
    second = make_key(tmp_path / "sshd" / "second", "ecdsa")
    with PrivateSshd(tmp_path / "sshd", extra=[f'HostKey "{second}"']) as server:
        kind, key = second.with_suffix(".pub").read_text().split()[:2]
        known = tmp_path / "known"
        known.write_text(f"[{server.host}]:{server.port} {kind} {key}\n")
        machine = server.machine("remote", tmp_path, known_hosts=known, connection=connection)
        storage = open_storage(machine, control_dir=control_dir)
        with storage.session() as session:
            session.stat("/")
        storage.close()
        assert {one.get_name() for one in fetch_host_keys(machine)} == {"ssh-ed25519", "ecdsa-sha2-nistp256"}


def test_fetch_shows_what_ssh_shows_and_pin_makes_it_known(
    ssh_machine: MachineMaker, server: PrivateSshd, tmp_path: Path, control_dir: Path
) -> None:
    known = tmp_path / "new" / "known_hosts"
    machine = ssh_machine(known_hosts=known, identity_file=tmp_path / "no login needed")
    (key,) = fetch_host_keys(machine)
    shown = subprocess.run(["ssh-keygen", "-l", "-f", server.host_key], check=True, capture_output=True, text=True)
    assert key.fingerprint == shown.stdout.split()[1]
    assert pin(machine, key, known)
    assert not pin(machine, key, known)
    assert known.read_text() == server.known_host_line()
    assert known.stat().st_mode & 0o777 == 0o600
    storage = open_storage(ssh_machine(known_hosts=known), control_dir=control_dir)
    with storage.session() as session:
        session.stat("/")
    storage.close()


def test_fetch_from_nobody(ssh_machine: MachineMaker) -> None:
    with pytest.raises(MachineUnavailable):
        fetch_host_keys(ssh_machine(port=free_port()))


def test_pin_keeps_what_is_there(ssh_machine: MachineMaker, server: PrivateSshd, tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"# no newline at the end \xff")
    link.symlink_to(real)
    machine = ssh_machine()
    kind, text = key_of(server).split()
    key = paramiko.PKey.from_type_string(kind, base64.b64decode(text))
    threads = [threading.Thread(target=pin, args=(machine, key, link)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert real.read_bytes() == b"# no newline at the end \xff\n" + server.known_host_line().encode()
    assert link.is_symlink()
    real.write_text(hashed(server, tmp_path))
    assert not pin(machine, key, link)
