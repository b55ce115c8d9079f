"""An SFTP server on loopback whose file system takes names that differ in case or Unicode form only for the same, as
those of macOS and Windows do, and shows a directory under a second name, as a bind mount does. It tells neither: paths
are resolved by their text, and there is no shell.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Self

import paramiko
from paramiko.common import AUTH_FAILED, AUTH_SUCCESSFUL
from paramiko.message import Message
from paramiko.sftp import CMD_VERSION, SFTP_FAILURE, SFTP_OK

from datamanager.domain.location import folded
from datamanager.machines import Machine
from tests.support.sftp_listener import SftpListener
from tests.support.sshd import make_key


class FoldingSftp(SftpListener):
    """Serves `root` as "/"; its directories `second` are names of others: alias → directory. `folds`: see above."""

    def __init__(self, directory: Path, *, folds: bool, second: dict[str, str] | None = None) -> None:
        super().__init__()
        self.root = directory / "root"
        self.root.mkdir(parents=True)
        self.folds = folds
        self.second = second or {}
        self._client_key = make_key(directory / "client_key")
        self._known_hosts = directory / "known_hosts"

    def __enter__(self) -> Self:
        name, key = self.key.get_name(), self.key.get_base64()
        self._known_hosts.write_text(f"[127.0.0.1]:{self.port} {name} {key}\n")
        return super().__enter__()

    def machine(self, name: str, base_dir: str = "/", **keys: Any) -> Machine:
        """Return a machine whose storage is reached through this server."""
        values: dict[str, Any] = {
            "name": name,
            "transport": "sftp",
            "host": "127.0.0.1",
            "port": self.port,
            "username": "tester",
            "identity_file": self._client_key,
            "known_hosts": self._known_hosts,
            "connection": "paramiko",
            "base_dir": base_dir,
        }
        return Machine.model_validate(values | keys)

    def real(self, path: str) -> str:
        """Return where a path of clients is."""
        found = os.fspath(self.root)
        for part in path.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape").split("/"):
            if part in ("", "."):
                continue
            name = self.second.get(part, part)
            if self.folds and not os.path.lexists(os.path.join(found, name)):
                with contextlib.suppress(OSError):
                    name = next((one for one in os.listdir(found) if folded(one) == folded(name)), name)
            found = os.path.join(found, name)
        return found

    def check_auth_publickey(self, username: str, key: paramiko.PKey) -> int:
        """Accept the one key."""
        known = self._client_key.with_suffix(".pub").read_text().split()[1]
        return AUTH_SUCCESSFUL if key.get_base64() == known else AUTH_FAILED

    def get_allowed_auths(self, username: str) -> str:
        """Keys only."""
        return "publickey"


class _Server(paramiko.SFTPServer):
    """Advertises the rename that replaces."""

    def _send_server_version(self) -> int:
        self._read_packet()  # type: ignore[attr-defined]
        answer = Message()
        answer.add_int(3)
        answer.add_string("posix-rename@openssh.com")
        answer.add_string("1")
        self._send_packet(CMD_VERSION, answer)  # type: ignore[attr-defined]
        return 3


class FileSystem(paramiko.SFTPServerInterface):
    """The files below `root`."""

    """The files below `root`."""

    def __init__(self, _server: paramiko.ServerInterface, served: FoldingSftp) -> None:
        self._real = served.real

    def list_folder(self, path: str) -> list[paramiko.SFTPAttributes] | int:
        try:
            with os.scandir(self._real(path)) as entries:
                found = [(entry.stat(follow_symlinks=False), entry.name) for entry in entries]
                return [paramiko.SFTPAttributes.from_stat(stat, name) for stat, name in found]
        except OSError as exc:
            return _status(exc)

    def stat(self, path: str) -> paramiko.SFTPAttributes | int:
        try:
            return paramiko.SFTPAttributes.from_stat(os.stat(self._real(path)))
        except OSError as exc:
            return _status(exc)

    def lstat(self, path: str) -> paramiko.SFTPAttributes | int:
        try:
            return paramiko.SFTPAttributes.from_stat(os.lstat(self._real(path)))
        except OSError as exc:
            return _status(exc)

    def open(self, path: str, flags: int, attr: paramiko.SFTPAttributes) -> paramiko.SFTPHandle | int:
        try:
            number = os.open(self._real(path), flags, attr.st_mode or 0o600)
            mode = "r+b" if flags & os.O_RDWR else "wb" if flags & os.O_WRONLY else "rb"
            file = os.fdopen(number, mode)
        except OSError as exc:
            return _status(exc)
        handle = _Handle(flags)
        handle.readfile = handle.writefile = file  # type: ignore[attr-defined]
        return handle

    def remove(self, path: str) -> int:
        return _done(os.remove, self._real(path))

    def rename(self, oldpath: str, newpath: str) -> int:
        source, target = self._real(oldpath), self._real(newpath)
        return SFTP_FAILURE if os.path.lexists(target) else _done(os.rename, source, target)

    def posix_rename(self, oldpath: str, newpath: str) -> int:
        return _done(os.replace, self._real(oldpath), self._real(newpath))

    def mkdir(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        return _done(os.mkdir, self._real(path))

    def chattr(self, path: str, attr: paramiko.SFTPAttributes) -> int:
        return _done(paramiko.SFTPServer.set_file_attr, self._real(path), attr)


class _Handle(paramiko.SFTPHandle):
    def stat(self) -> paramiko.SFTPAttributes | int:
        return paramiko.SFTPAttributes.from_stat(os.fstat(self.readfile.fileno()))  # type: ignore[attr-defined]

    def chattr(self, attr: paramiko.SFTPAttributes) -> int:
        self.writefile.flush()  # type: ignore[attr-defined]
        return _done(paramiko.SFTPServer.set_file_attr, self.writefile.name, attr)  # type: ignore[attr-defined]


def _done(work: Any, *arguments: Any) -> int:
    try:
        work(*arguments)
    except OSError as exc:
        return _status(exc)
    return SFTP_OK


def _status(error: OSError) -> int:
    return paramiko.SFTPServer.convert_errno(error.errno or 0)


FoldingSftp.server, FoldingSftp.files = _Server, FileSystem
