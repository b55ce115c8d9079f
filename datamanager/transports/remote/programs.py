"""What a machine does for us by programs of its own, run over the connection of a session: the port's Programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from datamanager.errors import NotSupported, RemoteFailure
from datamanager.transports.channel import Channel
from datamanager.transports.port import Session
from datamanager.transports.remote.curl import RemoteCurl
from datamanager.transports.remote.follower import SHA256, RemoteFollower
from datamanager.transports.remote.running import InstalledPrograms, Running
from datamanager.transports.remote.third_party_push import push
from datamanager.transports.values import FileKind, Progress, PushTarget, no_progress, shown

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
        if session.stat(source).kind is not FileKind.FILE:
            raise RemoteFailure(f"{shown(source)}: is not a regular file")
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
            session.remove(destination)
            raise NotSupported(f"the machine's cp of {shown(source)} failed with status {status}")
        look(0)
        with session.reopen(destination) as writer:
            writer.flush()

    def digest(self, path: str, progress: Progress = no_progress) -> str:
        """Return the sha256 that a program on the machine, which hashes its standard input, computes: the other end's
        own view of its storage."""
        if self._session.stat(path).kind is not FileKind.FILE:
            raise RemoteFailure(f"{shown(path)}: is not a regular file")
        program = self._hasher()
        with Running(self._channel, "digest", [path, *program]) as running:
            status = running.wait(progress, f"the machine hashed {shown(path)}")
        found = running.said(SHA256)
        if status != 0 or found is None:
            raise NotSupported(f"the machine could not hash {shown(path)}: {program[0]} ended with status {status}")
        return found[0].decode("ascii")

    @contextmanager
    def follow(self, path: str) -> Iterator[RemoteFollower]:
        """Begin to hash a file that is being written, by a program on the machine."""
        program = self._hasher()
        if not self._installed.have(self._channel, "head"):
            raise NotSupported("the machine's head reads further than it passes on")
        try:
            follower = RemoteFollower(self._channel, program, path)
        except RemoteFailure as exc:
            raise NotSupported(f"{shown(path)} can't be followed: {exc.detail}") from exc
        with follower:
            yield follower

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
