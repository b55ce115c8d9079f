"""The hash of a file on the machine beside its being written there, from its storage.

One program hashes what others pass on to it from the file, so many bytes as we say are stored, line by line. It ends
with its input: whatever becomes of us, it reads no further than what it was told of.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from datamanager.errors import TransportError
from datamanager.transports.channel import Channel
from datamanager.transports.paths import shown
from datamanager.transports.remote.digest import SHA256
from datamanager.transports.remote.programs import SAY_PID, Running
from datamanager.transports.values import Progress

_log = logging.getLogger(__name__)

# `head -c` of a regular file leaves the offset where it stopped, and can't come short of what is there before. What is
# ended is the hashing program: all others end when they can't write to it.
_SCRIPT = (
    'exec 3<"$1" 4>&1 || exit; p=$1; shift; t=0; '
    '{ while read -r n; do t=$((t + n)); [ "$(wc -c <"$p")" -ge "$t" ] && head -c "$n" <&3 || exit; done; '
    "echo dm-whole >&4; } | "
    f'sh -c \'{SAY_PID}exec "$@"\' sh "$@"'
)
_WHOLE = re.compile(rb"^dm-whole$", re.MULTILINE)
_STEP = 32 * 1024 * 1024
"""Bytes that are worth a process of their own (measured: a fifth more time with 8 MiB, nothing with these)."""
_POLL = 0.2
"""Seconds between two calls of `progress` while the program's input is full."""


class RemoteFollower:
    """See the port's Follower. Raises: RemoteFailure when the machine refuses to run the program, ConnectionLost."""

    def __init__(self, channel: Channel, program: Sequence[str], path: str) -> None:
        self._path = path
        self._running = Running(channel, _SCRIPT, [path, *program], stdin=True)
        self._end = 0
        self._told = 0
        self._line = b""  # what the program's input did not take yet
        self._failed = False

    def advance(self, end: int) -> None:
        """Say that all bytes before `end` are stored."""
        self._end = end
        if self._line or end - self._told >= _STEP:
            self._tell()

    def result(self, progress: Progress) -> str | None:
        """Return the hash; None when the machine failed at it or went away, or the file is shorter than told."""
        while not self._failed and (self._line or self._told < self._end):
            self._tell()
            if self._line:
                self._running.listen(_POLL)
                progress(0)
        try:
            self._running.remote.close_input()
        except TransportError as exc:
            self._fail(exc.detail)
        status = None if self._failed else self._running.wait(progress)
        digest = self._running.said(SHA256)
        if status != 0 or digest is None or not _WHOLE.search(self._running.out):
            self._fail(f"status {status}")
            return None
        return digest[0].decode("ascii")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._running.__exit__(kind, exc, tb)

    def _tell(self) -> None:
        """Tell the program of what it has not heard of, as far as its input takes it now."""
        if self._failed:
            return
        if not self._line:
            self._line = b"%d\n" % (self._end - self._told)
            self._told = self._end
        try:
            self._line = self._line[self._running.remote.write_some(self._line) :]
        except TransportError as exc:
            self._fail(exc.detail)

    def _fail(self, reason: str) -> None:
        if not self._failed:
            _log.info("the machine could not follow %s: %s", shown(self._path), reason)
        self._failed = True
