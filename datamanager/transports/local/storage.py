"""The file system of the host where the mover runs, through the same port as every other machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from datamanager.errors import PathMissing
from datamanager.transports.local.bulk import LocalBulk
from datamanager.transports.local.files import (
    LocalReader,
    LocalWriter,
    created,
    file_stat,
    lstat,
    opened,
    os_errors,
    real_path,
    remove,
    rename,
    reopened,
    sync_directory,
)
from datamanager.transports.local.host_programs import LocalPrograms
from datamanager.transports.port import Session
from datamanager.transports.session_limiter import BoundedStorage
from datamanager.transports.values import FileStat


class LocalStorage(BoundedStorage):
    """The port's Storage for this host. Safe to share between threads."""

    @property
    def idle(self) -> int:
        """None is ever kept: there is nothing to connect."""
        return 0

    @contextmanager
    def _pooled(self) -> Iterator[Session]:
        yield LocalSession()


class LocalSession:
    """The port's Session by system calls."""

    @property
    def round_trip(self) -> float:
        """None."""
        return 0.0

    @property
    def bulk(self) -> LocalBulk:
        """Work on many small files at once."""
        return LocalBulk()

    @property
    def programs(self) -> LocalPrograms:
        """What this host does by itself."""
        return LocalPrograms()

    def stat(self, path: str) -> FileStat:
        """Return what is at `path`, following links."""
        with os_errors(path):
            return file_stat(os.stat(path))

    def lstat(self, path: str) -> FileStat:
        """Return what is at `path` itself."""
        return lstat(path)

    def real_path(self, path: str) -> str:
        """Return `path` with every link resolved."""
        return real_path(path)

    def list_dir(self, path: str) -> Iterator[tuple[str, FileStat]]:
        """Yield (name, lstat) of each entry; one that goes away meanwhile is left out."""
        with os_errors(path):
            entries = os.scandir(path)
        with entries:
            while True:
                with os_errors(path):
                    entry = next(entries, None)
                if entry is None:
                    return
                with contextlib.suppress(PathMissing):
                    yield entry.name, lstat(entry.path)

    def free_space(self, path: str) -> int | None:
        """Return f_bavail in bytes."""
        with os_errors(path):
            found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    def open_read(self, path: str) -> AbstractContextManager[LocalReader]:
        """Open a regular file for reading."""
        return opened(path)

    def create(self, path: str, *, mode: int = 0o600) -> AbstractContextManager[LocalWriter]:
        """Create a new file, exclusively."""
        return created(path, mode)

    def reopen(self, path: str) -> AbstractContextManager[LocalWriter]:
        """Open an existing regular file for writing; a link is refused."""
        return reopened(path)

    def rename(self, source: str, destination: str, *, overwrite: bool) -> None:
        """Give a file its new name, and put the change on stable storage."""
        rename(source, destination, overwrite=overwrite)
        sync_directory(os.path.dirname(destination))

    def remove(self, path: str) -> None:
        """Remove a file."""
        remove(path)

    def set_attributes(self, path: str, *, mode: int, mtime: int) -> None:
        """Set permission bits and modification time."""
        with os_errors(path):
            os.chmod(path, mode & 0o777)
            os.utime(path, (mtime, mtime))

    def abort(self) -> None:
        """Do nothing: a system call that hangs can't be broken."""
