"""A program at work on the machine: how one is started, read, waited for and ended, and which ones a machine has.

Our programs are the files in `scripts/`, sent as they are (see `login_shell`). A program says its process id first:
closing an SSH channel does not end one that is busy, so it is ended by a second one.
"""

from __future__ import annotations

import functools
import logging
import re
import threading
import time
from collections.abc import Sequence
from importlib.resources import files
from typing import Self

from datamanager.errors import ConnectionLost, NotSupported, RemoteFailure, TransportError, TransportTimeout
from datamanager.transports.channel import Channel, RemoteProgram
from datamanager.transports.remote.many_files import Host, ManyFiles
from datamanager.transports.values import Progress

_log = logging.getLogger(__name__)

POLL = 0.2
"""Seconds between two calls of `progress` while a program works."""
_SHA256 = {"openssl": ["openssl", "dgst", "-sha256"], "sha256sum": ["sha256sum"]}  # the faster one first
_HAS = re.compile(rb"^dm-has (\w+)$", re.MULTILINE)
_PID = re.compile(rb"^dm-pid (\d+)$", re.MULTILINE)
_GRACE = 2.0
"""Seconds for a program that is to be ended to say its process id."""
_MOST_OUTPUT = 64 * 1024
MANY_AT_ONCE = 3
"""Programs for many files at once on one machine."""


class Running:
    """A program started from `scripts/<name>.sh`, which says its process id.

    Leaving the context ends it, if it has not ended by itself. Used by one thread, while another one may use the
    channel's session. Raises: RemoteFailure when the machine refuses to run it.
    """

    def __init__(self, channel: Channel, name: str, words: Sequence[str], *, stdin: bool = False) -> None:
        self._channel = channel
        self.remote = channel.run(shell_words(name, words), stdin=stdin)
        self.out = b""
        """What it said so far: at most 64 KiB."""
        self.ended = False
        """Whether its output has ended, and so there is nothing to be ended any more."""

    def starts(self) -> bool:
        """Wait until the program has said its process id; False when it ends, or says anything else at length, instead.

        Raises: TransportTimeout.
        """
        while not _PID.search(self.out):
            before = self.out
            if not self.listen(self._channel.patience) or len(self.out) >= _MOST_OUTPUT:
                return False
            if self.out == before:
                raise TransportTimeout(f"the machine started no program within {self._channel.patience:g} seconds")
        return True

    def listen(self, timeout: float) -> bool:
        """Take in what it says within `timeout` seconds; return whether it still runs."""
        piece = self.remote.read(timeout)
        self.out = (self.out + (piece or b""))[:_MOST_OUTPUT]
        self.ended = piece == b""
        return not self.ended

    def wait(self, progress: Progress, what: str) -> int | None:
        """Return its exit status once it has ended, None if it was killed.

        `progress` is called with 0 meanwhile. Raises: what that raises; ConnectionLost, which names `what` broke off.
        """
        while self.listen(POLL):
            progress(0)
        return exit_status(self._channel, self.remote, what)

    def said(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """Return the first match in what it said after its process id."""
        pid = _PID.search(self.out)
        return pattern.search(self.out, pid.end()) if pid else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with self.remote:
            if not self.ended:
                self._end()

    def _end(self) -> None:
        """End the program. The error that leads here matters more than this one's."""
        if not self._channel.alive():
            return  # no program can be started any more
        deadline = time.monotonic() + _GRACE
        try:
            self.remote.close_input()
            while (pid := _PID.search(self.out)) is None and (left := deadline - time.monotonic()) > 0:
                if not self.listen(left):
                    return
            if pid is None:
                _log.warning("a remote program did not report its process id, and could not be stopped")
                return
            with self._channel.run(shell_words("end", [pid[1].decode("ascii")])) as killer:
                killer.read(self._channel.patience)
        except TransportError as exc:
            _log.warning("a remote program could not be stopped: %s", exc.detail)


class InstalledPrograms:
    """What one machine can run for us; found out once, shared by its sessions. And the programs that work on many files
    there: each takes a channel of its own beside its session's, so few run at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: frozenset[str] | None = None
        self._many = 0
        self._has_many = True
        self.pass_on_files = True
        """Whether large files are read by a program there (`file_stream`); False once that did not work."""

    def begin_many(self, channel: Host) -> ManyFiles | None:
        """Start a program for many files; None where there is no shell or no python3, or enough of them run.

        Raises: TransportTimeout, ConnectionLost.
        """
        with self._lock:
            if self._many >= MANY_AT_ONCE or not self._has_many:
                return None
            self._many += 1
        try:
            return ManyFiles(channel)
        except BaseException as exc:
            with self._lock:
                self._many -= 1
                self._has_many = not isinstance(exc, NotSupported)
            if self._has_many:
                raise
            _log.info("no program works on many small files: %s", exc)
            return None

    def end_many(self, program: ManyFiles) -> None:
        """End such a program."""
        program.close()
        with self._lock:
            self._many -= 1

    def have(self, channel: Channel, name: str) -> bool:
        """Say whether there is a shell, and an `openssl`, `sha256sum`, `curl`, a `cp` that knows --reflink, or a `head`
        that passes on a file piece by piece. Raises: TransportTimeout, ConnectionLost; neither is an answer.
        """
        with self._lock:
            if self._found is None:
                self._found = _probe(channel)
            return name in self._found

    def sha256(self, channel: Channel) -> list[str] | None:
        """Return the words of a program that hashes its standard input; None without one, or without a shell."""
        return next((words for name, words in _SHA256.items() if self.have(channel, name)), None)


def exit_status(channel: Channel, remote: RemoteProgram, what: str) -> int | None:
    """Return the exit status of a program whose output has ended, None if it was killed.

    Raises: ConnectionLost when it was the connection that ended; `what` says what that broke off.
    """
    status = remote.exit_status()
    if status is None and not channel.alive():
        raise ConnectionLost(f"the connection broke while {what}")
    return status


def read_to_end(channel: Channel, remote: RemoteProgram, patience: float, what: str) -> tuple[int | None, bytes]:
    """Return a program's exit status (None: it was killed) and all its output, each piece within `patience` seconds.

    Raises: TransportTimeout; ConnectionLost; `what` says in either what the machine was at.
    """
    out = bytearray()
    while (piece := remote.read(patience)) != b"":
        if piece is None:
            raise TransportTimeout(f"no output for {patience:g} seconds while {what}")
        out += piece
    return exit_status(channel, remote, what), bytes(out)


def end_by_input(remote: RemoteProgram, seconds: float, what: str) -> bool:
    """Close the input of a program that ends with it, and say whether it ended, or was lost, within so many seconds.

    Its output is lost. Never raises: the error that leads here matters more than this one's.
    """
    deadline = time.monotonic() + seconds
    try:
        remote.close_input()
        while (left := deadline - time.monotonic()) > 0:
            if remote.read(left) == b"":
                return True
    except TransportError as exc:
        _log.info("%s was lost: %s", what, exc.detail)
        return True
    _log.warning("%s did not end within %g seconds", what, seconds)
    return False


def _probe(channel: Channel) -> frozenset[str]:
    try:
        with channel.run(shell_words("probe", [])) as remote:
            _, out = read_to_end(channel, remote, channel.patience, "the machine looked for its programs")
    except RemoteFailure:
        return frozenset()  # no exec on this machine
    return frozenset(name.decode("ascii") for name in _HAS.findall(out))


def shell_words(name: str, words: Sequence[str]) -> list[str]:
    """Return the words of a program that runs `scripts/<name>.sh` on a machine; `words` are its $1, $2, …"""
    return ["sh", "-c", script(name), "sh", *words]


@functools.cache
def script(name: str) -> str:
    """Return a program of `scripts/` without its comments and indentation, which would be sent each time.

    A comment has a line of its own, and no word goes over the end of a line.
    """
    text = (files(__package__) / "scripts" / f"{name}.sh").read_text("utf-8")
    lines = (line.strip() for line in text.splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("#"))
