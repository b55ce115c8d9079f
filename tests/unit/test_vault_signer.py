"""Vault's SSH engine as the signer: a real HTTP server on loopback that keeps what it is sent."""

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
from datamanager.machines import ActsAs, Machine, TransportKind
from datamanager.signing.builtin_ca import BuiltinCa, create_key
from datamanager.signing.certificate import CertificateRequest, Person, request_for
from datamanager.signing.vault_signer import VaultSigner


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


def test_a_token_open_to_others_and_plain_http_elsewhere_are_refused(
    server: Server, token: Path, asked: CertificateRequest
) -> None:
    token.chmod(0o644)
    with pytest.raises(SettingsError, match="accessible"):
        signer(server, token).sign(asked)
    with pytest.raises(SettingsError, match="https"):
        VaultSigner("http://vault.example", "mover", token)
