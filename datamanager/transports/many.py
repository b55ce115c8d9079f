"""The port for many small files at once: requests of many files in flight, so that a round trip is paid once, not per
file.

Results come in any order, each with the index of what was asked. One file's failure (a TransportError) is its own
result and hinders no other; what breaks the connection is raised and ends all. Used by the session's thread. Nothing
else may be asked of the session while an iteration is under way. One that is left early must be closed, which drops
what is in flight; what was made by then stays (its owner knows the names).
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from datamanager.errors import TransportError
from datamanager.transports.base import Bytes, FileStat

R = TypeVar("R")

Results = Generator[tuple[int, R], None, None]
"""Each result with the index of what was asked; `close` leaves early."""

IN_FLIGHT = 64
"""Files worked on at once: what bounds memory, and open files at both ends."""


@dataclass(frozen=True, slots=True)
class SmallFile:
    """A whole small file that was read: what it is, and its bytes."""

    stat: FileStat
    data: bytes


@dataclass(frozen=True, slots=True)
class NewFile:
    """A whole small file to write under `path`, a new name: its bytes, permission bits and mtime (seconds)."""

    path: str
    data: Bytes
    mode: int
    mtime: int


class Many(Protocol):
    """One session's work on many small files."""

    def lstat(self, paths: Sequence[str]) -> Results[FileStat | TransportError]:
        """Yield each path's lstat. PathMissing where there is nothing."""
        ...

    def read(self, paths: Sequence[str], most: int) -> Results[SmallFile | TransportError]:
        """Yield whole regular files of at most `most` bytes each (a few hundred KiB); a larger one, or what is none,
        is RemoteFailure. The stat is that of the open file."""
        ...

    def write(self, files: Iterable[NewFile]) -> Results[TransportError | None]:
        """Create each file (O_EXCL), write it, set mode and mtime, close it; None once all of that was answered well.

        Directories must exist. A file that failed after it was created here is removed again. `files` is read as far
        ahead as requests are in flight. Nothing is flushed to stable storage: see `sync`.
        """
        ...

    def unpack(self, files: Iterable[NewFile], directory: str) -> bool:
        """Do what `write` does by one tar stream to a program on the machine; all paths lie below `directory`.

        `files` is read as the stream is sent. False when the machine can't (no shell, no GNU tar; `files` was not
        touched then), or when the program did not end well: the caller then removes what there may be of these names,
        and writes.
        """
        ...

    def digest(self, paths: Sequence[str], most: int) -> Results[str | TransportError]:
        """Yield each file's hex sha256 from the machine's storage: by one program there, else read back, which needs
        files of at most `most` bytes."""
        ...

    def rename(self, names: Sequence[tuple[str, str]], *, overwrite: bool) -> Results[TransportError | None]:
        """Do for each (source, destination) what the session's `rename` does; not flushed to stable storage."""
        ...

    def remove(self, paths: Sequence[str]) -> Results[TransportError | None]:
        """Remove each file; PathMissing where there is none."""
        ...

    def sync(self, directories: Sequence[str]) -> bool:
        """Put what was written on the file systems of these directories on stable storage; False when the machine
        can't.
        """
        ...
