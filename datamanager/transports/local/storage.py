"""The file system of the host where the mover runs, through the same port as every other machine."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

from datamanager.errors import NotSupported, PathExists, PathMissing, RemoteFailure
from datamanager.machines import Machine
from datamanager.transports.local.bulk import LocalMany
from datamanager.transports.local.files import LocalReader, LocalWriter, file_stat, os_errors, sync_directory
from datamanager.transports.local.follower import LocalFollower
from datamanager.transports.local.names import rename_to_free_name
from datamanager.transports.paths import shown
from datamanager.transports.port import Curl, Session
from datamanager.transports.session_limiter import Loans
from datamanager.transports.values import (
    Check,
    Features,
    FileKind,
    FileStat,
    Progress,
    PushTarget,
    no_check,
    no_progress,
)

_COPY_RANGE = 128 * 1024 * 1024
"""Bytes per copy_file_range: how often progress is told and a cancel heard."""
_LOOK = 0.2
"""Seconds between two looks at a program that runs."""


class LocalStorage:
    """The port's Storage for this host. Safe to share between threads; at most `max_connections` sessions are lent."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._loans = Loans(machine.name, machine.max_connections)

    @property
    def machine(self) -> str:
        """The machine's name."""
        return self._machine.name

    @property
    def in_use(self) -> int:
        """How many sessions are on loan."""
        return self._loans.taken

    @property
    def idle(self) -> int:
        """None is ever kept: there is nothing to connect."""
        return 0

    @contextmanager
    def session(self, check: Check = no_check) -> Iterator[Session]:
        """Lend a session; blocks while all are in use. Raises: MachineUnavailable after `close`."""
        with self._loans.places(1, check):
            yield LocalSession()

    @contextmanager
    def pair(self, check: Check = no_check) -> Iterator[tuple[Session, Session]]:
        """Lend two sessions together; see the port."""
        with self._loans.places(min(2, self._loans.most), check):
            yield LocalSession(), LocalSession()

    @contextmanager
    def spare(self, count: int) -> Iterator[list[Session]]:
        """Lend up to `count` further sessions without waiting; see the port."""
        taken = self._loans.take_free(count)
        try:
            yield [LocalSession() for _ in range(taken)]
        finally:
            self._loans.give_back(taken)

    def close(self) -> None:
        """Lend no more sessions. Idempotent."""
        self._loans.close()


class LocalSession:
    """The port's Session by system calls."""

    @property
    def features(self) -> Features:
        """Everything."""
        return Features(server_side_copy=True, remote_digest=True, fsync=True, free_space=True, atomic_no_replace=True)

    @property
    def round_trip(self) -> float:
        """None."""
        return 0.0

    def stat(self, path: str) -> FileStat:
        """Return what is at `path`, following links."""
        with os_errors(path):
            return file_stat(os.stat(path))

    def lstat(self, path: str) -> FileStat:
        """Return what is at `path` itself."""
        with os_errors(path):
            return file_stat(os.lstat(path))

    def real_path(self, path: str) -> str:
        """Return `path` with every link resolved."""
        with os_errors(path):
            return os.path.realpath(path, strict=True)

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
                    yield entry.name, self.lstat(entry.path)

    def make_dirs(self, path: str) -> None:
        """Make the directory and its missing parents."""
        try:
            with os_errors(path):
                os.makedirs(path, exist_ok=True)
        except PathMissing as exc:  # ENOTDIR: part of the way is a file
            raise PathExists(f"{shown(path)}: a file is in the way") from exc

    def free_space(self, path: str) -> int | None:
        """Return f_bavail in bytes."""
        with os_errors(path):
            found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    @contextmanager
    def open_read(self, path: str) -> Iterator[LocalReader]:
        """Open a regular file for reading; what is none (a FIFO would block) raises RemoteFailure."""
        with os_errors(path):
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            reader = LocalReader(handle, path)
            if reader.stat().kind is not FileKind.FILE:
                raise RemoteFailure(f"{shown(path)}: is no regular file")
            yield reader
        finally:
            os.close(handle)

    @contextmanager
    def create(self, path: str, *, mode: int = 0o600) -> Iterator[LocalWriter]:
        """Create a new file, exclusively."""
        with os_errors(path):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode & 0o777)
        with _written(LocalWriter(handle, path)) as writer:
            yield writer

    @contextmanager
    def reopen(self, path: str) -> Iterator[LocalWriter]:
        """Open an existing regular file for writing; a link is refused."""
        with os_errors(path):
            handle = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with _written(LocalWriter(handle, path)) as writer:
            with os_errors(path):
                found = file_stat(os.fstat(handle))
            if found.kind is not FileKind.FILE:
                raise RemoteFailure(f"{shown(path)}: is no regular file")
            yield writer

    def rename(self, source: str, destination: str, *, overwrite: bool) -> None:
        """Give a file its new name, and put the change on stable storage."""
        with os_errors(destination if os.path.lexists(source) else source):
            if overwrite:
                os.rename(source, destination)
            else:
                rename_to_free_name(source, destination)
        sync_directory(os.path.dirname(destination))

    def remove(self, path: str) -> None:
        """Remove a file."""
        with os_errors(path):
            os.unlink(path)

    def set_attributes(self, path: str, *, mode: int, mtime: int) -> None:
        """Set permission bits and modification time."""
        with os_errors(path):
            os.chmod(path, mode & 0o777)
            os.utime(path, (mtime, mtime))

    def copy_within(
        self,
        source: str,
        destination: str,
        progress: Progress = no_progress,
        beside: Sequence[Session] = (),  # noqa: ARG002 - the kernel needs no help
    ) -> bool:
        """Copy in the kernel where it can (reflink, server-side), else through memory."""
        with self.open_read(source) as reader, self.create(destination) as writer:
            size = reader.stat().size
            for offset in range(0, size, _COPY_RANGE):
                count = min(_COPY_RANGE, size - offset)
                writer.copy_from(reader, offset, count)
                progress(count)
            writer.flush()
        return True

    def digest(self, path: str, progress: Progress = no_progress) -> str | None:
        """Return the sha256, computed here."""
        digest = hashlib.sha256()
        with self.open_read(path) as reader:
            for block in reader.blocks():
                digest.update(block)
                progress(0)
        return digest.hexdigest()

    @contextmanager
    def follow(self, path: str) -> Iterator[LocalFollower]:
        """Begin to hash a file that is being written, in a thread."""
        with LocalFollower(path) as follower:
            yield follower

    def push(self, path: str, to: PushTarget, progress: Progress) -> bool:  # noqa: ARG002
        """Say that this host pushes nothing: what the mover itself sends is as direct."""
        return False

    def run(self, words: Sequence[str], progress: Progress = no_progress) -> int:
        """Run a program here, with the mover's rights."""
        nothing = subprocess.DEVNULL
        try:
            program = subprocess.Popen([*words], stdin=nothing, stdout=nothing, stderr=nothing, start_new_session=True)
        except OSError as exc:
            raise RemoteFailure(f"{words[0]} can't be run: {exc.strerror}") from exc
        with program:
            try:
                while True:
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        program.wait(_LOOK)
                        break
                    progress(0)
            except BaseException:
                program.kill()
                raise
        if program.returncode < 0:
            raise RemoteFailure(f"{words[0]} was killed by signal {-program.returncode}")
        return program.returncode

    def curl(
        self,
        config: bytes,  # noqa: ARG002
        authorities: bytes = b"",  # noqa: ARG002
        *,
        path: str = "",  # noqa: ARG002
        start: int = 0,  # noqa: ARG002
        progress: Progress = no_progress,  # noqa: ARG002
    ) -> AbstractContextManager[Curl]:
        """Refuse: what the mover itself fetches is on this host already."""
        raise NotSupported("this host fetches by the mover itself")

    @property
    def many(self) -> LocalMany:
        """Work on many small files at once."""
        return LocalMany()

    def abort(self) -> None:
        """Do nothing: a system call that hangs can't be broken."""


@contextmanager
def _written(writer: LocalWriter) -> Iterator[LocalWriter]:
    """Close the file in the end; only on a good one is a failure of that told."""
    try:
        yield writer
    except BaseException:
        writer.abandon()
        raise
    writer.close()
