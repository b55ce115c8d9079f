"""An SFTP server on loopback with a password login; its one file is what a test makes of it: lies, pauses, gaps."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import TracebackType

import paramiko
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL
from paramiko.sftp import SFTP_EOF

from tests.support.sftp_listener import SftpListener

USER, PASSWORD = "fetcher", "a pass phrase of the server"

Read = Callable[[int, int], bytes | int]
"""Answers a read (offset, length) with bytes or an SFTP status."""


def honest(body: bytes) -> Read:
    """Return what reads `body` as it is."""
    return lambda offset, length: body[offset : offset + length] or SFTP_EOF


class OddSftp(SftpListener):
    """Serves one file at every path; `size`, `mtime`, `mode` and `read` may be changed at any time."""

    def __init__(self, body: bytes = b"") -> None:
        super().__init__()
        self.size, self.mtime, self.mode = len(body), 1_600_000_000, 0o100644
        self.read: Read = honest(body)
        self.subsystem = True
        """Whether a request for the SFTP server is answered."""
        self.paths: list[str] = []
        """What was opened."""
        self.host_key = f"{self.key.get_name()} {self.key.get_base64()}"
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        """The URL of the file."""
        return f"sftp://127.0.0.1:{self.port}/file"

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.ended.set()
        super().__exit__(kind, exc, tb)

    def check_auth_password(self, username: str, password: str) -> int:
        """Accept the one login."""
        good = (username, password) == (USER, PASSWORD)
        return AUTH_SUCCESSFUL if good else AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        """Passwords only."""
        return "password"

    def check_channel_subsystem_request(self, channel: paramiko.Channel, name: str) -> bool:
        """Start the SFTP server, or answer only when the test is over."""
        if not self.subsystem:
            self.ended.wait()
            return False
        return super().check_channel_subsystem_request(channel, name)

    def attributes(self) -> paramiko.SFTPAttributes:
        """Return the file's."""
        attributes = paramiko.SFTPAttributes()
        attributes.st_size, attributes.st_mode = self.size, self.mode
        attributes.st_atime = attributes.st_mtime = self.mtime
        return attributes


class _Files(paramiko.SFTPServerInterface):
    def __init__(self, _server: paramiko.ServerInterface, odd: OddSftp) -> None:
        self._odd = odd

    def stat(self, path: str) -> paramiko.SFTPAttributes:
        return self._odd.attributes()

    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> paramiko.SFTPHandle:
        self._odd.paths.append(path)
        return _Handle(self._odd)


class _Handle(paramiko.SFTPHandle):
    def __init__(self, odd: OddSftp) -> None:
        super().__init__()
        self._odd = odd

    def stat(self) -> paramiko.SFTPAttributes:
        return self._odd.attributes()

    def read(self, offset: int, length: int) -> bytes | int:
        return self._odd.read(offset, length)


OddSftp.files = _Files
