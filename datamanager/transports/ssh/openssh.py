"""SFTP channels through the system's OpenSSH client: `ssh -s host sftp` as a subprocess.

It brings ~/.ssh/config, ProxyJump, GSSAPI, FIDO keys and fast ciphers. One connection carries up to eight channels
(ControlMaster; sshd's MaxSessions is 10); over a long path, where each connection's window counts, a channel gets one
of its own while the machine has fewer than it may have. The master that ssh leaves in the background ends by itself two
seconds after its last channel, and every client ends when its standard input closes: a mover that dies leaves none
behind.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import select
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datamanager.errors import DataManagerError, RemoteFailure, TransportError
from datamanager.machines import Machine
from datamanager.signing.agent import LoginAgent
from datamanager.signing.signer import PersonLogin
from datamanager.transports.channel import LONG_PATH, NOT_ALLOWED, Channel, RemoteProgram
from datamanager.transports.ssh.openssh_client import OpenSshProgram, classify, login_words, start_ssh
from datamanager.transports.values import Bytes

_log = logging.getLogger(__name__)

_CHANNELS_PER_MASTER = 8
_SOCKET_BUFFER = 1 << 21
_LONGEST_CONTROL_PATH = 80
"""A Unix socket's path has at most 107 bytes, and ssh appends 17 while it binds."""
_STDERR_KEPT = 8192
_LOOK_EVERY = 0.002
"""Seconds between looks for a control socket."""
_GRACE = 2.0
"""Seconds for ssh to end after its input closed, before it is killed."""


class OpenSshConnector:
    """Opens channels to one machine. Safe to share between threads."""

    def __init__(self, machine: Machine, control_dir: Path, login: PersonLogin | None = None) -> None:
        self.sftp_only = login is not None and not machine.allow_programs
        """Whether our certificates allow no programs."""
        self.agent = None if login is None else LoginAgent(login, control_dir)
        self.round_trip = 0.0
        self._machine = machine
        self._masters: list[_Master] = []
        self._lock = threading.Lock()
        self._control_dir: Path | None = control_dir
        if len(os.fsencode(control_dir)) + 18 > _LONGEST_CONTROL_PATH:
            _log.warning("%s is too long for control sockets: every channel makes its own connection", control_dir)
            self._control_dir = None

    def open_channel(self) -> Channel:
        """Start ssh. Whether it gets through shows when the SFTP server speaks, or in the channel's `start_error`."""
        with self._lock:
            master = self._master()
            is_first = not master.channels
            master.channels += 1
            if is_first:
                master.first = None
        try:
            if not is_first:
                self._await_socket(master)
            channel = OpenSshChannel(self._machine, self, master)
        except BaseException:
            self.release(master, retire=is_first)  # nobody is to wait for what does not come
            raise
        if is_first:
            master.first = channel
        return channel

    def close(self) -> None:
        """Let nobody log in with our certificates any more. Idempotent."""
        if self.agent is not None:
            self.agent.close()

    def _await_socket(self, master: _Master) -> None:
        """Wait for the control socket while the first ssh logs in: one that finds none makes a connection of its own,
        and logs in again.
        """
        until = time.monotonic() + self._machine.connect_timeout
        while master.path is not None and not master.path.exists() and time.monotonic() < until:
            if master.retired or (master.first is not None and master.first.ended):
                return
            time.sleep(_LOOK_EVERY)

    def _master(self) -> _Master:
        """Return the connection for the next channel, a new one where that is better."""
        shared = min((one for one in self._masters if one.has_room), key=lambda one: one.channels, default=None)
        spread = self.round_trip >= LONG_PATH and len(self._masters) < self._machine.max_connections
        if shared is not None and not (spread and shared.channels):
            return shared
        path = None if self._control_dir is None else self._control_dir / f"cm-{secrets.token_hex(6)}"
        self._masters.append(_Master(path))
        return self._masters[-1]

    def release(self, master: _Master, *, retire: bool) -> None:
        """Give a channel's place back. A connection on which a channel broke gets no new ones."""
        with self._lock:
            master.channels -= 1
            master.retired |= retire
            self._masters = [one for one in self._masters if one.channels or not one.retired]


@dataclass(eq=False, slots=True)
class _Master:
    """A shared connection: its control socket (None: not shared) and how many channels it carries."""

    path: Path | None
    channels: int = 0
    retired: bool = False
    first: OpenSshChannel | None = None
    """The channel whose ssh makes the connection, once it has started."""

    @property
    def has_room(self) -> bool:
        return not self.retired and self.channels < (_CHANNELS_PER_MASTER if self.path else 1)


class OpenSshChannel(Channel):
    """The standard streams of one `ssh -s host sftp`."""

    passes_on_files = True

    def __init__(self, machine: Machine, connector: OpenSshConnector, master: _Master) -> None:
        super().__init__(machine.stall_timeout)
        self._machine = machine
        self._connector = connector
        self._master = master
        self._closed = False
        self._stderr = b""
        # the watchdog looks from another thread: never at a descriptor that was closed and may be another file's now
        self._descriptors = threading.Lock()
        self._socket, theirs = socket.socketpair()
        self._stderr_fd, stderr = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(stderr, True)
        try:
            for end in (self._socket, theirs):
                for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
                    end.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
            self._process = start_ssh(
                machine,
                master.path,
                [*login_words(connector.agent), "-s"],
                ["sftp"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=stderr,
            )
        except BaseException:
            self._socket.close()
            os.close(self._stderr_fd)
            raise
        finally:
            theirs.close()
            os.close(stderr)
        self._ready = select.poll()
        self._ready.register(self._socket, select.POLLIN | select.POLLOUT)

    def send_some(self, parts: Sequence[Bytes]) -> int:
        """Send what fits; 0 when there is only something to receive."""
        with self.blocked():
            while True:
                with contextlib.suppress(BlockingIOError):
                    return self._socket.sendmsg(parts, [], socket.MSG_DONTWAIT)
                events = self._ready.poll()[0][1]
                if not events & select.POLLOUT and events & select.POLLIN:
                    return 0

    def receive_into(self, buffer: memoryview) -> int:
        """Receive at least one byte; 0 at the end."""
        with self.blocked():
            return self._socket.recv_into(buffer)

    @contextlib.contextmanager
    def blocked(self) -> Iterator[None]:
        """Let the watchdog see that a byte is waited for, and say in our words that ssh ended unexpectedly."""
        try:
            with super().blocked():
                yield
        except OSError as exc:
            raise self.lost(f"ssh ended unexpectedly{self._said()}") from exc

    @property
    def ended(self) -> bool:
        """Whether ssh has ended."""
        return self._closed or self._process.poll() is not None

    def alive(self) -> bool:
        """Say whether ssh runs and its stream has not ended."""
        if self.ended:
            return False
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def run(self, argv: Sequence[str], *, stdin: bool = False, forward_agent: bool = False) -> RemoteProgram:
        """Start a program over the same connection."""
        agent = self._connector.agent
        if self._connector.sftp_only or (forward_agent and agent is not None):
            raise RemoteFailure(NOT_ALLOWED)
        login = login_words(agent)
        return OpenSshProgram(
            self._machine, self._master.path, argv, stdin=stdin, forward_agent=forward_agent, login=login
        )

    def start_error(self, cause: TransportError) -> DataManagerError:
        """Tell from ssh's end why there was no SFTP server."""
        with self._descriptors, contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        self._read_stderr()
        agent = self._connector.agent
        if agent is not None and agent.error is not None:
            return agent.error
        return classify(self._machine, self._process.returncode, self._stderr.decode("utf-8", "replace"), cause)

    def check_stall(self, now: float) -> None:
        """Look for a stall, and take what ssh said, so that it never waits for room to say more."""
        self._read_stderr()
        super().check_stall(now)

    def abort(self) -> None:
        """Break the stream and end ssh."""
        with self._descriptors, contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._process.kill()
        self._master.retired = True

    def close(self) -> None:
        """Close ssh's input and wait until it has ended."""
        with self._descriptors:
            if self._closed:
                return
            self._closed = True
            self._socket.close()
        try:
            self._process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        with self._descriptors:
            os.close(self._stderr_fd)
            self._stderr_fd = -1
        self._connector.release(self._master, retire=self._process.returncode != 0)

    def _read_stderr(self) -> None:
        with self._descriptors, contextlib.suppress(OSError):  # nothing there, or closed meanwhile
            while piece := os.read(self._stderr_fd, _STDERR_KEPT):
                self._stderr = (self._stderr + piece)[-_STDERR_KEPT:]

    def _said(self) -> str:
        self._read_stderr()
        words = self._stderr.decode("utf-8", "replace").strip().splitlines()
        return f": {words[-1]}" if words else ""
