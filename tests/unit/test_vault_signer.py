"""Vault's SSH engine as the signer: a real server on loopback, with and without TLS, that keeps what it is sent."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from datamanager.errors import SettingsError, SigningFailed, SigningUnavailable
from datamanager.machines import ActsAs, Machine, Machines, TransportKind
from datamanager.settings import load_settings
from datamanager.signing.builtin_ca import BuiltinCa, create_key
from datamanager.signing.certificate import CertificateRequest, Person, request_for
from datamanager.signing.configured import signer_for, signer_of
from datamanager.signing.vault_signer import VaultSigner
from tests.support.authority import Authority


class Server(ThreadingHTTPServer):
    status = 200
    answer = b""
    seen: tuple[str, str | None, dict[str, object]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen = (self.path, self.headers["X-Vault-Token"], body)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def do_GET(self) -> None:
        self.server.seen = (self.path, self.headers["X-Vault-Token"], {})
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.answer)))
        self.end_headers()
        self.wfile.write(self.server.answer)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def tls_server(server: Server, authority: Authority) -> Server:
    """The same server behind TLS, for `localhost` only."""
    server.socket = authority.server_context("localhost").wrap_socket(server.socket, server_side=True)
    return server


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.touch(mode=0o600)
    path.write_text("s.abc\n")
    return path


@pytest.fixture
def ca(tmp_path: Path) -> BuiltinCa:
    create_key(tmp_path / "ca")
    return BuiltinCa(tmp_path / "ca")


@pytest.fixture
def asked() -> CertificateRequest:
    key = Ed25519PrivateKey.generate().public_key()
    machine = Machine(name="m", transport=TransportKind.SFTP, host="m", base_dir="/", acts_as=ActsAs.CALLER)
    return request_for(Person("alice", "17", "a@site"), machine, key, ("10.0.0.1",), now=datetime.now(UTC))


def signer(server: Server, token: Path) -> VaultSigner:
    return VaultSigner(f"http://127.0.0.1:{server.server_port}", "mover", token)


def signed(ca: BuiltinCa, request: CertificateRequest) -> bytes:
    return json.dumps({"data": {"signed_key": ca.sign(request).line + "\n"}}).encode()


def test_the_request_says_all_limits(server: Server, token: Path, ca: BuiltinCa, asked: CertificateRequest) -> None:
    server.answer = signed(ca, asked)
    assert signer(server, token).sign(asked).serial == asked.serial
    path, sent_token, body = server.seen
    assert (path, sent_token) == ("/v1/ssh/sign/mover", "s.abc")
    assert body == {
        "public_key": asked.public_line,
        "cert_type": "user",
        "valid_principals": "alice",
        "key_id": "dm:17:a@site",
        "ttl": "300s",
        "critical_options": {"force-command": "internal-sftp", "source-address": "10.0.0.1"},
        "extensions": {},
    }


@pytest.mark.parametrize(
    "change", [{"principal": "bob"}, {"force_command": None}, {"source_addresses": ("0.0.0.0/0",)}, {"key_id": "dm"}]
)
def test_a_certificate_that_says_more_is_refused(
    server: Server, token: Path, ca: BuiltinCa, asked: CertificateRequest, change: dict[str, object]
) -> None:
    server.answer = signed(ca, dataclasses.replace(asked, **change))  # type: ignore[arg-type]
    with pytest.raises(SigningFailed, match="differs"):
        signer(server, token).sign(asked)


@pytest.mark.parametrize(
    ("status", "answer", "error"),
    [
        (403, b"s.abc", SigningFailed),
        (503, b"", SigningUnavailable),
        (200, b"{}", SigningFailed),
        (200, b"x" * 70000, SigningFailed),
    ],
)
def test_other_answers_are_errors(
    server: Server, token: Path, asked: CertificateRequest, status: int, answer: bytes, error: type[Exception]
) -> None:
    server.status, server.answer = status, answer
    with pytest.raises(error) as raised:
        signer(server, token).sign(asked)
    assert "s.abc" not in str(raised.value)


def test_tls_is_verified_with_the_authorities_of_the_setting(
    tls_server: Server, authority: Authority, token: Path, ca: BuiltinCa, asked: CertificateRequest, tmp_path: Path
) -> None:
    tls_server.answer = signed(ca, asked)
    url = f"https://localhost:{tls_server.server_port}"
    assert VaultSigner(url, "mover", token, ca_file=authority.ca_file).sign(asked).serial == asked.serial
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other", "Another authority").ca_file
    elsewhere = f"https://127.0.0.1:{tls_server.server_port}"  # the certificate is for another name
    for where, file in ((url, other), (url, None), (elsewhere, authority.ca_file)):
        del tls_server.seen
        with pytest.raises(SigningUnavailable, match="SSLCertVerificationError"):
            VaultSigner(where, "mover", token, ca_file=file).sign(asked)
        assert not hasattr(tls_server, "seen")  # the token was not sent
        tls_server.seen = ("", None, {})


def test_a_file_of_authorities_that_is_none_stops_the_start(token: Path, tmp_path: Path) -> None:
    for file in (tmp_path / "missing", token):
        with pytest.raises(SettingsError, match="authorities"):
            VaultSigner("https://vault.example", "mover", token, ca_file=file)


def test_the_authoritys_public_half_is_read_from_the_server(server: Server, token: Path, ca: BuiltinCa) -> None:
    server.answer = ca.public_line.encode() + b"\n"
    assert signer(server, token).public_line.split() == ca.public_line.split()[:2]
    assert server.seen[0] == "/v1/ssh/public_key"
    server.answer = b"\xff"
    with pytest.raises(SigningFailed):
        _ = signer(server, token).public_line


def test_the_settings_choose_the_signer(tmp_path: Path, token: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert signer_of(load_settings(home=home)) is None
    callers = Machines({"m": Machine(name="m", transport=TransportKind.SFTP, host="m", base_dir="/", acts_as="caller")})
    with pytest.raises(SettingsError, match="dm machine ca"):
        signer_for(load_settings(home=home), callers)
    create_key(home / "ssh-ca.key")
    assert isinstance(signer_for(load_settings(home=home), callers), BuiltinCa)
    shared = Machines({"m": callers["m"].model_copy(update={"acts_as": ActsAs.SHARED})})
    assert signer_for(load_settings(home=home, ssh_ca=tmp_path / "missing"), shared) is None
    vault = {"vault_url": "https://vault.example", "vault_role": "mover", "vault_token": token}
    assert isinstance(signer_of(load_settings(home=home, **vault)), VaultSigner)
    with pytest.raises(SettingsError, match="set together"):
        load_settings(home=home, vault_url="https://vault.example")


def test_a_token_open_to_others_and_plain_http_elsewhere_are_refused(
    server: Server, token: Path, asked: CertificateRequest
) -> None:
    token.chmod(0o644)
    with pytest.raises(SettingsError, match="accessible"):
        signer(server, token).sign(asked)
    with pytest.raises(SettingsError, match="https"):
        VaultSigner("http://vault.example", "mover", token)
