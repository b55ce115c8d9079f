"""Open files over SFTP: reads and writes in flight, in order, no status lost."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator

from paramiko.sftp import CMD_ATTRS, CMD_CLOSE, CMD_DATA, CMD_FSTAT, CMD_READ, CMD_WRITE, SFTP_EOF, SFTP_OK

from datamanager.errors import NoSpace, TransportError
from datamanager.transports.base import Bytes, FileStat
from datamanager.transports.paths import shown
from datamanager.transports.sftp_attributes import unpack_stat
from datamanager.transports.sftp_errors import (
    SFTP_FAILURE,
    SFTP_OP_UNSUPPORTED,
    check,
    code_of,
    expect,
    status_error,
)
from datamanager.transports.sftp_wire import Reply, Wire, string, u32, u64

READS_IN_FLIGHT = 32
WRITES_IN_FLIGHT = 64
SLOW = 10.0
"""How many times the usual patience an fsync or a server-side copy gets: it is silent while the disk works."""
_SPACE_IS_GONE = 1 << 20
"""Free bytes below which a bare FAILURE of a write is taken for a full file system."""


@contextlib.contextmanager
def patient(wire: Wire) -> Iterator[None]:
    """Allow one slow request its time."""
    usual = wire.channel.patience
    wire.channel.patience = usual * SLOW
    try:
        yield
    finally:
        wire.channel.patience = usual


class SftpReader:
    """An open file, read in order; see the port's Reader."""

    def __init__(self, wire: Wire, handle: bytes, path: str) -> None:
        self.handle = string(handle)
        self._wire = wire
        self._path = path

    def stat(self) -> FileStat:
        """Return the stat of the open file."""
        reply = expect(self._wire.call(CMD_FSTAT, self.handle), CMD_ATTRS, self._path)
        return unpack_stat(reply.fields())

    def blocks(self, offset: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """Yield the bytes in order, with several reads in flight.

        Up to the size that the file has now reads are sent ahead, beyond it one by one: a small file costs few
        requests, and one that grows (or whose size the server does not know, as in /proc) is read to its real end.
        """
        ahead = self.stat().size
        stop = None if length is None else offset + length
        flying: deque[tuple[int, int, int]] = deque()  # (request, offset, size), in the order of the offsets
        try:
            while stop is None or offset < stop or flying:
                while len(flying) < READS_IN_FLIGHT and (offset < ahead or not flying):
                    size = self._wire.read_block if stop is None else min(self._wire.read_block, stop - offset)
                    if size <= 0:
                        break
                    flying.append((self._ask(offset, size), offset, size))
                    offset += size
                number, at, size = flying.popleft()
                reply = self._wire.take(number)
                if code_of(reply) == SFTP_EOF:
                    return
                block = expect(reply, CMD_DATA, self._path).body[4:]
                if not block:
                    return
                if len(block) < size:  # a short read is no end: ask for the rest before anything behind it is given out
                    at += len(block)
                    flying.appendleft((self._ask(at, size - len(block)), at, size - len(block)))
                yield block
        finally:
            self._wire.forget(number for number, _, _ in flying)

    def close(self) -> None:
        """Close the file; nothing can be lost by a failure, so none is told."""
        with contextlib.suppress(TransportError):
            self._wire.forget([self._wire.post(CMD_CLOSE, self.handle)])

    def _ask(self, offset: int, size: int) -> int:
        return self._wire.post(CMD_READ, self.handle + u64(offset) + u32(size))


class SftpWriter:
    """A new file; see the port's Writer.

    The first failure is kept: a file of which a write failed is never called good.
    """

    def __init__(self, wire: Wire, handle: bytes, path: str, free_space: Callable[[], int | None]) -> None:
        self._wire = wire
        self._handle = string(handle)
        self._path = path
        self._free_space = free_space
        self._flying: deque[int] = deque()
        self._failure: TransportError | None = None

    def write(self, offset: int, data: Bytes) -> None:
        """Send `data` for `offset`, split into what the server takes."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), self._wire.write_block):
            piece = view[start : start + self._wire.write_block]
            while len(self._flying) >= WRITES_IN_FLIGHT:
                self._settle_one()
            head = self._handle + u64(offset + start) + u32(len(piece))
            self._flying.append(self._wire.post(CMD_WRITE, head, piece))

    def flush(self) -> None:
        """Wait for every status, then fsync where the server can."""
        self._settle()
        if "fsync@openssh.com" not in self._wire.extensions:
            return
        with patient(self._wire):
            reply = self._wire.extended("fsync@openssh.com", self._handle)
        if code_of(reply) != SFTP_OP_UNSUPPORTED:
            self._check(reply)

    def copy_from(self, reader: SftpReader, offset: int, count: int) -> None:
        """Let the server copy a range of an open file to the same range of this one, by its copy-data extension."""
        ranges = reader.handle + u64(offset) + u64(count) + self._handle + u64(offset)
        self._check(self._wire.extended("copy-data", ranges))

    def close(self) -> None:
        """Wait for every status, and for that of the close (NFS tells a full disk or quota only there)."""
        try:
            self._settle()
        except TransportError:
            self.abandon()
            raise
        with patient(self._wire):
            self._check(self._wire.call(CMD_CLOSE, self._handle))

    def abandon(self) -> None:
        """Close the file without asking how the writes went: the file is not wanted any more."""
        with contextlib.suppress(TransportError):
            self._wire.forget(self._flying)
            self._flying.clear()
            check(self._wire.call(CMD_CLOSE, self._handle), self._path)

    def _settle(self) -> None:
        while self._flying:
            self._settle_one()
        if self._failure is not None:
            raise self._failure

    def _settle_one(self) -> None:
        self._check(self._wire.take(self._flying.popleft()))

    def _check(self, reply: Reply) -> None:
        code = code_of(reply)
        if code == SFTP_OK:
            return
        error = status_error(reply, self._path)
        if code == SFTP_FAILURE:
            free = self._free_space()
            if free is not None and free < _SPACE_IS_GONE:
                error = NoSpace(f"{shown(self._path)}: the file system is full ({free} bytes left)")
        self._failure = self._failure or error
        raise self._failure
