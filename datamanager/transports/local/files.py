"""Open files of this host, and our errors for those of the system."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from datamanager.errors import PathMissing, TransportError
from datamanager.transports.local.beneath import Beneath, Entry, Walks
from datamanager.transports.values import Bytes, FileKind, FileStat, KeptAttributes, NextRange, error_of, require_file

_BLOCK = 1 << 20

_NOT_KEPT = {errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""A file system that has no such attributes."""
NO_SYNC = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS}
"""A file system that can't: network and user-space ones say so for directories."""
_NO_RANGE_COPY = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


@contextmanager
def os_errors(path: str) -> Iterator[None]:
    """Turn an OSError into ours, by errno: the one place for it."""
    try:
        yield
    except OSError as exc:
        raise error_of(exc.errno or 0, path) from exc


class LocalReader:
    """An open file; see the port's Reader."""

    def __init__(self, handle: int, path: str) -> None:
        self.handle = handle
        self._path = path

    def stat(self) -> FileStat:
        """Return the stat of the open file."""
        with os_errors(self._path):
            return file_stat(os.fstat(self.handle))

    def ranges(self, following: NextRange) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, block) of the ranges dealt out; the end of the file is the end."""
        while (dealt := following(True)) is not None:
            offset, length = dealt
            stop = offset + length
            for block in self.blocks(offset, length):
                yield offset, block
                offset += len(block)
            if offset < stop:
                return

    def blocks(self, offset: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """Yield the bytes in order, through one buffer of 1 MiB."""
        buffer = memoryview(bytearray(_BLOCK if length is None else min(length, _BLOCK)))
        stop = None if length is None else offset + length
        while stop is None or offset < stop:
            room = buffer if stop is None else buffer[: stop - offset]
            with os_errors(self._path):
                count = os.preadv(self.handle, [room], offset)
            if not count:
                return
            offset += count
            yield buffer[:count]


class LocalWriter:
    """A file open for writing; see the port's Writer.

    The first failure is kept: a file of which a write failed is never called good.
    """

    def __init__(self, handle: int, entry: Entry) -> None:
        self._handle = handle
        self._entry = entry
        self._path = entry.path
        self._failed_at: int | None = None
        self._failure: TransportError | None = None

    @property
    def unsettled(self) -> int | None:
        """Where a write failed; all others are done when they return."""
        return self._failed_at

    def write(self, offset: int, data: Bytes) -> None:
        """Write all of `data` at `offset`."""
        rest = memoryview(data).cast("B")
        with self._keeping_failures(offset):
            while rest:
                count = os.pwrite(self._handle, rest, offset)
                offset += count
                rest = rest[count:]

    def settle(self) -> None:
        """Raise what went wrong before, if anything did."""
        if self._failure is not None:
            raise self._failure

    def flush(self) -> None:
        """Put the file and its name on stable storage."""
        with self._keeping_failures():
            with suppressed(NO_SYNC):
                os.fsync(self._handle)
        with os_errors(self._path), suppressed(NO_SYNC):
            self._entry.sync_directory()

    def close(self) -> None:
        """Close the file. Raises: what went wrong before."""
        with os_errors(self._path):
            os.close(self._handle)
        self.settle()

    def abandon(self) -> None:
        """Close the file, whatever its errors: it is not wanted any more."""
        with contextlib.suppress(OSError):
            os.close(self._handle)

    def copy_from(self, reader: LocalReader, offset: int, count: int) -> None:
        """Copy a range of another file to the same range of this one; a source that ends early ends the copy."""
        stop = offset + count
        with self._keeping_failures(offset):
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
    def _keeping_failures(self, offset: int | None = None) -> Iterator[None]:
        self.settle()
        try:
            with os_errors(self._path):
                yield
        except TransportError as exc:
            self._failure, self._failed_at = exc, offset
            raise


@contextmanager
def opened(beneath: Beneath, path: str) -> Iterator[LocalReader]:
    """Open a regular file for reading; what is none (a FIFO would block), or a link, raises RemoteFailure."""
    with os_errors(path), beneath.entry(path) as entry:
        handle = entry.open(os.O_RDONLY | os.O_NONBLOCK)
    try:
        reader = LocalReader(handle, path)
        require_file(reader.stat(), path)
        yield reader
    finally:
        os.close(handle)


def created(beneath: Beneath, path: str, mode: int = 0o600) -> AbstractContextManager[LocalWriter]:
    """Create a new file, exclusively, for writing."""
    return _written(beneath, path, os.O_CREAT | os.O_EXCL, mode & 0o777)


def reopened(beneath: Beneath, path: str) -> AbstractContextManager[LocalWriter]:
    """Open an existing regular file for writing; a link is refused."""
    return _written(beneath, path, os.O_NONBLOCK)


@contextmanager
def _written(beneath: Beneath, path: str, flags: int, mode: int = 0o600) -> Iterator[LocalWriter]:
    """Open a regular file for writing, and close it in the end; only after success does a failure of that raise."""
    with beneath.walks() as walks:
        with os_errors(path):
            entry = walks.entry(path)
            handle = entry.open(os.O_WRONLY | flags, mode)
        writer = LocalWriter(handle, entry)
        try:
            with os_errors(path):
                require_file(file_stat(os.fstat(handle)), path)
            yield writer
        except BaseException:
            writer.abandon()
            raise
        writer.close()


def file_stat(found: os.stat_result) -> FileStat:
    """Return what a stat says, as the port's FileStat."""
    return FileStat(
        FileKind.of(found.st_mode),
        found.st_size,
        found.st_mtime_ns // 1_000_000_000,
        stat.S_IMODE(found.st_mode),
        (found.st_dev, found.st_ino),
        found.st_nlink,
        found.st_mtime_ns,
        found.st_ctime_ns,
    )


def real_path(path: str) -> str:
    """Return `path` with every link resolved: a name only, what it leads to may be another thing when it is used."""
    with os_errors(path):
        return os.path.realpath(path, strict=True)


def set_attributes(file: str | int, *, mode: int, mtime: int) -> KeptAttributes:
    """Set permission bits and modification time of a path or an open file, as far as its file system has them; return
    what it keeps. Raises: OSError."""
    with suppressed(_NOT_KEPT):
        os.chmod(file, mode & 0o777)
    with suppressed(_NOT_KEPT):
        os.utime(file, (mtime, mtime))
    return KeptAttributes.of(file_stat(os.stat(file)), mode=mode, mtime=mtime)


@contextmanager
def suppressed(numbers: set[int]) -> Iterator[None]:
    """Let an OSError with one of these numbers pass."""
    try:
        yield
    except OSError as exc:
        if exc.errno not in numbers:
            raise


_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def both_names(sources: Walks, destinations: Walks, source: str, destination: str) -> tuple[Entry, Entry]:
    """Find the two names of a rename."""
    with os_errors(source):
        old = sources.entry(source)
    with os_errors(destination):
        return old, destinations.entry(destination)


def rename(source: Entry, destination: Entry, *, overwrite: bool) -> None:
    """Give a file its new name; not flushed to stable storage. See the port's `rename`."""
    with os_errors((destination if source.exists() else source).path):
        if overwrite:
            source.rename(destination)
        else:
            _rename_to_free_name(source, destination)


def remove(entry: Entry) -> None:
    """Remove a file."""
    with os_errors(entry.path):
        entry.unlink()


def _rename_to_free_name(source: Entry, destination: Entry) -> None:
    """Rename by link and unlink, which never replaces; both names exist for a moment, or one only if that fails.

    Where links don't exist the name is looked at first, and one that appears in between is replaced.

    Raises: OSError; PermissionDenied and the like, naming the source, when it can't be removed.
    """
    try:
        source.link(destination)
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        if destination.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), destination.path) from exc
        source.rename(destination)
        return
    try:
        remove(source)
    except PathMissing:
        return  # the new name is the only one now, as was wanted: NFS answers so when it repeats an unlink
    except TransportError:
        # As sftp-server does it: left there, our own link would be in the way of the next try. The last name is never
        # taken, though: an unlink over a network may fail and yet have been done.
        with contextlib.suppress(OSError):
            if os.path.samestat(source.lstat(), destination.lstat()):
                destination.unlink()
        raise
