"""An SSH agent in this process, for the OpenSSH client (draft-miller-ssh-agent): no key ever lies in a file.

Each connection to its socket, which is one login by one `ssh`, gets a new key and a new certificate; both are forgotten
when it ends. The agent lists that one certificate, signs with its key, and refuses all else.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import os
import secrets
import socket
import struct
import threading
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from datamanager.errors import DataManagerError, SettingsError
from datamanager.signing.signer import PersonLogin

_log = logging.getLogger(__name__)
_FAILURE, _LIST, _IDENTITIES, _SIGN, _SIGNATURE = 5, 11, 12, 13, 14
_MOST_MESSAGE = 65536
_PATIENCE = 600.0
"""Seconds for the next message of one login: connection attempts are bounded by ssh's own ConnectTimeout."""


class LoginAgent:
    """Serves a socket in a private directory until it is closed."""

    def __init__(self, login: PersonLogin, directory: Path) -> None:
        self._login = login
        self.path = directory / f"ag-{secrets.token_hex(6)}"
        self.error: DataManagerError | None = None
        """Why the last login got no certificate."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._socket.bind(os.fspath(self.path))
            self._socket.listen(64)
        except OSError as exc:
            self._socket.close()
            raise SettingsError(f"{directory}: no socket for SSH logins can be made there: {exc}") from exc
        threading.Thread(target=self._accept, name="dm-agent", daemon=True).start()

    def close(self) -> None:
        """Serve no more logins and remove the socket. Idempotent."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(client,), name="dm-login", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        key: Ed25519PrivateKey | None = None
        blob = b""
        with client, contextlib.suppress(OSError, EOFError, struct.error, IndexError):
            client.settimeout(_PATIENCE)
            _, user, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            if user != os.geteuid():
                return
            while True:
                message = _receive(client)
                answer = bytes([_FAILURE])
                if message[0] == _LIST:
                    if key is None:
                        key, blob = self._made()
                    if key is not None:
                        answer = bytes([_IDENTITIES]) + struct.pack(">L", 1) + _string(blob) + _string(b"")
                elif message[0] == _SIGN and key is not None:
                    wanted, rest = _split(message[1:])
                    data, _ = _split(rest)
                    if wanted == blob:
                        answer = bytes([_SIGNATURE]) + _string(_string(b"ssh-ed25519") + _string(key.sign(data)))
                client.sendall(_string(answer))

    def _made(self) -> tuple[Ed25519PrivateKey | None, bytes]:
        try:
            key, certificate = self._login.make()
        except DataManagerError as exc:
            _log.warning("%s: no certificate: %s", self._login.machine.name, exc.detail)
            self.error = exc
            return None, b""
        self.error = None
        return key, base64.b64decode(certificate.line.split()[1])


def _receive(client: socket.socket) -> bytes:
    (length,) = struct.unpack(">L", _exactly(client, 4))
    if not 0 < length <= _MOST_MESSAGE:
        raise EOFError
    return _exactly(client, length)


def _exactly(client: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = client.recv(count - len(data))
        if not piece:
            raise EOFError
        data += piece
    return data


def _split(data: bytes) -> tuple[bytes, bytes]:
    (length,) = struct.unpack_from(">L", data)
    return data[4 : 4 + length], data[4 + length :]


def _string(data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + data
