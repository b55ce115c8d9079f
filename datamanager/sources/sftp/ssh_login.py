"""An SSH connection to a host that is no configured machine: its host key must be known, the login is the request's.

No agent, key file or configuration of the mover's user is used; of that user's files only known_hosts is read.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.ssh_exception import IncompatiblePeer

from datamanager.errors import AuthenticationFailed, ConnectionLost, DownloadFailed, HostKeyMismatch, TransportTimeout
from datamanager.known_hosts import DEFAULT_FILES, entry_name, fingerprint, lines_for, signature_algorithms
from datamanager.sources.terms.source_options import option_error
from datamanager.sources.terms.urls import FileUrl
from datamanager.transports.ssh.paramiko import exchange_keys

_WINDOW = 4 * 2**20
"""Bytes that the server may send ahead."""
_KEYS: tuple[type[paramiko.PKey], ...] = (paramiko.Ed25519Key, paramiko.ECDSAKey, paramiko.RSAKey)


@dataclass(frozen=True, slots=True)
class Login:
    """The login on the server. A key is tried before the password."""

    username: str
    password: str | None = field(default=None, repr=False)
    private_key: paramiko.PKey | None = field(default=None, repr=False)


class TrustedKeys:
    """The host keys that a host may show: the one that the request gives, else those of the known_hosts files.

    `host_key` is `type base64` as in known_hosts, or a fingerprint (`SHA256:…`).

    Raises: InvalidRequest for a host key that can't be read.
    """

    def __init__(self, url: FileUrl, host_key: str | None, files: Sequence[Path] | None = None) -> None:
        self._shown = url.shown
        self._fingerprint = host_key.strip().rstrip("=") if host_key and host_key.startswith("SHA256:") else None
        self._revoked: set[bytes] = set()
        self._known: dict[bytes, str] = {}
        if host_key is not None and self._fingerprint is None:
            key_type, blob = _parse_key(host_key)
            self._known[blob] = key_type
        elif host_key is None:
            paths = [file.expanduser() for file in DEFAULT_FILES] if files is None else files
            lines = lines_for(entry_name(url.host, url.port), paths)
            self._revoked = {line.key for line in lines if line.marker == "@revoked"}
            self._known = {line.key: line.type for line in lines if not line.marker}

    def algorithms(self) -> list[str]:
        """Return the signature algorithms of the known keys, so that the server shows one that we know."""
        return [name for one in dict.fromkeys(self._known.values()) for name in signature_algorithms(one)]

    def check(self, key: paramiko.PKey) -> None:
        """Return when the key is trusted. Raises: HostKeyMismatch."""
        blob = key.asbytes()
        shows = f"{self._shown} shows the {key.get_name()} key {fingerprint(blob)}"
        if blob in self._revoked:
            raise HostKeyMismatch(f"{shows}, which is revoked")
        if blob in self._known or fingerprint(blob) == self._fingerprint:
            return
        if self._known or self._fingerprint is not None:
            raise HostKeyMismatch(f"{shows}, which is not the trusted one")
        raise HostKeyMismatch(f"{shows}, which is not known; if it is the right one, give it as the option host_key")


def _parse_key(text: str) -> tuple[str, bytes]:
    """Return the type and the bytes of a public key (`type base64 comment`). Raises: InvalidRequest."""
    fields = text.split()
    with contextlib.suppress(binascii.Error, ValueError):
        blob = base64.b64decode(fields[1] if len(fields) > 1 else "", validate=True)
        name = fields[0].encode() if fields else b""
        if blob.startswith(len(name).to_bytes(4, "big") + name):
            return fields[0], blob
    raise option_error("host_key", "must be like 'ssh-ed25519 AAAA…' or 'SHA256:…'")


def parse_private_key(text: str) -> paramiko.PKey:
    """Return the key written in `text` (OpenSSH's form or PEM). Raises: InvalidRequest, which quotes nothing of it."""
    for kind in _KEYS:
        with contextlib.suppress(paramiko.SSHException, ValueError, TypeError, IndexError, UnsupportedAlgorithm):
            return kind.from_private_key(io.StringIO(text))
    raise option_error(
        "private_key", "must be an Ed25519, ECDSA or RSA key without a passphrase, as OpenSSH or PEM text"
    )


@contextlib.contextmanager
def logged_in(
    sock: socket.socket, url: FileUrl, trusted: TrustedKeys, login: Login, timeout: float
) -> Iterator[paramiko.Transport]:
    """Exchange keys, check the host's, log in; the connection is closed at the end. `timeout` is seconds, per step.

    Raises: HostKeyMismatch, AuthenticationFailed, ConnectionLost, TransportTimeout, DownloadFailed.
    """
    try:
        with ssh_errors(url.shown):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            transport = paramiko.Transport(sock, default_window_size=_WINDOW)
    except BaseException:
        sock.close()
        raise
    try:
        with ssh_errors(url.shown):
            exchange_keys(transport, trusted.algorithms(), timeout)
            if not transport.initial_kex_done:  # start_client comes back then, too
                raise TransportTimeout(f"{url.shown}: no SSH connection within {timeout:g} seconds")
            trusted.check(transport.get_remote_server_key())
            _log_in(transport, url, login)
        yield transport
    finally:
        transport.close()
        transport.join(timeout)


def _log_in(transport: paramiko.Transport, url: FileUrl, login: Login) -> None:
    """Offer the key, then the password; the server may want both."""
    needed: list[str] = ["something"]
    offers = 0
    if login.private_key is not None:
        offers += 1
        with contextlib.suppress(paramiko.AuthenticationException):
            needed = transport.auth_publickey(login.username, login.private_key)
    if needed and login.password is not None:
        offers += 1
        with contextlib.suppress(paramiko.AuthenticationException):
            needed = transport.auth_password(login.username, login.password)
    if not offers:
        with contextlib.suppress(paramiko.AuthenticationException):
            transport.auth_none(login.username)
    if not transport.is_active():  # to paramiko that is a refused login, too
        raise ConnectionLost(f"{url.shown}: the server closed the connection in the login")
    if not transport.is_authenticated():
        raise AuthenticationFailed(f"{url.shown}: the server refused the login")


@contextlib.contextmanager
def ssh_errors(shown: str) -> Iterator[None]:
    """Raise our errors for paramiko's; `shown` is a `public_url`. Their texts may be the server's and are left out."""
    try:
        yield
    except TimeoutError as exc:
        raise TransportTimeout(
            f"{shown} did not answer, or stalled, or sent too slowly ({type(exc).__name__})"
        ) from exc
    except IncompatiblePeer as exc:
        raise DownloadFailed(f"{shown}: no algorithm in common with the SSH server") from exc
    except (paramiko.SSHException, EOFError, OSError) as exc:
        raise ConnectionLost(f"the SSH connection to {shown} broke ({type(exc).__name__})") from exc
