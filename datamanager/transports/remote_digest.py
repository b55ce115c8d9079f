"""A file's sha256, computed by a program on the machine: the other end's own view of its storage.

The program reads standard input, because `sha256sum` escapes odd names in what it prints. It says its process id first:
closing an SSH channel does not end a program that is busy reading, so it is ended by a second one.
"""

from __future__ import annotations

import logging
import re
import threading

from datamanager.errors import ConnectionLost, RemoteFailure, TransportError, TransportTimeout
from datamanager.transports.base import Progress
from datamanager.transports.channel import Channel
from datamanager.transports.paths import shown

_log = logging.getLogger(__name__)

_PROGRAMS = {"openssl": "openssl dgst -sha256", "sha256sum": "sha256sum"}
_PROBE = "for p in openssl sha256sum; do if command -v $p >/dev/null 2>&1; then echo dm-has $p; exit 0; fi; done"
_HAS = re.compile(rb"^dm-has (\w+)$", re.MULTILINE)
_PID = re.compile(rb"^dm-pid (\d+)$", re.MULTILINE)
_SHA256 = re.compile(rb"\b[0-9a-f]{64}\b")
_POLL = 0.2
"""Seconds between two calls of `progress` while the program works."""
_MOST_OUTPUT = 64 * 1024


class RemoteDigest:
    """What one machine can do; asked once, shared by its sessions."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._program: str | None = None
        self._asked = False

    def available(self, channel: Channel) -> bool:
        """Say whether the machine has a shell that we may use and a program that computes sha256."""
        return self._find(channel) is not None

    def compute(self, channel: Channel, path: str, progress: Progress) -> str | None:
        """Return the hex sha256 of the file, or None when the machine can't say.

        `progress(0)` is called while it works. Raises: what `progress` raises, once the remote program is ended;
        ConnectionLost.
        """
        program = self._find(channel)
        if program is None:
            return None
        script = f'echo "dm-pid $$"; exec {program} < "$1"'
        out = b""
        with channel.run(["sh", "-c", script, "sh", path]) as remote:
            try:
                while (piece := remote.read(_POLL)) != b"":
                    out = (out + (piece or b""))[:_MOST_OUTPUT]
                    progress(0)
            except BaseException:
                self._end(channel, out)
                raise
            status = remote.exit_status()
        pid = _PID.search(out)
        if status is None:
            raise ConnectionLost(f"{shown(path)}: the connection broke while the machine computed the digest")
        digest = _SHA256.search(out, pid.end()) if pid else None
        if status != 0 or digest is None:
            _log.info("the machine's digest of %s failed with status %d", shown(path), status)
            return None
        return digest[0].decode("ascii")

    def _find(self, channel: Channel) -> str | None:
        with self._lock:
            if not self._asked:
                self._program = _probe(channel)
                self._asked = True
            return self._program

    def _end(self, channel: Channel, out: bytes) -> None:
        """End the program whose first words are in `out`. The error that leads here matters more than this one's."""
        pid = _PID.search(out)
        if pid is None:
            return
        try:
            with channel.run(["kill", pid[1].decode("ascii")]) as killer:
                killer.read(channel.patience)
        except TransportError as exc:
            _log.warning("the remote program %s could not be ended: %s", pid[1].decode("ascii"), exc.detail)


def _probe(channel: Channel) -> str | None:
    """Ask the machine for its program. Raises: TransportTimeout, ConnectionLost; neither is an answer."""
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
        return None  # no exec on this machine
    found = _HAS.search(out)
    return _PROGRAMS.get(found[1].decode("ascii")) if found else None
