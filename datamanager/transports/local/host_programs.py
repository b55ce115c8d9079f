"""What the mover's own host does by itself: the port's Programs by system calls and threads.

A file that is being written is hashed beside by a thread, which reads what it knows to be stored.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Self

from datamanager.errors import DataManagerError, NotSupported, RemoteFailure
from datamanager.transports.local.beneath import Beneath
from datamanager.transports.local.files import created, opened
from datamanager.transports.port import RunningCurl, Session
from datamanager.transports.values import Progress, no_progress, shown

_COPY_RANGE = 128 * 1024 * 1024
"""Bytes per copy_file_range: between two of them progress is reported, and a cancellation noticed."""
_BLOCK = 1 << 20
_POLL = 0.2
"""Seconds between two calls of `progress` while a program or a hash is waited for."""


class LocalPrograms:
    """See the port's Programs."""

    can_copy = True

    def __init__(self, beneath: Beneath) -> None:
        self._beneath = beneath

    def copy(
        self,
        source: str,
        destination: str,
        progress: Progress = no_progress,
        beside: Sequence[Session] = (),  # noqa: ARG002 - the kernel needs no help
    ) -> None:
        """Copy in the kernel where it can (reflink, server-side), else through memory."""
        with opened(self._beneath, source) as reader, created(self._beneath, destination) as writer:
            size = reader.stat().size
            for offset in range(0, size, _COPY_RANGE):
                count = min(_COPY_RANGE, size - offset)
                writer.copy_from(reader, offset, count)
                progress(count)
            writer.flush()

    def digest(self, path: str, progress: Progress = no_progress) -> str:
        """Return the sha256, computed here."""
        digest = hashlib.sha256()
        with opened(self._beneath, path) as reader:
            for block in reader.blocks():
                digest.update(block)
                progress(0)
        return digest.hexdigest()

    def follow(self, path: str) -> LocalFollower:
        """Begin to hash a file that is being written, in a thread."""
        return LocalFollower(self._beneath, path)

    def push(self, *_: object, **__: object) -> None:
        """Refuse: what the mover itself sends is as direct."""
        raise NotSupported("this host sends by the mover itself")

    def run(self, words: Sequence[str], progress: Progress = no_progress) -> int:
        """Run a program here, with the mover's rights."""
        nothing = subprocess.DEVNULL
        try:
            program = subprocess.Popen([*words], stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
        except OSError as exc:
            raise RemoteFailure(f"{words[0]} can't be run: {exc.strerror}") from exc
        with program:
            try:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        program.wait(_POLL)
                        break
                    progress(0)
            except BaseException:
                program.kill()
                raise
        if program.returncode < 0:
            raise RemoteFailure(f"{words[0]} was killed by signal {-program.returncode}")
        return program.returncode

    def curl(self, *_: object, **__: object) -> AbstractContextManager[RunningCurl]:
        """Refuse: what the mover itself fetches is on this host already."""
        raise NotSupported("on this host the mover itself downloads")


class LocalFollower:
    """See the port's Follower. Reads and hashes at most 1 MiB at a time, while Python's lock is free for others."""

    def __init__(self, beneath: Beneath, path: str) -> None:
        self._beneath = beneath
        self._path = path
        self._digest = hashlib.sha256()
        self._changed = threading.Condition()  # guards what follows
        self._end = 0
        self._last = False
        self._left = False
        self._failure: OSError | DataManagerError | None = None
        self._thread = threading.Thread(target=self._run, name="dm-follower", daemon=True)

    def advance(self, end: int) -> None:
        """Say that all bytes before `end` are stored."""
        with self._changed:
            self._end = end
            self._changed.notify_all()

    def result(self, progress: Progress) -> str:
        """Return the hash once all is read. Raises: NotSupported when it could not be, or the file is shorter."""
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
            with opened(self._beneath, self._path) as reader:
                self._follow(reader.handle)
        except (OSError, DataManagerError) as exc:
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
