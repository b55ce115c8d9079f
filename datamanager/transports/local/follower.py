"""The hash of a local file beside its being written: a thread that reads what it is told is there."""

from __future__ import annotations

import hashlib
import os
import threading
from typing import Self

from datamanager.errors import NotSupported
from datamanager.transports.values import Progress, shown

_BLOCK = 1 << 20
_POLL = 0.2
"""Seconds between two calls of `progress` while the hash is waited for."""


class LocalFollower:
    """See the port's Follower. Reads and hashes at most 1 MiB at a time, while Python's lock is free for others."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._digest = hashlib.sha256()
        self._changed = threading.Condition()  # guards what follows
        self._end = 0
        self._last = False
        self._left = False
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="dm-follower", daemon=True)

    def advance(self, end: int) -> None:
        """Say that all bytes before `end` are stored."""
        with self._changed:
            self._end = end
            self._changed.notify_all()

    def result(self, progress: Progress) -> str:
        """Return the hash once all is read. Raises: NotSupported when it could not be, or was shorter than told."""
        with self._changed:
            self._last = True
            self._changed.notify_all()
        while self._thread.is_alive():
            progress(0)
            self._thread.join(_POLL)
        if self._failure is not None:
            raise NotSupported(f"{shown(self._path)} can't be followed: {self._failure}")
        return self._digest.hexdigest()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._left = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        try:
            handle = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                self._follow(handle)
            finally:
                os.close(handle)
        except OSError as exc:
            self._failure = exc

    def _follow(self, handle: int) -> None:
        buffer, done = memoryview(bytearray(_BLOCK)), 0
        while (end := self._next_end(done)) is not None:
            count = os.preadv(handle, [buffer[: end - done]], done)
            if not count:
                raise OSError(f"ends at byte {done}, {end} were announced")
            self._digest.update(buffer[:count])
            done += count

    def _next_end(self, done: int) -> int | None:
        """Return up to where there is something to read now, waiting for it; None when that was all."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or self._last or self._end > done)
            return None if self._left or self._end <= done else self._end
