"""The file system of the host where the mover runs, through the same port as every other machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from datamanager.errors import PathMissing
from datamanager.machines import Machine
from datamanager.transports.local import files
from datamanager.transports.local.beneath import Beneath
from datamanager.transports.local.bulk import LocalBulk
from datamanager.transports.local.files import LocalReader, LocalWriter, file_stat, os_errors
from datamanager.transports.local.host_programs import LocalPrograms
from datamanager.transports.port import Session
from datamanager.transports.session_limiter import BoundedStorage
from datamanager.transports.values import FileKind, FileStat, KeptAttributes, require_file


class LocalStorage(BoundedStorage):
    """The port's Storage for this host. Safe to share between threads."""

    idle = 0
    """No session is kept: there is nothing to connect."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine)
        self._beneath = Beneath(machine.base_dir)

    def expect(self, count: int = 1, *, many: bool = False) -> None:
        """Do nothing: there is nothing to prepare."""

    @contextmanager
    def _pooled(self) -> Iterator[Session]:
        yield LocalSession(self._beneath)


class LocalSession:
    """The port's Session by system calls, all of them below the base directory. Holds nothing open between two."""

    round_trip = 0.0
    real_path = staticmethod(files.real_path)

    def __init__(self, beneath: Beneath) -> None:
        self._beneath = beneath
        self.bulk = LocalBulk(self._beneath)
        self.programs = LocalPrograms(self._beneath)

    def begin_many(self) -> bool:
        """Do nothing: no program would be quicker here."""
        return False

    def stat(self, path: str) -> FileStat:
        """Return what is at `path`, following a last link as long as that leads nowhere else than below base_dir."""
        found = self.lstat(path)
        return self.lstat(files.real_path(path)) if found.kind is FileKind.SYMLINK else found

    def lstat(self, path: str) -> FileStat:
        """Return what is at `path` itself."""
        with os_errors(path), self._beneath.entry(path) as entry:
            return file_stat(entry.lstat())

    def list_dir(self, path: str) -> Iterator[tuple[str, FileStat]]:
        """Yield (name, lstat) of each entry; one that is removed meanwhile is left out."""
        with os_errors(path), self._beneath.entry(path) as entry:
            handle = entry.open_directory()
        try:
            with os_errors(path):
                entries = os.scandir(handle)
            with entries:
                while True:
                    with os_errors(path):
                        one = next(entries, None)
                    if one is None:
                        return
                    with contextlib.suppress(PathMissing), os_errors(one.name):
                        yield one.name, file_stat(os.stat(one.name, dir_fd=handle, follow_symlinks=False))
        finally:
            os.close(handle)

    def free_space(self, path: str) -> int | None:
        """Return f_bavail in bytes; None for a file system of no blocks."""
        with os_errors(path), self._beneath.entry(path) as entry:
            handle = entry.open(os.O_PATH)
            try:
                found = os.statvfs(handle)
            finally:
                os.close(handle)
        return found.f_bavail * found.f_frsize if found.f_blocks else None

    def open_read(self, path: str) -> AbstractContextManager[LocalReader]:
        """Open a file for reading; a link is refused."""
        return files.opened(self._beneath, path)

    def create(self, path: str, *, mode: int = 0o600) -> AbstractContextManager[LocalWriter]:
        """Create a new file, exclusively."""
        return files.created(self._beneath, path, mode)

    def reopen(self, path: str) -> AbstractContextManager[LocalWriter]:
        """Open an existing file for writing; a link is refused."""
        return files.reopened(self._beneath, path)

    def rename(self, source: str, destination: str, *, overwrite: bool) -> None:
        """Give a file its new name, and put the change on stable storage."""
        with self._beneath.walks() as sources, self._beneath.walks() as destinations:
            old, new = files.both_names(sources, destinations, source, destination)
            files.rename(old, new, overwrite=overwrite)
            with os_errors(destination), files.suppressed(files.NO_SYNC):
                new.sync_directory()

    def remove(self, path: str) -> None:
        """Remove a file."""
        with os_errors(path), self._beneath.entry(path) as entry:
            entry.unlink()

    def set_attributes(self, path: str, *, mode: int, mtime: int) -> KeptAttributes:
        """Set permission bits and modification time of a file; a link is refused."""
        with os_errors(path), self._beneath.entry(path) as entry:
            handle = entry.open(os.O_PATH)
            try:
                require_file(file_stat(os.fstat(handle)), path)
                # this very file, which need not be readable
                return files.set_attributes(f"/proc/self/fd/{handle}", mode=mode, mtime=mtime)
            finally:
                os.close(handle)

    def abort(self) -> None:
        """Do nothing: a system call that hangs can't be broken."""
