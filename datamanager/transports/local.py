"""The file system of the host where the mover runs, through the same port as every other machine."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from datamanager.errors import (
    NoSpace,
    PathExists,
    PathMissing,
    PermissionDenied,
    RemoteFailure,
    TransportError,
)
from datamanager.machines import Machine
from datamanager.transports.base import (
    Bytes,
    Features,
    FileKind,
    FileStat,
    Progress,
    Session,
    no_progress,
)
from datamanager.transports.loans import Loans
from datamanager.transports.paths import shown
from datamanager.transports.sftp_attributes import kind_of

_BLOCK = 1 << 20
_COPY_RANGE = 128 * 1024 * 1024
"""Bytes per copy_file_range: how often progress is told and a cancel heard."""

_ERRORS: dict[int, type[TransportError]] = {
    errno.ENOENT: PathMissing,
    errno.ENOTDIR: PathMissing,
    errno.EEXIST: PathExists,
    errno.EACCES: PermissionDenied,
    errno.EPERM: PermissionDenied,
    errno.EROFS: PermissionDenied,
    errno.ENOSPC: NoSpace,
    errno.EDQUOT: NoSpace,
}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NO_RANGE_COPY = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def _os_errors(path: str) -> Iterator[None]:
    """Turn an OSError into ours, by errno: the one place for it."""
    try:
        yield
    except OSError as exc:
        kind = _ERRORS.get(exc.errno or 0, RemoteFailure)
        raise kind(f"{shown(path)}: {exc.strerror}") from exc


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
    def session(self) -> Iterator[Session]:
        """Lend a session; blocks while all are in use. Raises: MachineUnavailable after `close`."""
        with self._loans.places(1):
            yield LocalSession()

    @contextmanager
    def pair(self) -> Iterator[tuple[Session, Session]]:
        """Lend two sessions together; see the port."""
        with self._loans.places(min(2, self._loans.most)):
            yield LocalSession(), LocalSession()

    def close(self) -> None:
        """Lend no more sessions. Idempotent."""
        self._loans.close()


class LocalSession:
    """The port's Session by system calls."""

    @property
    def features(self) -> Features:
        """Everything."""
        return Features(server_side_copy=True, remote_digest=True, fsync=True, free_space=True, atomic_no_replace=True)

    def stat(self, path: str) -> FileStat:
        """Return what is at `path`, following links."""
        with _os_errors(path):
            return _file_stat(os.stat(path))

    def lstat(self, path: str) -> FileStat:
        """Return what is at `path` itself."""
        with _os_errors(path):
            return _file_stat(os.lstat(path))

    def real_path(self, path: str) -> str:
        """Return `path` with every link resolved."""
        with _os_errors(path):
            return os.path.realpath(path, strict=True)

    def list_dir(self, path: str) -> Iterator[tuple[str, FileStat]]:
        """Yield (name, lstat) of each entry; one that goes away meanwhile is left out."""
        with _os_errors(path):
            entries = os.scandir(path)
        with entries:
            while True:
                with _os_errors(path):
                    entry = next(entries, None)
                if entry is None:
                    return
                with contextlib.suppress(PathMissing):
                    yield entry.name, self.lstat(entry.path)

    def make_dirs(self, path: str) -> None:
        """Make the directory and its missing parents."""
        try:
            with _os_errors(path):
                os.makedirs(path, exist_ok=True)
        except PathMissing as exc:  # ENOTDIR: part of the way is a file
            raise PathExists(f"{shown(path)}: a file is in the way") from exc

    def free_space(self, path: str) -> int | None:
        """Return f_bavail in bytes."""
        with _os_errors(path):
            found = os.statvfs(path)
        return found.f_bavail * found.f_frsize

    @contextmanager
    def open_read(self, path: str) -> Iterator[LocalReader]:
        """Open a regular file for reading; what is none (a FIFO would block) raises RemoteFailure."""
        with _os_errors(path):
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
        with _os_errors(path):
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode & 0o777)
        writer = LocalWriter(handle, path)
        try:
            yield writer
        except BaseException:
            with contextlib.suppress(OSError):
                os.close(handle)
            raise
        writer.close()

    def rename(self, source: str, destination: str, *, overwrite: bool) -> None:
        """Give a file its new name, and put the change on stable storage."""
        with _os_errors(destination if os.path.lexists(source) else source):
            if overwrite:
                os.rename(source, destination)
            else:
                _rename_to_free_name(source, destination)
        _sync_directory(os.path.dirname(destination))

    def remove(self, path: str) -> None:
        """Remove a file."""
        with _os_errors(path):
            os.unlink(path)

    def set_attributes(self, path: str, *, mode: int, mtime: int) -> None:
        """Set permission bits and modification time."""
        with _os_errors(path):
            os.chmod(path, mode & 0o777)
            os.utime(path, (mtime, mtime))

    def copy_within(self, source: str, destination: str, progress: Progress = no_progress) -> bool:
        """Copy in the kernel where it can (reflink, server-side), else through memory."""
        with self.open_read(source) as reader, self.create(destination) as writer:
            size = reader.stat().size
            for offset in range(0, size, _COPY_RANGE):
                count = min(_COPY_RANGE, size - offset)
                writer.copy_from(reader, offset, count)
                progress(count)
        return True

    def digest(self, path: str, progress: Progress = no_progress) -> str | None:
        """Return the sha256, computed here."""
        digest = hashlib.sha256()
        with self.open_read(path) as reader:
            for block in reader.blocks():
                digest.update(block)
                progress(0)
        return digest.hexdigest()


class LocalReader:
    """An open file; see the port's Reader."""

    def __init__(self, handle: int, path: str) -> None:
        self.handle = handle
        self._path = path

    def stat(self) -> FileStat:
        """Return the stat of the open file."""
        with _os_errors(self._path):
            return _file_stat(os.fstat(self.handle))

    def blocks(self, offset: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """Yield the bytes in order, through one buffer of 1 MiB."""
        buffer = memoryview(bytearray(_BLOCK))
        stop = None if length is None else offset + length
        while stop is None or offset < stop:
            room = buffer if stop is None else buffer[: stop - offset]
            with _os_errors(self._path):
                count = os.preadv(self.handle, [room], offset)
            if not count:
                return
            offset += count
            yield buffer[:count]


class LocalWriter:
    """A new file; see the port's Writer.

    The first failure is kept: a file of which a write failed is never called good.
    """

    def __init__(self, handle: int, path: str) -> None:
        self._handle = handle
        self._path = path
        self._failure: TransportError | None = None

    def write(self, offset: int, data: Bytes) -> None:
        """Write all of `data` at `offset`."""
        rest = memoryview(data).cast("B")
        with self._keeping_failures():
            while rest:
                count = os.pwrite(self._handle, rest, offset)
                offset += count
                rest = rest[count:]

    def flush(self) -> None:
        """Put the file and its name on stable storage."""
        with self._keeping_failures():
            os.fsync(self._handle)
        _sync_directory(os.path.dirname(self._path))

    def close(self) -> None:
        """Close the file. Raises: what went wrong before."""
        with _os_errors(self._path):
            os.close(self._handle)
        if self._failure is not None:
            raise self._failure

    def copy_from(self, reader: LocalReader, offset: int, count: int) -> None:
        """Copy a range of another file to the same range of this one; a source that ends early ends the copy."""
        stop = offset + count
        with self._keeping_failures():
            try:
                while offset < stop and (
                    done := os.copy_file_range(reader.handle, self._handle, stop - offset, offset, offset)
                ):
                    offset += done
            except OSError as exc:
                if exc.errno not in _NO_RANGE_COPY:
                    raise
        for block in reader.blocks(offset, stop - offset):
            self.write(offset, block)
            offset += len(block)

    @contextmanager
    def _keeping_failures(self) -> Iterator[None]:
        if self._failure is not None:
            raise self._failure
        try:
            with _os_errors(self._path):
                yield
        except TransportError as exc:
            self._failure = exc
            raise


def _file_stat(found: os.stat_result) -> FileStat:
    return FileStat(kind_of(found.st_mode), found.st_size, int(found.st_mtime), stat.S_IMODE(found.st_mode))


def _rename_to_free_name(source: str, destination: str) -> None:
    """Rename by link and unlink, which never replaces; both names exist for a moment, or one only if that fails.

    Where links don't exist the name is looked at first, and one that appears in between is replaced.

    Raises: OSError; PermissionDenied and the like, naming the source, when it can't be taken away.
    """
    try:
        os.link(source, destination, follow_symlinks=False)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        if os.path.lexists(destination):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), destination) from exc
        os.rename(source, destination)
        return
    try:
        with _os_errors(source):
            os.unlink(source)
    except PathMissing:
        return  # the new name is the only one now, as was wanted: NFS answers so when it repeats an unlink
    except TransportError:
        # As sftp-server does it: left there, our own link would be in the way of the next try. The last name is never
        # taken, though: an unlink over a network may fail and yet have been done.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.lstat(source), os.lstat(destination)):
                os.unlink(destination)
        raise


def _sync_directory(path: str) -> None:
    with _os_errors(path):
        handle = os.open(path or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
