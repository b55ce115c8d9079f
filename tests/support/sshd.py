"""A private OpenSSH server on loopback: real host keys, a real login, nothing of the host's own configuration."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from datamanager.machines import Machine
from tests.support.ports import free_port
from tests.support.process import children_of, descendants_of, signal_each

START_TIMEOUT = 60.0
"""Seconds until a server that does not listen fails the test."""


def find_sshd() -> str:
    """Return the path of sshd; without one the test is skipped (in CI it fails)."""
    found = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")
    if found is None:
        if os.getenv("CI"):
            raise RuntimeError("sshd is not installed")
        pytest.skip("sshd is not installed")
    return found


def make_key(path: Path, kind: str = "ed25519") -> Path:
    """Make a key pair without a passphrase at `path` (and `path`.pub)."""
    argv = ["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", path.name, "-f", os.fspath(path)]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL)
    return path


class PrivateSshd:
    """One sshd with its own host key, one accepted client key and a known_hosts file that pins it.

    `extra` are further lines of sshd_config, put first because sshd takes the first value it meets; `path` is the PATH
    of its programs. A server can be stopped and started again; it keeps its port and its keys.
    """

    def __init__(
        self, directory: Path, *, extra: Sequence[str] = (), path: str | None = None, port: int | None = None
    ) -> None:
        self.directory = directory
        self.extra = list(extra)
        self.path = path
        self.env: dict[str, str] | None = None
        """The server's own environment, None: this process's."""
        self.host = "127.0.0.1"
        self.port = port or free_port()
        self.host_key = directory / "host_key"
        self.client_key = directory / "client_key"
        self.known_hosts = directory / "known_hosts"
        self.log = directory / "sshd.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server and return when it listens."""
        program = find_sshd()
        self._prepare()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [program, "-D", "-e", "-f", os.fspath(self.directory / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
            )
        self._wait_until_listening(self._process)

    def stop(self) -> None:
        """End the server and every session that it serves. Idempotent."""
        if self._process is None:
            return
        deadline = time.monotonic() + START_TIMEOUT
        while (sessions := self.descendants()) and time.monotonic() < deadline:
            signal_each(sessions, signal.SIGKILL)  # first, while the server is there to reap them
            time.sleep(0.02)
        self._process.terminate()
        self._process.wait(START_TIMEOUT)
        self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def machine(self, name: str, base_dir: Path | str, **overrides: Any) -> Machine:
        """Return a machine of this name whose storage is reached through this server."""
        values: dict[str, Any] = {
            "name": name,
            "transport": "sftp",
            "host": self.host,
            "port": self.port,
            "username": getpass.getuser(),
            "identity_file": self.client_key,
            "known_hosts": self.known_hosts,
            "base_dir": os.fspath(base_dir),
        }
        return Machine.model_validate(values | overrides)

    def known_host_line(self) -> str:
        """Return the known_hosts line of the server's own host key."""
        kind, key = self.host_key.with_suffix(".pub").read_text().split()[:2]
        return f"[{self.host}]:{self.port} {kind} {key}\n"

    @property
    def pid(self) -> int:
        """The server's own pid."""
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process.pid

    def children(self) -> list[int]:
        """Return the pids of the processes that serve a connection each."""
        return [] if self._process is None else children_of(self._process.pid)

    def descendants(self) -> list[int]:
        """Return the pids of all processes below the server: sessions, SFTP servers, remote programs."""
        return [] if self._process is None else descendants_of(self._process.pid)

    def _prepare(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # privilege separation's empty directory
        for key in (self.host_key, self.client_key):
            if not key.exists():
                make_key(key)
        authorized = self.directory / "authorized_keys"
        shutil.copyfile(self.client_key.with_suffix(".pub"), authorized)
        if not self.known_hosts.exists():
            self.known_hosts.write_text(self.known_host_line())
        # what stands in the user's own .bashrc must neither be waited for, nor be killed in the middle of its work
        variables = {"HOME": os.fspath(self.directory)} | ({} if self.path is None else {"PATH": self.path})
        lines = [
            *self.extra,
            "SetEnv " + " ".join(f'"{name}={value}"' for name, value in variables.items()),
            # the default, sntrup761, costs 0.2 s of CPU a connection
            "KexAlgorithms curve25519-sha256,curve25519-sha256@libssh.org,ecdh-sha2-nistp256",
            f"ListenAddress {self.host}:{self.port}",
            f'HostKey "{self.host_key}"',
            f'AuthorizedKeysFile "{authorized}"',
            "PidFile none",
            "UsePAM no",
            "StrictModes no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "UseDNS no",
            "MaxStartups 200",
            "MaxSessions 100",
            "LogLevel VERBOSE",
            "Subsystem sftp internal-sftp",
        ]
        (self.directory / "sshd_config").write_text("\n".join(lines) + "\n")

    def _wait_until_listening(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection((self.host, self.port), 1):
                return
            time.sleep(0.02)
        process.kill()
        raise RuntimeError(f"sshd does not listen on port {self.port}:\n{self.log.read_text()[-4000:]}")
