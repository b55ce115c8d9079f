"""The port for many small files at once: requests of many files in flight, so that a round trip is paid once, not per
file.

Results come in any order, each with the index of its argument. One file's failure (a TransportError) is its own
result and hinders no other; what breaks the connection is raised and ends all. Used by the session's thread. The
session may do nothing else while an iteration is under way. One that is left early must be closed, which drops
what is in flight; what was made by then stays (its owner knows the names).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from datamanager.errors import TransportError
from datamanager.transports.values import FileStat, KeptAttributes, NewFile, SmallFile

R = TypeVar("R")

Sync = Callable[[Sequence[str]], None]
"""Puts what was written on the file systems of these directories on stable storage. To be called once. Raises:
NotSupported when the machine can't."""

Results = Generator[tuple[int, R], None, None]
"""Each result with the index of its argument; `close` leaves early."""

MOST_IN_FLIGHT = 256
"""Open files at once on any machine."""


Stored = KeptAttributes | FileStat | str
"""Of a file that was written: what is kept of its attributes; then its stat, or its hex sha256."""


@dataclass(slots=True)
class SurveyedDirectory:
    """A directory below a base directory: the absolute path of what existed of it, links resolved, and the rest.

    `outside`: links lead out of the base directory; `dangling`: a link that leads nowhere is in the way. `entries` is
    the lstat of each name that was asked for, or why there is none (PathMissing); `free` is f_bavail in bytes, None
    where it can't be known.
    """

    existing: str
    missing: str
    outside: bool = False
    dangling: bool = False
    free: int | None = None
    error: TransportError | None = None
    entries: dict[str, FileStat | TransportError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MachineSurvey:
    """What a machine tells of a base directory, its links resolved, and of directories below it."""

    base: str
    directories: Mapping[str, SurveyedDirectory]


class InOneTurn(Protocol):
    """Several steps in one turn, by a program on the machine. It walks to directories without following a link: what
    is done, here and by its `Bulk`, is done in the directory that is named, which need not be looked at again."""

    def survey(self, base: str, places: Mapping[str, Sequence[str]], *, make: bool) -> MachineSurvey:
        """Resolve directories below `base` (their relative paths, "" is that itself) and look at names in each. With
        `make`, what is missing of those is made, unless links lead out or nowhere.

        Raises: PathMissing when there is no `base`; what breaks the connection.
        """

    def store(self, files: Iterable[NewFile], *, hashed: bool) -> Results[Stored | TransportError]:
        """Do what `write` does; when all are written hash them from the machine's storage (`hashed`, else look at
        them), and put them on stable storage. Yield first how each was written, then what is there, where it was.

        Raises: NotSupported, after all results, when the machine can't put them on stable storage.
        """


class Bulk(Protocol):
    """One session's work on many small files."""

    @property
    def in_one_turn(self) -> InOneTurn | None:
        """Several steps at once; None where no program of the session does them."""

    def lstat(self, paths: Sequence[str]) -> Results[FileStat | TransportError]:
        """Yield each path's lstat. PathMissing where there is nothing."""

    def real_path(self, paths: Sequence[str]) -> Results[str | TransportError]:
        """Yield each path with every link resolved. PathMissing where nothing is, or a link that leads nowhere."""

    def make_dir(self, paths: Sequence[str]) -> Results[TransportError | None]:
        """Make each directory; None too where there is one already. Their parents must exist, so none may be another's.

        PathMissing where the parent does not exist; PathExists where a file exists there.
        """

    def read(self, paths: Sequence[str], most: int, likely: int | None = None) -> Results[SmallFile | TransportError]:
        """Yield whole regular files of at most `most` bytes each (a few hundred KiB); a larger one, or what is none,
        is RemoteFailure. The stat is that of the open file. `likely`: bytes of the largest, as far as is known; the
        smaller, the more are read at once."""

    def write(self, files: Iterable[NewFile]) -> Results[KeptAttributes | TransportError]:
        """Create each file (O_EXCL), write it, set mode and mtime, close it; yield what the machine keeps of mode and
        mtime once all else was answered well.

        Directories must exist. A file that failed after it was created here is removed again. `files` is read as far
        ahead as requests are in flight. Nothing is flushed to stable storage: see `syncing`.
        """

    def unpack(self, files: Iterable[NewFile], directory: str) -> None:
        """Do what `write` does by one tar stream to a program on the machine; all paths lie below `directory`.

        `files` is read as the stream is sent. Raises: NotSupported when the machine can't (no shell, no GNU tar;
        `files` was not touched then), or when the program did not end well: the caller then removes what there may be
        of these names, and writes.
        """

    def digest(self, paths: Sequence[str], most: int) -> Results[str | TransportError]:
        """Yield each file's hex sha256 from the machine's storage: by one program there, else read back, which needs
        files of at most `most` bytes."""

    def rename(self, names: Sequence[tuple[str, str]], *, overwrite: bool) -> Results[TransportError | None]:
        """Do for each (source, destination) what the session's `rename` does; not flushed to stable storage."""

    def remove(self, paths: Sequence[str]) -> Results[TransportError | None]:
        """Remove each file; PathMissing where there is none."""

    def syncing(self) -> AbstractContextManager[Sync]:
        """Make ready to put what will be written on stable storage: on a machine it takes a program, which starts now
        and does nothing before it gets the directories. The session may do anything meanwhile.
        """
