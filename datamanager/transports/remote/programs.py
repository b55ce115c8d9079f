"""What a machine does for us by programs of its own, run over the connection of a session: the port's Programs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from datamanager.errors import NotSupported, RemoteFailure, TransportError
from datamanager.transports.channel import Channel
from datamanager.transports.port import Session
from datamanager.transports.remote.curl import RemoteCurl
from datamanager.transports.remote.running import POLL, InstalledPrograms, Running
from datamanager.transports.remote.third_party_push import push
from datamanager.transports.values import (
    Progress,
    PushTarget,
    no_progress,
    own_file,
    path_replaced,
    require_file,
    shown,
)

_SHA256 = re.compile(rb"\b[0-9a-f]{64}\b")
_WHOLE = re.compile(rb"^dm-whole$", re.MULTILINE)
_STEP = 32 * 1024 * 1024
"""Bytes that are worth a process of their own (measured: a fifth more time with 8 MiB, nothing with these)."""
_NOT_RUN = (126, 127)
"""What a shell ends with when there is no such program, or none that may be run (POSIX)."""


class RemotePrograms:
    """See the port's Programs."""

    def __init__(self, session: Session, channel: Channel, installed: InstalledPrograms) -> None:
        self._session = session
        self._channel = channel
        self._installed = installed

    @property
    def can_copy(self) -> bool:
        """Say whether there is a `cp` that will do; the first call may run a program on the machine to find out."""
        return self._installed.have(self._channel, "cp")

    def copy(
        self,
        source: str,
        destination: str,
        progress: Progress = no_progress,
        beside: Sequence[Session] = (),  # noqa: ARG002 - cp needs no help
    ) -> None:
        """Copy a file by the machine's `cp`, into a file that the session creates and asks how far it got."""
        session = self._session
        if not self._installed.have(self._channel, "cp"):
            raise NotSupported("the machine has no shell for us, or no cp that knows --reflink")
        whole = session.stat(source)
        require_file(whole, source)
        done = 0

        def look(_: int) -> None:
            nonlocal done
            size = session.stat(destination).size
            count, done = size - done, size
            progress(count)

        with session.create(destination):
            pass
        with Running(self._channel, "run", ["cp", "--reflink=auto", "--", source, destination]) as running:
            status = running.wait(look, f"the machine copied {shown(source)}")
        if status != 0:
            with own_file(destination):
                session.remove(destination)
            raise NotSupported(f"the machine's cp of {shown(source)} failed with status {status}")
        look(0)
        for path in (source, destination):
            _require_in_place(session, path)
        if whole.size and not done:
            raise path_replaced(f"{shown(destination)}: the machine's cp ended well, but wrote another file")
        with session.reopen(destination) as writer:
            writer.flush()

    def digest(self, path: str, progress: Progress = no_progress) -> str:
        """Return the sha256 that a program on the machine, which hashes its standard input, computes: the other end's
        own view of its storage."""
        require_file(self._session.stat(path), path)
        program = self._hasher()
        with Running(self._channel, "digest", [path, *program]) as running:
            status = running.wait(progress, f"the machine hashed {shown(path)}")
        found = running.said(_SHA256)
        if status != 0 or found is None:
            raise NotSupported(f"the machine could not hash {shown(path)}: {program[0]} ended with status {status}")
        _require_in_place(self._session, path)
        return found[0].decode("ascii")

    @contextmanager
    def follow(self, path: str) -> Iterator[RemoteFollower]:
        """Begin to hash a file that is being written, by a program on the machine."""
        program = self._hasher()
        if not self._installed.have(self._channel, "head"):
            raise NotSupported("the machine's head reads further than it passes on")
        try:
            running = Running(self._channel, "follow", [path, *program], stdin=True)
        except RemoteFailure as exc:
            raise NotSupported(f"{shown(path)} can't be followed: {exc.detail}") from exc
        with running:
            yield RemoteFollower(running, path)

    def push(self, path: str, to: PushTarget, progress: Progress) -> None:
        """Let the machine send a file to another one."""
        push(self._channel, path, to, progress)

    def run(self, words: Sequence[str], progress: Progress = no_progress) -> int:
        """Run a program on the machine."""
        with Running(self._channel, "run", words) as running:
            status = running.wait(progress, f"{words[0]} ran")
        if status is None:
            raise RemoteFailure(f"{words[0]} was killed")
        if status in _NOT_RUN:
            raise RemoteFailure(f"{words[0]} can't be run")
        return status

    @contextmanager
    def curl(
        self,
        config: bytes,
        authorities: bytes = b"",
        *,
        path: str = "",
        start: int = 0,
        progress: Progress = no_progress,
    ) -> Iterator[RemoteCurl]:
        """Begin to fetch a URL by the machine's own curl."""
        if not self._installed.have(self._channel, "curl"):
            raise NotSupported("it has no shell for us, or no curl")
        with RemoteCurl(self._channel, config, authorities, path, start, progress) as curl:
            yield curl

    def _hasher(self) -> list[str]:
        program = self._installed.sha256(self._channel)
        if program is None:
            raise NotSupported("the machine has no shell for us, or no program that computes sha256")
        return program


def _require_in_place(session: Session, path: str) -> None:
    """Check that a path that a program was given still leads where it did. Raises: PathReplaced, PathMissing."""
    real = session.real_path(path)
    if real != path:
        raise path_replaced(f"{shown(path)} leads to {shown(real)} now; a program may have used that")


class RemoteFollower:
    """See the port's Follower, by a running `follow`.

    That program hashes the bytes that others pass on to it from the file: so many as each line of its input says are
    stored. It ends with its input, so when the mover dies it reads nothing beyond that.
    """

    def __init__(self, running: Running, path: str) -> None:
        self._running = running
        self._path = path
        self._end = 0
        self._sent = 0
        self._line = b""  # what the program's input did not take yet
        self._failure: str | None = None

    def advance(self, end: int) -> None:
        """Say that all bytes before `end` are stored."""
        self._end = end
        if self._line or end - self._sent >= _STEP:
            self._send()

    def result(self, progress: Progress) -> str:
        """Return the hash. Raises: NotSupported when the machine or its connection failed, or the file is shorter."""
        while self._failure is None and (self._line or self._sent < self._end):
            self._send()
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
            digest, status = self._running.said(_SHA256), self._running.remote.exit_status()
            if status == 0 and digest is not None and _WHOLE.search(self._running.out):
                return digest[0].decode("ascii")
            self._failure = f"its program ended with status {status}"
        raise NotSupported(f"the machine could not follow {shown(self._path)}: {self._failure}")

    def _send(self) -> None:
        """Send the program how many further bytes are stored, as far as its input takes it now."""
        if self._failure is not None:
            return
        if not self._line:
            self._line = b"%d\n" % (self._end - self._sent)
            self._sent = self._end
        try:
            self._line = self._line[self._running.remote.write_some(self._line) :]
        except TransportError as exc:
            self._failure = exc.detail
