"""Servers on loopback that come with rclone: S3, which checks signatures, WebDAV, and SFTP by Go's pkg/sftp."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from datamanager.machines import Machine
from tests.support.ports import free_port
from tests.support.process import Process
from tests.support.programs import listens
from tests.support.sshd import make_key

START_TIMEOUT = 60.0
"""Seconds until a server that does not listen fails the test."""
ACCESS_KEY, SECRET_KEY = "TESTACCESSKEY", "a/secret+key/of/the/server"
USER, PASSWORD = "fetcher", "a pass phrase of the server"


class Rclone:
    """Serves `root` by a protocol of `rclone serve`; changes below `root` are seen at once."""

    def __init__(self, directory: Path, protocol: str, *arguments: str) -> None:
        self.root = directory / "root"
        self.root.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        program = Path(sys.executable).parent / "rclone"  # of the package; a system's own one may be too old
        command = [
            *(os.fspath(program), "serve", protocol, os.fspath(self.root), "--addr", f"127.0.0.1:{self.port}"),
            *("--config", "/dev/null", "--dir-cache-time", "0s", "--vfs-cache-mode", "off", *arguments),
        ]
        self.process = Process(command, log=directory / "rclone.log")

    def __enter__(self) -> Self:
        self.process.start()
        self.process.wait_until(lambda: listens(self.port), START_TIMEOUT)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.process.stop()


def s3(directory: Path, *, keys: bool = True) -> Rclone:
    """Return an S3 server whose buckets are the directories below its root; without keys everybody may read."""
    return Rclone(directory, "s3", *(("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}") if keys else ()))


def webdav(directory: Path) -> Rclone:
    """Return a WebDAV server that wants a login."""
    return Rclone(directory, "webdav", "--user", USER, "--pass", PASSWORD)


class RcloneSftp(Rclone):
    """An SFTP server with pinned keys. It replaces by a plain RENAME, announces hard links that don't work, keeps no
    modes and has no fsync."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.client_key, host_key = make_key(directory / "client_key"), make_key(directory / "host_key")
        public = os.fspath(self.client_key.with_suffix(".pub"))
        super().__init__(directory, "sftp", "--authorized-keys", public, "--user", USER, "--key", os.fspath(host_key))
        self.known_hosts = directory / "known_hosts"
        key = " ".join(host_key.with_suffix(".pub").read_text().split()[:2])
        self.known_hosts.write_text(f"[127.0.0.1]:{self.port} {key}\n")

    def machine(self, name: str, base_dir: str = "/", **overrides: Any) -> Machine:
        """Return a machine whose storage is reached through this server; `root` is its `/`."""
        values = {
            "name": name,
            "transport": "sftp",
            "host": "127.0.0.1",
            "port": self.port,
            "username": USER,
            "identity_file": self.client_key,
            "known_hosts": self.known_hosts,
            "base_dir": base_dir,
        }
        return Machine.model_validate(values | overrides)
