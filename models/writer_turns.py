"""Whose turn it is to write into a SQLite database: one writer at a time, and nobody twice while others wait.

SQLite's own waiting is polling, with pauses that grow to a tenth of a second; a writer of another process that begins
again at once has it all the time. Here a writer first takes the lock `next`, waits with it for the lock `turn`, and
releases `next` then: who has ended a turn gets the next one after those that came meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from datamanager.errors import CatalogueUnavailable

LOOK_EVERY = 0.002  # seconds
_BUSY = "the catalogue is busy: another writer does not end"


class WriterTurns:
    """The turns of one database's writers. Safe to share between threads.

    The locks are those of flock(2) on two empty files beside the database: a process that dies releases them.
    """

    def __init__(self, database: Path) -> None:
        self._names = [f"{database}-{name}" for name in ("next", "turn")]
        self._files: list[int] = []
        self._threads = Lock()  # those of this process wait here

    @contextmanager
    def within(self, patience: float) -> Iterator[None]:
        """Have the turn for the context, after at most `patience` seconds. Raises: CatalogueUnavailable."""
        end = time.monotonic() + patience
        if not self._threads.acquire(timeout=patience):
            raise CatalogueUnavailable(_BUSY)
        try:
            try:
                self._take(end)
            except OSError as exc:
                raise CatalogueUnavailable(f"the catalogue's folder can't be used: {exc.strerror}") from exc
            try:
                yield
            finally:
                fcntl.flock(self._files[1], fcntl.LOCK_UN)
        finally:
            self._threads.release()

    def close(self) -> None:
        """Close the files, unless somebody still writes; they are opened again when they are needed. Idempotent."""
        if self._threads.acquire(blocking=False):
            files, self._files = self._files, []
            self._threads.release()
            for file in files:
                os.close(file)

    def _take(self, end: float) -> None:
        if not self._files:
            self._files = [_opened(name) for name in self._names]
        following, turn = self._files
        _lock(following, end)
        try:
            _lock(turn, end)
        finally:
            fcntl.flock(following, fcntl.LOCK_UN)


def _opened(name: str) -> int:
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _lock(file: int, end: float) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= end:
                raise CatalogueUnavailable(_BUSY) from None
        time.sleep(LOOK_EVERY)
