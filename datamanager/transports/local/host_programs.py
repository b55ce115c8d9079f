"""What the mover's own host does by itself: the port's Programs by system calls and threads."""

from __future__ import annotations

import contextlib
import hashlib
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager

from datamanager.errors import NotSupported, RemoteFailure
from datamanager.transports.local.files import created, opened
from datamanager.transports.local.follower import LocalFollower
from datamanager.transports.port import RunningCurl, Session
from datamanager.transports.values import Progress, PushTarget, no_progress

_COPY_RANGE = 128 * 1024 * 1024
"""Bytes per copy_file_range: how often progress is told and a cancel heard."""
_LOOK = 0.2
"""Seconds between two looks at a program that runs."""


class LocalPrograms:
    """See the port's Programs."""

    can_copy = True

    def copy(
        self,
        source: str,
        destination: str,
        progress: Progress = no_progress,
        beside: Sequence[Session] = (),  # noqa: ARG002 - the kernel needs no help
    ) -> None:
        """Copy in the kernel where it can (reflink, server-side), else through memory."""
        with opened(source) as reader, created(destination) as writer:
            size = reader.stat().size
            for offset in range(0, size, _COPY_RANGE):
                count = min(_COPY_RANGE, size - offset)
                writer.copy_from(reader, offset, count)
                progress(count)
            writer.flush()

    def digest(self, path: str, progress: Progress = no_progress) -> str:
        """Return the sha256, computed here."""
        digest = hashlib.sha256()
        with opened(path) as reader:
            for block in reader.blocks():
                digest.update(block)
                progress(0)
        return digest.hexdigest()

    def follow(self, path: str) -> LocalFollower:
        """Begin to hash a file that is being written, in a thread."""
        return LocalFollower(path)

    def push(self, path: str, to: PushTarget, progress: Progress) -> None:  # noqa: ARG002
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
                        program.wait(_LOOK)
                        break
                    progress(0)
            except BaseException:
                program.kill()
                raise
        if program.returncode < 0:
            raise RemoteFailure(f"{words[0]} was killed by signal {-program.returncode}")
        return program.returncode

    def curl(
        self,
        config: bytes,  # noqa: ARG002
        authorities: bytes = b"",  # noqa: ARG002
        *,
        path: str = "",  # noqa: ARG002
        start: int = 0,  # noqa: ARG002
        progress: Progress = no_progress,  # noqa: ARG002
    ) -> AbstractContextManager[RunningCurl]:
        """Refuse: what the mover itself fetches is on this host already."""
        raise NotSupported("on this host the mover itself downloads")
