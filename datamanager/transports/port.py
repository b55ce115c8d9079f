"""The port: what the engine asks of a machine's storage, and nothing more.

A `Storage` belongs to one machine and lends `Session`s; a session is used by one thread at a time. Paths are absolute
strings on the machine; bytes that are not UTF-8 travel as surrogate escapes (PEP 383). Names are never interpreted: a
name may begin with a dash, or hold quotes, newlines and `$(id)`.

Every method may raise `MachineUnavailable`, `ConnectionLost`, `TransportTimeout` (retryable), `AuthenticationFailed`,
`HostKeyMismatch`, `PermissionDenied`, `NoSpace` or `RemoteFailure`; docstrings name only what is particular to a
method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from datamanager.transports.bulk_port import Many
from datamanager.transports.values import (
    Bytes,
    Check,
    CurlExit,
    Features,
    FileStat,
    NextRange,
    Progress,
    PushTarget,
    no_check,
    no_progress,
)


class Reader(Protocol):
    """An open file, read in order with several reads in flight."""

    def stat(self) -> FileStat:
        """Return the stat of the open file (not of whatever has its name now)."""
        ...

    def blocks(self, offset: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """Yield the bytes from `offset`, in order, in blocks of at most 1 MiB, up to `length` bytes or the end of file.

        A block is valid until the next one is asked for. Memory held is bounded, whatever the file's size.
        """
        ...

    def ranges(self, following: NextRange) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, block) of the ranges that `following` deals out, each range in order, one range after the
        other, with reads of the next range in flight before the last one's bytes are given out.

        A block is valid until the next one is asked for. Ends where `following` does, or at the end of the file.
        """
        ...


class Writer(Protocol):
    """A file that is written, with several writes in flight."""

    @property
    def unsettled(self) -> int | None:
        """The lowest offset whose write the machine has not answered well yet, None when there is none.

        What lies before it, as far as it was written here, survives a kill of either side.
        """
        ...

    def write(self, offset: int, data: Bytes) -> None:
        """Send `data` for `offset`; `data` may be reused when this returns.

        An earlier write's failure may surface here.
        """
        ...

    def settle(self) -> None:
        """Return when every write so far was answered well."""
        ...

    def flush(self) -> None:
        """Return when every write so far was answered well, and is on stable storage where the machine can do that."""
        ...


class Follower(Protocol):
    """The sha256 of a file that is still being written, computed by the machine from its storage beside the writing.

    Used by one thread. Leaving its context ends what works on the machine, whatever the reason.
    """

    def advance(self, end: int) -> None:
        """Say that all bytes before `end` are stored. Never waits for the hash; a machine that fails is told of by
        `result`."""
        ...

    def result(self, progress: Progress) -> str | None:
        """Return the lower-case hex sha256 of all bytes up to the last `end`, once it is there; None when the machine
        failed at it. `progress` is called with 0 while it waits. Raises: what `progress` raises."""
        ...


class Curl(Protocol):
    """A curl at work on the machine: one answer, whose body goes where it is told to. Used by one thread.

    Leaving its context ends it, whatever the reason. While one waits, the `progress` it was begun with is called with
    0; if that raises, so does the method.
    """

    def head(self, patience: float) -> bytes:
        """Return the lines of the answer's next head, its empty last line included; fewer when the answer ends
        before, or when they have no end within 1 MiB. Raises: TransportTimeout after `patience` seconds."""
        ...

    def same(self, count: int) -> bool:
        """Say whether the body's next `count` bytes are the last ones of the file; if not, the answer is ended."""
        ...

    def store(self, most: int) -> None:
        """Have what follows written behind the file's end, at most `most` bytes; return when the answer has ended, or
        was ended for being longer. Raises: RemoteFailure when the file can't be written."""
        ...

    def send(self, most: int) -> Iterator[bytes]:
        """Yield what follows, at most `most` bytes, until the answer has ended."""
        ...

    @property
    def end(self) -> CurlExit | None:
        """How it ended; None while it runs, or was ended by leaving its context."""
        ...


class Session(Protocol):
    """One thread's channel to a machine's storage."""

    @property
    def features(self) -> Features:
        """Say what this session can do."""
        ...

    @property
    def round_trip(self) -> float:
        """Seconds of the shortest round trip to the machine that this session has seen; 0 on this host."""
        ...

    def stat(self, path: str) -> FileStat:
        """Return what is at `path`, following links. Raises: PathMissing."""
        ...

    def lstat(self, path: str) -> FileStat:
        """Return what is at `path` itself, not following a last link. Raises: PathMissing."""
        ...

    def real_path(self, path: str) -> str:
        """Return `path` with every link resolved. Raises: PathMissing when `path` does not exist."""
        ...

    def list_dir(self, path: str) -> Iterator[tuple[str, FileStat]]:
        """Yield (name, lstat) of each entry of a directory, without `.` and `..`. Raises: PathMissing."""
        ...

    def make_dirs(self, path: str) -> None:
        """Make the directory and its missing parents; fine when it exists.

        Raises: PathExists if a file is in the way.
        """
        ...

    def free_space(self, path: str) -> int | None:
        """Return the bytes that this login may still write on the file system of `path`, or None if unknown."""
        ...

    def open_read(self, path: str) -> AbstractContextManager[Reader]:
        """Open a file for reading. Raises: PathMissing."""
        ...

    def create(self, path: str, *, mode: int = 0o600) -> AbstractContextManager[Writer]:
        """Create a new file, exclusively (O_EXCL).

        Leaving the context closes it and waits for every status; on an exception the file is closed and left where it
        is (its owner removes it). Raises: PathExists, PathMissing (no parent).
        """
        ...

    def reopen(self, path: str) -> AbstractContextManager[Writer]:
        """Open an existing file for writing at any offset; nothing of it is cut off. A link is not followed where the
        machine can tell. Leaving the context does what leaving `create` does. Raises: PathMissing."""
        ...

    def rename(self, source: str, destination: str, *, overwrite: bool) -> None:
        """Give a file its new name atomically, within one file system.

        Raises: PathExists when `destination` is taken and `overwrite` is False (both are left as they were);
        PathMissing; RemoteFailure when the two names are on different file systems.
        """
        ...

    def remove(self, path: str) -> None:
        """Remove a file (not a directory). Raises: PathMissing."""
        ...

    def set_attributes(self, path: str, *, mode: int, mtime: int) -> None:
        """Set the permission bits (never setuid, setgid or sticky) and the modification time."""
        ...

    def copy_within(
        self,
        source: str,
        destination: str,
        progress: Progress = no_progress,
        beside: Sequence[Session] = (),
    ) -> bool:
        """Copy a file on the machine itself to a new name, created exclusively, and flush it.

        Return False when the machine can't; nothing is done then. `progress` is told as ranges of at most 1 GiB are
        done. `beside`: further sessions on the machine, lent to the caller, which may share the work.
        Raises: PathMissing (source), PathExists (destination).
        """
        ...

    def digest(self, path: str, progress: Progress = no_progress) -> str | None:
        """Return the lower-case hex sha256 that the machine itself computes from its storage, or None when it can't
        (no shell, no program): the caller then reads the file back. `progress` is called with 0 while it waits,
        so that it can stop the remote program by raising. Raises: PathMissing."""
        ...

    def follow(self, path: str) -> AbstractContextManager[Follower | None]:
        """Begin to hash a file that this session's user writes in order from its start; None when the machine can't.

        Takes no turn of the session: it may read and write meanwhile.
        """
        ...

    def push(self, path: str, to: PushTarget, progress: Progress) -> bool:
        """Let the machine itself send a file to another machine (a third-party transfer), by the ssh there.

        True once that ssh says that all was written; it is not yet on stable storage. False when it ended otherwise or
        can't be run; the reason is logged, and what arrived is a prefix. `progress` is called with 0 while it works; if
        it raises, the program is ended before the error goes on, and with it the one at the destination.
        """
        ...

    def run(self, words: Sequence[str], progress: Progress = no_progress) -> int:
        """Run a program on the machine and return its exit status; what it prints is thrown away.

        `words` are the program and its arguments, never interpreted by a shell. `progress` is called with 0 while it
        works; if it raises, the program is ended before the error goes on. Raises: RemoteFailure when it can't be run,
        or was killed.
        """
        ...

    def curl(
        self,
        config: bytes,
        authorities: bytes = b"",
        *,
        path: str = "",
        start: int = 0,
        progress: Progress = no_progress,
    ) -> AbstractContextManager[Curl]:
        """Begin to fetch a URL by the machine's own curl. Takes no turn of the session.

        `config` is curl's configuration, with its secrets; it is given to nothing but that curl. `authorities` are
        certificates (PEM) to trust instead of those that the machine trusts. `path` is where the body goes if it is to
        be stored: a file that does not exist yet, or, with `start`, one of that many bytes.

        Raises: NotSupported when the machine has no shell, or no curl that will do.
        """
        ...

    @property
    def many(self) -> Many:
        """Work on many small files at once, over this session."""
        ...

    def abort(self) -> None:
        """Break the session's connection: a thread that waits for the machine gets ConnectionLost at once.

        From any thread; idempotent. Nothing on this host.
        """
        ...


class Storage(Protocol):
    """One machine's storage: lends sessions from a bounded pool; safe to share between threads."""

    @property
    def machine(self) -> str:
        """The machine's name."""
        ...

    def session(self, check: Check = no_check) -> AbstractContextManager[Session]:
        """Lend a session; blocks while all are in use. A session whose connection broke is not lent again.

        Raises: what `check` raises while it waits for a place.
        """
        ...

    def pair(self, check: Check = no_check) -> AbstractContextManager[tuple[Session, Session]]:
        """Lend two sessions together (one reads, one writes); waits until both are free, holding neither meanwhile.

        Where only one may be on loan, both are the same one. Raises: what `check` raises while it waits.
        """
        ...

    def spare(self, count: int) -> AbstractContextManager[list[Session]]:
        """Lend up to `count` further sessions, as many as can be had without waiting for others; maybe none.

        For one who has a session already: it never blocks on a place, so nobody can wait for another in a circle.
        """
        ...

    def close(self) -> None:
        """Close every idle connection; sessions on loan are closed when they come back. Idempotent."""
        ...
