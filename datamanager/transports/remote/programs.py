"""Programs on the machine: which of them it has, and how one that runs is ended.

A program says its process id first: closing an SSH channel does not end one that is busy, so it is ended by a second
one. Scripts are one line, without an exclamation mark: a csh as login shell passes them on.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from datamanager.errors import ConnectionLost, RemoteFailure, TransportError, TransportTimeout
from datamanager.transports.channel import Channel
from datamanager.transports.values import Progress

_log = logging.getLogger(__name__)

SAY_PID = 'echo "dm-pid $$"; '
"""How a script begins whose process `exec` makes the program that is to be ended."""

_SHA256 = {"openssl": ["openssl", "dgst", "-sha256"], "sha256sum": ["sha256sum"]}  # the faster one first
# over a regular file `head -c` may take no more than it gives out (busybox's does): the next one goes on from there
_PROBE = (
    "for p in openssl sha256sum curl; do command -v $p >/dev/null 2>&1 && echo dm-has $p; done; "
    "cp --reflink=auto --version >/dev/null 2>&1 && echo dm-has cp; "
    'f=/etc/passwd; [ -s $f ] && [ "$(exec 3<$f; head -c 9 <&3; head -c 9 <&3)" = "$(head -c 18 <$f)" ] && '
    "echo dm-has head; exit 0"
)
_HAS = re.compile(rb"^dm-has (\w+)$", re.MULTILINE)
_PID = re.compile(rb"^dm-pid (\d+)$", re.MULTILINE)
_POLL = 0.2
"""Seconds between two calls of `progress` while a program works."""
_GRACE = 2.0
"""Seconds for a program that is to be ended to say its process id."""
_MOST_OUTPUT = 64 * 1024


class Programs:
    """What one machine can run for us; asked once, shared by its sessions."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: frozenset[str] | None = None

    def sha256(self, channel: Channel) -> list[str] | None:
        """Return the words of a program that hashes its standard input; None without one, or without a shell."""
        found = self._find(channel)
        return next((words for name, words in _SHA256.items() if name in found), None)

    def can_copy(self, channel: Channel) -> bool:
        """Say whether there is a shell, and a `cp` that knows --reflink."""
        return "cp" in self._find(channel)

    def can_pass_on(self, channel: Channel) -> bool:
        """Say whether there is a shell, and a `head` that passes on a file piece by piece."""
        return "head" in self._find(channel)

    def can_fetch(self, channel: Channel) -> bool:
        """Say whether there is a shell, and a `curl`."""
        return "curl" in self._find(channel)

    def _find(self, channel: Channel) -> frozenset[str]:
        with self._lock:
            if self._found is None:
                self._found = _probe(channel)
            return self._found


class Running:
    """A program at work on the machine, started from a script that says its process id.

    Leaving the context ends it, if it has not ended by itself. Used by one thread, while another one may use the
    channel's session. Raises: RemoteFailure when the machine refuses to run it.
    """

    def __init__(self, channel: Channel, script: str, words: Sequence[str], *, stdin: bool = False) -> None:
        self._channel = channel
        self.remote = channel.run(["sh", "-c", script, "sh", *words], stdin=stdin)
        self.out = b""
        """What it, and maybe a login shell before it, said so far."""
        self._ended = False

    def listen(self, timeout: float) -> bool:
        """Take in what it says within `timeout` seconds; say whether it goes on."""
        piece = self.remote.read(timeout)
        self.out = (self.out + (piece or b""))[:_MOST_OUTPUT]
        self._ended = piece == b""
        return not self._ended

    def wait(self, progress: Progress) -> int | None:
        """Return its exit status once it has ended, None if it was killed or the connection went first.

        `progress` is called with 0 meanwhile. Raises: what that raises.
        """
        while self.listen(_POLL):
            progress(0)
        return self.remote.exit_status()

    def said(self, pattern: re.Pattern[bytes]) -> re.Match[bytes] | None:
        """Return the first match in what it said after its process id: nothing that a login shell said counts."""
        pid = _PID.search(self.out)
        return pattern.search(self.out, pid.end()) if pid else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        with self.remote:
            if not self._ended:
                self._end()

    def _end(self) -> None:
        """End the program. The error that leads here matters more than this one's."""
        if not self._channel.alive():
            return  # nobody can be asked any more
        deadline = time.monotonic() + _GRACE
        try:
            self.remote.close_input()
            while (pid := _PID.search(self.out)) is None and (left := deadline - time.monotonic()) > 0:
                if not self.listen(left):
                    return
            if pid is None:
                _log.warning("a remote program did not say its process id, and could not be ended")
                return
            with self._channel.run(["kill", pid[1].decode("ascii")]) as killer:
                killer.read(self._channel.patience)
        except TransportError as exc:
            _log.warning("a remote program could not be ended: %s", exc.detail)


def _probe(channel: Channel) -> frozenset[str]:
    """Ask the machine for its programs. Raises: TransportTimeout, ConnectionLost; neither is an answer."""
    out = b""
    try:
        with channel.run(["sh", "-c", _PROBE]) as remote:
            while (piece := remote.read(channel.patience)) != b"":
                if piece is None:
                    raise TransportTimeout(f"the machine ran no program within {channel.patience:g} seconds")
                out = (out + piece)[:_MOST_OUTPUT]
            if remote.exit_status() is None and not channel.alive():
                raise ConnectionLost("the connection broke while the machine was asked for its programs")
    except RemoteFailure:
        return frozenset()  # no exec on this machine
    return frozenset(name.decode("ascii") for name in _HAS.findall(out))
