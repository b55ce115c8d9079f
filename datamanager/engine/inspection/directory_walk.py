"""Walk a directory on a machine: every regular file below it, for registering a whole tree.

Symbolic links are never followed, so the walk can't leave the directory nor run in a circle. Its memory is bounded:
the names of directories still to be read, one open directory, nothing of the files that it has yielded.
"""

from __future__ import annotations

import posixpath
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field

from datamanager.domain.location import NAME_MAX, PART_SUFFIX, PATH_MAX
from datamanager.engine.path_confinement import confined, relative
from datamanager.errors import InvalidRequest, PathMissing, SourceMissing, TooLarge
from datamanager.machines import Machine
from datamanager.transports.port import Session
from datamanager.transports.values import FileKind, FileStat

DEPTH_MAX = 64
"""Directories below one another."""
ENTRIES_MAX = 200_000
"""Entries that one walk looks at, of all kinds: what bounds its time and its memory."""


@dataclass(slots=True)
class Walk:
    """What a walk has seen, and its limits. The counts are right when `files` is exhausted."""

    max_files: int
    max_entries: int = ENTRIES_MAX
    skipped: int = 0
    """Links, special files, and partial files of transfers under way."""
    unnameable: int = 0
    """Names that no object can have: not valid UTF-8, or a path that is too long. Nothing below such a directory is
    looked at."""
    _entries: int = field(default=0, repr=False)
    _files: int = field(default=0, repr=False)

    def files(self, session: Session, root: str, prefix: str = "") -> Iterator[tuple[str, FileStat]]:
        """Yield every regular file below the directory `root`: its path from there, and its lstat.

        `root` is absolute on the machine; `prefix` is where it lies below base_dir, which counts for the length of
        paths. The session must not be used for anything else meanwhile. A directory that goes away meanwhile is left
        out.

        Raises: TooLarge for more than the limits allow; PathMissing when `root` is not there.
        """
        above = posixpath.join(prefix, "") if prefix else ""
        pending = [""]
        while pending:
            below = pending.pop()
            before = f"{below}/" if below else ""
            try:
                with closing(listed(session, posixpath.join(root, below) if below else root)) as entries:
                    for name, stat in entries:
                        path = before + name
                        self._count()
                        if self._nameless(name, above + path):
                            continue
                        if stat.kind is FileKind.DIRECTORY:
                            if path.count("/") >= DEPTH_MAX:
                                raise TooLarge(f"{path}: more than {DEPTH_MAX} directories are nested")
                            pending.append(path)
                        elif stat.kind is FileKind.FILE:
                            self._count_file()
                            yield path, stat
                        else:
                            self.skipped += 1
            except PathMissing:
                if not below:
                    raise

    def _nameless(self, name: str, path: str) -> bool:
        """Say whether nothing can be registered under this name, and count it."""
        if name.endswith(PART_SUFFIX):
            self.skipped += 1
            return True
        try:
            good = len(name.encode()) <= NAME_MAX and len(path.encode()) <= PATH_MAX
        except UnicodeEncodeError:
            good = False
        if not good:
            self.unnameable += 1
        return not good

    def _count(self) -> None:
        self._entries += 1
        if self._entries > self.max_entries:
            raise TooLarge(f"more than {self.max_entries} entries are there")

    def _count_file(self) -> None:
        self._files += 1
        if self._files > self.max_files:
            raise TooLarge(f"more than {self.max_files} files are there")


def tree_root(session: Session, machine: Machine, prefix: str) -> tuple[str, str]:
    """Return where the directory `prefix` (normalised, "" is base_dir) is on the machine with links resolved, and its
    canonical path below base_dir ("" for base_dir itself).

    Raises: SourceMissing when nothing is there; InvalidRequest when it is no directory; PathNotAllowed when links lead
    out of base_dir.
    """
    try:
        real = confined(session, machine, prefix).rstrip("/") or "/"
        found = session.stat(real)
    except PathMissing:
        raise SourceMissing(f"there is no directory {machine.name}:{prefix}") from None
    if found.kind is not FileKind.DIRECTORY:
        what = f"{machine.name}:{prefix} is a {found.kind.value}, not a directory"
        raise InvalidRequest(f"path: {what}", {"path": what})
    return real, relative(session, machine, real)


def listed(session: Session, path: str) -> Generator[tuple[str, FileStat], None, None]:
    """Yield a directory's entries: a generator of ours, so that leaving early closes the machine's handle at once."""
    yield from session.list_dir(path)
