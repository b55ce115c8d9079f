"""The hash of a file on the machine while it is written there, from its storage.

One program hashes what others pass on to it from the file, so many bytes as we say are stored, line by line. It ends
with its input: whatever becomes of us, it reads no further than it was told.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Self

from datamanager.errors import NotSupported, TransportError
from datamanager.transports.channel import Channel
from datamanager.transports.remote.running import POLL, Running
from datamanager.transports.values import Progress, shown

SHA256 = re.compile(rb"\b[0-9a-f]{64}\b")
_WHOLE = re.compile(rb"^dm-whole$", re.MULTILINE)
_STEP = 32 * 1024 * 1024
"""Bytes that are worth a process of their own (measured: a fifth more time with 8 MiB, nothing with these)."""


class RemoteFollower:
    """See the port's Follower. Raises: RemoteFailure when the machine refuses to run the program, ConnectionLost."""

    def __init__(self, channel: Channel, program: Sequence[str], path: str) -> None:
        self._path = path
        self._running = Running(channel, "follow", [path, *program], stdin=True)
        self._end = 0
        self._told = 0
        self._line = b""  # what the program's input did not take yet
        self._failure: str | None = None

    def advance(self, end: int) -> None:
        """Say that all bytes before `end` are stored."""
        self._end = end
        if self._line or end - self._told >= _STEP:
            self._tell()

    def result(self, progress: Progress) -> str:
        """Return the hash. Raises: NotSupported when the machine failed at it or went away, or the file is shorter."""
        while self._failure is None and (self._line or self._told < self._end):
            self._tell()
            if self._line:
                self._running.listen(POLL)
                progress(0)
        try:
            self._running.remote.close_input()
        except TransportError as exc:
            self._failure = exc.detail
        if self._failure is None:
            while self._running.listen(POLL):
                progress(0)
            digest, status = self._running.said(SHA256), self._running.remote.exit_status()
            if status == 0 and digest is not None and _WHOLE.search(self._running.out):
                return digest[0].decode("ascii")
            self._failure = f"its program ended with status {status}"
        raise NotSupported(f"the machine could not follow {shown(self._path)}: {self._failure}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._running.__exit__(*exc)

    def _tell(self) -> None:
        """Tell the program of what it has not heard of, as far as its input takes it now."""
        if self._failure is not None:
            return
        if not self._line:
            self._line = b"%d\n" % (self._end - self._told)
            self._told = self._end
        try:
            self._line = self._line[self._running.remote.write_some(self._line) :]
        except TransportError as exc:
            self._failure = exc.detail
