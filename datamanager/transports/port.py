"""The port: what the engine needs of a machine's storage, and nothing more.

A `Storage` belongs to one machine and is a bounded pool of `Session`s; a session is used by one thread at a time. A
session has verbs for files, `bulk` for many small files at once (see `bulk_port`), and `programs` for what the machine
does by itself. Paths are absolute strings on the machine; bytes that are not UTF-8 travel as surrogate escapes (PEP
383). Names are never interpreted: a name may begin with a dash, or hold quotes, newlines and `$(id)`. Sizes and offsets
are bytes, times are seconds.

The directories of a path hold no links (`real_path` resolves them). One that was exchanged for a link since is
PathReplaced: on this host before anything was done, elsewhere behind it, if it is noticed.

Every method may raise `MachineUnavailable`, `ConnectionLost`, `TransportTimeout` (retryable), `AuthenticationFailed`,
`HostKeyMismatch`, `LoginOutput`, `PermissionDenied`, `NoSpace`, `PathReplaced` or `RemoteFailure`; docstrings name only
what is particular to a method.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from datamanager.signing.signer import PersonLogin
from datamanager.transports.bulk_port import Bulk
from datamanager.transports.values import (
    Bytes,
    Check,
    CurlExit,
    FileStat,
    KeptAttributes,
    NextRange,
    Progress,
    PushTarget,
    no_check,
    no_progress,
)


class Reader(Protocol):
    """An open file, read in order with several reads in flight. Used by the session's thread."""

    def stat(self) -> FileStat:
        """Return the stat of the open file (not of whatever has its name now)."""

    def blocks(self, offset: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """Yield the bytes from `offset`, in order, in blocks of at most 1 MiB, up to `length` bytes or the end of file.

        A block is valid until the next one is taken. Memory held is bounded, whatever the file's size.
        """

    def ranges(self, following: NextRange) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, block) of the ranges that `following` deals out, each range in order, one range after the
        other, with reads of the next range in flight before the last one's bytes are given out.

        A block is valid until the next one is taken. Ends where `following` does, or at the end of the file.
        """


class Writer(Protocol):
    """A file that is written, with several writes in flight. Used by the session's thread.

    The first failure is kept and raised again: a file of which a write failed is never called good.
    """

    @property
    def unsettled(self) -> int | None:
        """The lowest offset whose write the machine has not answered well yet, None when there is none.

        What lies before it, as far as it was written here, survives a kill of either side.
        """

    def write(self, offset: int, data: Bytes) -> None:
        """Send `data` for `offset`; `data` may be reused when this returns.

        An earlier write's failure may surface here.
        """

    def settle(self) -> None:
        """Return when every write so far was answered well."""

    def flush(self) -> None:
        """Return when every write so far was answered well, and is on stable storage where the machine can do that.

        That it can't is no error: `Session.set_attributes` says so.
        """


class Session(Protocol):
    """One thread's channel to a machine's storage."""

    @property
    def round_trip(self) -> float:
        """Seconds of the shortest round trip to the machine that this session has seen; 0 on this host."""

    @property
    def bulk(self) -> Bulk:
        """Work on many small files at once, over this session."""

    def begin_many(self) -> bool:
        """Say that very many small files follow: `bulk` works by a program on the machine from now on, as long as the
        session lives, where one can be started. Idempotent; say whether there is one.

        Raises: what breaks the connection.
        """

    @property
    def programs(self) -> Programs:
        """What the machine does by itself, beside this session's own work."""

    def stat(self, path: str) -> FileStat:
        """Return what is at `path`, following links. Raises: PathMissing."""

    def lstat(self, path: str) -> FileStat:
        """Return what is at `path` itself, not following a last link. Raises: PathMissing."""

    def real_path(self, path: str) -> str:
        """Return `path` with every link resolved. Raises: PathMissing when `path` does not exist."""

    def list_dir(self, path: str) -> Iterator[tuple[str, FileStat]]:
        """Yield (name, lstat) of each entry of a directory, without `.` and `..`; an entry that is removed meanwhile
        may be left out. Raises: PathMissing."""

    def free_space(self, path: str) -> int | None:
        """Return the bytes that this login may still write on the file system of `path`, or None if the machine does
        not say, or says what can't be (a file system of no bytes)."""

    def open_read(self, path: str) -> AbstractContextManager[Reader]:
        """Open a file for reading; a link is RemoteFailure. Raises: PathMissing."""

    def create(self, path: str, *, mode: int = 0o600) -> AbstractContextManager[Writer]:
        """Create a new file, exclusively (O_EXCL).

        Leaving the context closes it and waits for every status; on an exception the file is closed and left where it
        is (its owner removes it). Raises: PathExists, PathMissing (no parent).
        """

    def reopen(self, path: str) -> AbstractContextManager[Writer]:
        """Open an existing file for writing at any offset; nothing of it is cut off. A link is not followed where the
        machine can tell. Leaving the context does what leaving `create` does. Raises: PathMissing."""

    def rename(self, source: str, destination: str, *, overwrite: bool) -> None:
        """Give a file its new name atomically, within one file system.

        On a machine that can't refuse a name that is taken, the name is looked at before, without `overwrite`: a file
        that appears between that and the rename is replaced (docs/transfer-protocol.md, the publish protocol, 5).

        Raises: PathExists when `destination` is taken and `overwrite` is False (both are left as they were);
        PathMissing; RemoteFailure when the two names are on different file systems.
        """

    def remove(self, path: str) -> None:
        """Remove a file (not a directory). Raises: PathMissing."""

    def set_attributes(self, path: str, *, mode: int, mtime: int) -> KeptAttributes:
        """Set the permission bits (never setuid, setgid or sticky) and the modification time of a file that was
        flushed; return what of that the machine keeps. That it refuses or ignores one of them is no error.

        Raises: PathMissing.
        """

    def abort(self) -> None:
        """Break the session's connection: a thread that waits for the machine gets ConnectionLost at once.

        From any thread; idempotent. Nothing on this host.
        """


class Programs(Protocol):
    """What a machine does by itself where it can, by its server or by a program there.

    Every method raises NotSupported when the machine can't (no shell, no such program) or its program failed: the
    caller then does the work over the session, or says that it can't be done. A program is ended before any other error
    is raised, among them what `progress` raises. Used by the session's thread.
    """

    @property
    def can_copy(self) -> bool:
        """Say whether `copy` is worth planning; the first call may run a program on the machine to find out."""

    def copy(
        self,
        source: str,
        destination: str,
        progress: Progress = no_progress,
        beside: Sequence[Session] = (),
    ) -> None:
        """Copy a file on the machine itself to a new name, created exclusively, and flush it.

        `progress` is called as ranges of at most 1 GiB are done. `beside`: further sessions on the machine, acquired by
        the caller, which may share the work. Raises: NotSupported, and nothing is left at `destination`; PathMissing
        (source), PathExists (destination).
        """

    def digest(self, path: str, progress: Progress = no_progress) -> str:
        """Return the lower-case hex sha256 that the machine itself computes from its storage.

        `progress` is called with 0 while it works. Raises: PathMissing.
        """

    def follow(self, path: str) -> AbstractContextManager[Follower]:
        """Begin to hash a file that this session's user writes in order from its start.

        Takes no turn of the session: it may read and write meanwhile. Raises, when entered: NotSupported.
        """

    def push(self, path: str, to: PushTarget, progress: Progress) -> None:
        """Let the machine itself send a file to another machine (a third-party transfer), by the ssh there.

        When this returns, all was written at the destination, but is not yet on stable storage there. After
        NotSupported what arrived is a prefix. `progress` is called with 0 while it works; if it raises, the program is
        ended before the error is raised, and with it the one at the destination.
        """

    def run(self, words: Sequence[str], progress: Progress = no_progress) -> int:
        """Run a program of the site's own on the machine and return its exit status; its output is dropped.

        `words` are the program and its arguments, never interpreted by a shell. `progress` is called with 0 while it
        works. Raises: RemoteFailure when that program can't be run, or was killed.
        """

    def curl(
        self,
        config: bytes,
        authorities: bytes = b"",
        *,
        path: str = "",
        start: int = 0,
        progress: Progress = no_progress,
    ) -> AbstractContextManager[RunningCurl]:
        """Begin to fetch a URL by the machine's own curl. Takes no turn of the session.

        `config` is curl's configuration, with its secrets; it is given to nothing but that curl. `authorities` are
        certificates (PEM) to trust instead of those that the machine trusts. `path` is where the body goes if it is to
        be stored: a file that does not exist yet, or, with `start`, one of that many bytes.
        """


class Follower(Protocol):
    """The sha256 of a file that is still being written, computed by the machine from its storage beside the writing.

    Used by one thread. Leaving its context ends what works on the machine, whatever the reason.
    """

    def advance(self, end: int) -> None:
        """Say that all bytes before `end` are stored. Never waits for the hash; `result` raises what went wrong."""

    def result(self, progress: Progress) -> str:
        """Return the lower-case hex sha256 of all bytes up to the last `end`, once it is there.

        `progress` is called with 0 while it waits. Raises: NotSupported when the machine failed at it; what `progress`
        raises.
        """


class RunningCurl(Protocol):
    """A curl at work on the machine: one answer, whose body goes where the methods say. Used by one thread.

    Leaving its context ends it, whatever the reason. While one waits, the `progress` it was begun with is called with
    0; if that raises, so does the method.
    """

    def head(self, patience: float) -> bytes:
        """Return the lines of the answer's next head, its empty last line included; fewer when the answer ends
        before, or when they have no end within 1 MiB. Raises: TransportTimeout after `patience` seconds."""

    def same(self, count: int) -> bool:
        """Say whether the body's next `count` bytes are the last ones of the file; if not, the answer is ended."""

    def store(self, most: int) -> None:
        """Have what follows written behind the file's end, at most `most` bytes; return when the answer has ended, or
        was ended for being longer. Raises: RemoteFailure when the file can't be written."""

    def send(self, most: int) -> Iterator[bytes]:
        """Yield what follows, at most `most` bytes, until the answer has ended."""

    @property
    def end(self) -> CurlExit | None:
        """How it ended; None while it runs, or was ended by leaving its context."""


class Storage(Protocol):
    """One machine's storage: a bounded pool of sessions. Safe to share between threads."""

    @property
    def machine(self) -> str:
        """The machine's name."""

    @property
    def login(self) -> PersonLogin | None:
        """The person as whom it is used, by certificates; None: with the service's own login."""

    def session(self, check: Check = no_check) -> AbstractContextManager[Session]:
        """Acquire a session, released with the context; blocks while all are in use, served in the order of requests. A
        session whose connection broke is not used again.

        Raises: what `check` raises while it waits.
        """

    def session_pair(self, check: Check = no_check) -> AbstractContextManager[tuple[Session, Session]]:
        """Acquire two sessions together (one reads, one writes); waits until both are free, holding neither meanwhile.

        Where the machine allows one only, both are the same one. Raises: what `check` raises while it waits.
        """

    def extra_sessions(self, count: int) -> AbstractContextManager[list[Session]]:
        """Acquire up to `count` further sessions, as many as can be had without waiting for others; maybe none.

        For a caller who has a session already: it never waits for others, so nobody can wait in a circle.
        """

    def expect(self, count: int = 1, *, many: bool = False) -> None:
        """Say that sessions will be acquired soon, with `many` such that work on very many small files: those that are
        not ready are made from now on, as far as there may be more without one being closed. Returns at once; a failure
        is raised by who acquires that session.
        """

    def close(self) -> None:
        """Close every idle connection; sessions in use are closed when they are released. Idempotent."""
