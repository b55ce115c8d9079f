"""The file system of the host where the mover runs, through the same port as every other machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager

from datamanager.errors import PathMissing
from datamanager.transports.local import files
from datamanager.transports.local.bulk import LocalBulk
from datamanager.transports.local.files import file_stat, os_errors
from datamanager.transports.local.host_programs import LocalPrograms
from datamanager.transports.port import Session
from datamanager.transports.session_limiter import BoundedStorage
from datamanager.transports.values import FileStat, KeptAttributes


class LocalStorage(BoundedStorage):
    """The port's Storage for this host. Safe to share between threads."""

    idle = 0
    """No session is kept: there is nothing to connect."""

    @contextmanager
    def _pooled(self) -> Iterator[Session]:
        yield LocalSession()


class LocalSession:
    """The port's Session by system calls."""

    round_trip = 0.0
    bulk = LocalBulk()
    programs = LocalPrograms()

    lstat = staticmethod(files.lstat)
    real_path = staticmethod(files.real_path)
    open_read = staticmethod(files.opened)
    create = staticmethod(files.created)
    reopen = staticmethod(files.reopened)
    remove = staticmethod(files.remove)

    def stat(self, path: str) -> FileStat:
        """Return what is at `path`, following links."""
        with os_errors(path):
            return file_stat(os.stat(path))

    def list_dir(self, path: str) -> Iterator[tuple[str, FileStat]]:
        """Yield (name, lstat) of each entry; one that is removed meanwhile is left out."""
        with os_errors(path):
            entries = os.scandir(path)
        with entries:
            while True:
                with os_errors(path):
                    entry = next(entries, None)
                if entry is None:
                    return
                with contextlib.suppress(PathMissing):
                    yield entry.name, files.lstat(entry.path)

    def free_space(self, path: str) -> int | None:
        """Return f_bavail in bytes; None for a file system of no blocks."""
        with os_errors(path):
            found = os.statvfs(path)
        return found.f_bavail * found.f_frsize if found.f_blocks else None

    def rename(self, source: str, destination: str, *, overwrite: bool) -> None:
        """Give a file its new name, and put the change on stable storage."""
        files.rename(source, destination, overwrite=overwrite)
        files.sync_directory(os.path.dirname(destination))

    def set_attributes(self, path: str, *, mode: int, mtime: int) -> KeptAttributes:
        """Set permission bits and modification time."""
        with os_errors(path):
            return files.set_attributes(path, mode=mode, mtime=mtime)

    def abort(self) -> None:
        """Do nothing: a system call that hangs can't be broken."""
