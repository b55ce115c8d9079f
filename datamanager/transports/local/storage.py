"""The file system of the host where the mover runs, through the same port as every other machine."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from datamanager.errors import PathMissing, TransportError
from datamanager.machines import Machine
from datamanager.transports.local import files
from datamanager.transports.local.beneath import Beneath
from datamanager.transports.local.bulk import LocalBulk
from datamanager.transports.local.files import LocalReader, LocalWriter, file_stat, os_errors
from datamanager.transports.local.host_programs import LocalPrograms
from datamanager.transports.local.processes import LocalProcesses, LocalProgramBulk
from datamanager.transports.port import Session
from datamanager.transports.remote.many_files import ManyFiles
from datamanager.transports.remote.running import InstalledPrograms
from datamanager.transports.session_limiter import BoundedStorage
from datamanager.transports.values import FileKind, FileStat, KeptAttributes, require_file

_log = logging.getLogger(__name__)

IDLE_SECONDS = 60.0
"""How long programs for many files are kept after the last use of one."""


class LocalStorage(BoundedStorage):
    """The port's Storage for this host. Safe to share between threads. Sessions that have a program for many files are
    kept for the next user, until none was used for `idle_seconds`."""

    def __init__(self, machine: Machine, *, idle_seconds: float = IDLE_SECONDS) -> None:
        super().__init__(machine)
        self._beneath = Beneath(machine.base_dir)
        self._host = LocalProcesses(machine.stall_timeout)
        self._installed = InstalledPrograms()
        self._idle_seconds = idle_seconds
        self._changed = threading.Lock()
        self._idle: list[LocalSession] = []
        self._expiry: threading.Timer | None = None

    @property
    def idle(self) -> int:
        """How many sessions wait for their next use."""
        with self._changed:
            return len(self._idle)

    def expect(self, count: int = 1, *, many: bool = False) -> None:
        """See the port: with `many`, programs are started."""
        wanted = count - self.idle if many else 0
        for _ in range(self._limiter.try_acquire(wanted) if wanted > 0 else 0):
            threading.Thread(target=self._make_expected, name=f"dm-{self.machine}-expected", daemon=True).start()

    def close(self) -> None:
        """End the programs of idle sessions; those in use end when they are released. Idempotent."""
        super().close()
        self._end_idle()

    @contextmanager
    def _pooled(self) -> Iterator[Session]:
        with self._changed:
            session = self._idle.pop() if self._idle else None
        session = session or LocalSession(self._beneath, self._host, self._installed)
        try:
            yield session
        finally:
            self._put_back(session)

    def _make_expected(self) -> None:
        try:
            with self._pooled() as session:
                session.begin_many()
        except TransportError as exc:
            _log.info("%s: a program that is expected could not be started: %s", self.machine, exc)
        finally:
            self._limiter.release(1)

    def _put_back(self, session: LocalSession) -> None:
        """Keep a session whose program works."""
        with self._changed:
            keep = session.has_program and not self._limiter.closed
            if keep:
                self._idle.append(session)
                if self._expiry is not None:
                    self._expiry.cancel()
                self._expiry = threading.Timer(self._idle_seconds, self._end_idle)
                self._expiry.daemon = True
                self._expiry.start()
        if not keep:
            session.close()

    def _end_idle(self) -> None:
        with self._changed:
            if self._expiry is not None:
                self._expiry.cancel()
            idle, self._idle = self._idle, []
        for session in idle:
            session.close()


class LocalSession:
    """The port's Session by system calls, all of them below the base directory. Holds nothing open between two, but for
    a program for many files."""

    round_trip = 0.0
    real_path = staticmethod(files.real_path)

    def __init__(self, beneath: Beneath, host: LocalProcesses, installed: InstalledPrograms) -> None:
        self.bulk = LocalBulk(beneath)
        self.programs = LocalPrograms(beneath)
        self._beneath = beneath
        self._host = host
        self._installed = installed
        self._many: ManyFiles | None = None

    @property
    def has_program(self) -> bool:
        """Say whether `bulk` works by a program that can be used again."""
        return self._many is not None and not self._many.broken

    def begin_many(self) -> bool:
        """Have `bulk` work by a process of its own from now on, where that can be started."""
        if self._many is None and (many := self._installed.begin_many(self._host)) is not None:
            self._many = many
            self.bulk = LocalProgramBulk(self._beneath, many)
        return self._many is not None

    def close(self) -> None:
        """End its program, if it has one."""
        if self._many is not None:
            self._installed.end_many(self._many)

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
