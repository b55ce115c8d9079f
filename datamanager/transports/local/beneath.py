"""Names below a machine's base directory, reached without following a link.

Who calls has resolved the links of a path before (`engine.path_confinement`). One that is met on the way took the place
of a directory since then, so nothing is done. The way is walked from directory to directory, each opened in the one
before it, and what is to be done is done relative to the last one: whatever others rename meanwhile, it is done in the
directory that was walked to. (openat2's RESOLVE_BENEATH does the same in one call; Python has no name for it, and
seccomp filters of containers refuse it.)

Nothing stays open between two sessions' uses: a base directory may be unmounted, or mounted anew.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from datamanager.transports.values import path_replaced, shown

_WALKED = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
"""Open a directory as a place only: that needs no right but to pass through it."""
_LISTED = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Entry:
    """A name in an open directory; `path` is for messages. The methods raise OSError; none follows a last link."""

    directory: int
    name: str
    path: str

    def lstat(self) -> os.stat_result:
        """Return what is there."""
        return os.stat(self.name, dir_fd=self.directory, follow_symlinks=False)

    def exists(self) -> bool:
        """Say whether something is there, be it a link that leads nowhere."""
        with suppress(OSError):
            self.lstat()
            return True
        return False

    def open(self, flags: int, mode: int = 0o600) -> int:
        """Return a new descriptor of the file."""
        return os.open(self.name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, mode, dir_fd=self.directory)

    def open_directory(self) -> int:
        """Return a new descriptor of the directory, to list it, or to put it on stable storage.

        Raises: PathReplaced when a link is there.
        """
        return _opened(self.directory, self.name, _LISTED, self.path)

    def mkdir(self) -> None:
        """Make a directory; None too where there is one already, or a link to one."""
        try:
            os.mkdir(self.name, dir_fd=self.directory)
        except FileExistsError:
            if not (self.exists() and self._is_directory()):
                raise

    def unlink(self) -> None:
        """Remove a file."""
        os.unlink(self.name, dir_fd=self.directory)

    def rename(self, to: Entry) -> None:
        """Give the file another name, replacing what has it."""
        os.rename(self.name, to.name, src_dir_fd=self.directory, dst_dir_fd=to.directory)

    def link(self, to: Entry) -> None:
        """Give the file a further name, which must be free."""
        os.link(self.name, to.name, src_dir_fd=self.directory, dst_dir_fd=to.directory, follow_symlinks=False)

    def sync_directory(self) -> None:
        """Put the names beside this one on stable storage."""
        handle = os.open(".", _LISTED, dir_fd=self.directory)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _is_directory(self) -> bool:
        with suppress(OSError):
            return stat.S_ISDIR(os.stat(self.name, dir_fd=self.directory).st_mode)
        return False


class Beneath:
    """A base directory. Safe to share between threads: nothing of it is open."""

    def __init__(self, base_dir: str) -> None:
        self._base_dir = base_dir
        self._real = base_dir

    def walks(self) -> Walks:
        """Return a context that finds entries, one after the other."""
        return Walks(self)

    @contextmanager
    def entry(self, path: str) -> Iterator[Entry]:
        """Find one entry. Raises, when entered: what `Walks.entry` raises."""
        with self.walks() as walks:
            yield walks.entry(path)

    def open_base(self, path: str) -> tuple[int, list[str]]:
        """Return a new descriptor of the base directory that `path` begins with, its own links followed, or of the
        directory above it if `path` is it; and the names that lead from there to `path`.

        Raises: OSError; PathReplaced when the path lies elsewhere.
        """
        start = self._base_dir
        if (below := _below(start, path)) is None:
            start = self._real
        if below is None and (below := _below(start, path)) is None:  # the base directory may be another one by now
            start = self._real = os.path.realpath(self._base_dir, strict=True)
            below = _below(start, path)
        names = [name for name in (below or "").split("/") if name not in ("", ".")]
        if below is None or ".." in names:
            raise path_replaced(f"{shown(path)} is not below {self._base_dir}; nothing was changed")
        if not names:  # the base directory itself, which may be none
            start, name = os.path.split(os.path.realpath(start, strict=True))
            names = [name] if name else []
        return os.open(start, _WALKED), names


class Walks:
    """Entries below one base directory, one after the other. The directory of the last one stays open until another is
    asked for: files of one directory need one walk. One thread's; an entry is good until the next one."""

    def __init__(self, base: Beneath) -> None:
        self._base = base
        self._path: str | None = None
        self._handle = -1

    def entry(self, path: str) -> Entry:
        """Walk to a name; that itself need not exist.

        Raises: OSError when a directory on the way is missing, or none; PathReplaced when it is a link.
        """
        directory, name = self.name(path)
        return Entry(directory, name, path)

    def name(self, path: str) -> tuple[int, str]:
        """Walk to a name as `entry` does; return the directory's descriptor, which is to be left open, and the name."""
        above, _, name = path.rpartition("/")
        if name and above == self._path:
            return self._handle, name
        directory = posixpath.dirname(path)
        handle, names = self._base.open_base(path)
        self.close()
        self._handle = handle
        for above in names[:-1]:
            below = _opened(handle, above, _WALKED | os.O_NOFOLLOW, path)
            os.close(handle)
            handle = self._handle = below
        if not names:
            return handle, "."  # the root
        if names[-1] == name:
            self._path = directory
        return handle, names[-1]

    def close(self) -> None:
        """Close the last directory. Idempotent."""
        handle, self._handle, self._path = self._handle, -1, None
        if handle >= 0:
            os.close(handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _opened(directory: int, name: str, flags: int, path: str) -> int:
    try:
        return os.open(name, flags, dir_fd=directory)
    except NotADirectoryError:
        # a link, or a directory by now: it is being exchanged
        kind = stat.S_IFMT(os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode)
        if kind in (stat.S_IFLNK, stat.S_IFDIR):
            raise path_replaced(
                f"{shown(path)}: {shown(name)} was replaced by a link while it was used; nothing was changed"
            ) from None
        raise


def _below(base: str, path: str) -> str | None:
    """Return what of `path` lies below `base`, None when it lies elsewhere."""
    if path == base:
        return ""
    above = base.rstrip("/") + "/"
    return path.removeprefix(above) if path.startswith(above) else None
