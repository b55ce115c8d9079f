"""Open files over SFTP: reads and writes in flight, in order, no status lost."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Iterator

from paramiko import sftp

from datamanager.errors import RemoteFailure, TransportError
from datamanager.transports.channel import SLOW
from datamanager.transports.sftp.errors import SPACE_IS_GONE, check, expect, write_error
from datamanager.transports.sftp.server_behaviour import FSYNC, REFUSED, ServerBehaviour
from datamanager.transports.sftp.wire import Reply, Wire, string, u32, u64, unpack_stat
from datamanager.transports.values import Bytes, FileStat, NextRange, shown

WRITES_IN_FLIGHT = 16
"""Twice what OpenSSH's window lets through. More would make no connection faster, and with several of them what is not
answered yet would fill the restart marker's window: all would wait until the slowest has caught up."""


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
        self.seen: FileStat | None = None
        """What it was when it was opened, if that was asked for."""
        self._wire = wire
        self._path = path

    def stat(self) -> FileStat:
        """Return the stat of the open file."""
        reply = expect(self._wire.call(sftp.CMD_FSTAT, self.handle), sftp.CMD_ATTRS, self._path)
        return unpack_stat(reply.fields())

    def blocks(self, offset: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """Yield the bytes in order, with several reads in flight.

        Up to the size that the file has now reads are sent ahead, beyond it one by one: a small file costs few
        requests, and one that grows (or whose size the server does not know, as in /proc) is read to its real end.
        """
        ahead = (self.seen or self.stat()).size
        stop = math.inf if length is None else offset + length
        start = offset

        def following(wait: bool) -> tuple[int, int] | None:
            nonlocal start
            at = start
            if at < ahead:
                start = int(min(ahead, stop))
            elif wait:
                start = int(min(at + self._wire.read_block, stop))
            return (at, start - at) if at < start else None

        for _, block in self.ranges(following):
            yield block

    def ranges(self, following: NextRange) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, block) of the ranges dealt out, with reads in flight beyond the end of each."""
        flying: deque[tuple[int, int, int]] = deque()  # (request, offset, size), in the order of sending
        offset = length = 0  # what is still to be requested of the last range
        try:
            while True:
                while len(flying) < self._wire.reads_in_flight:
                    if not length:
                        dealt = following(not flying)
                        if dealt is None:
                            break
                        offset, length = dealt
                        continue
                    size = min(self._wire.read_block, length)
                    flying.append((self._request(offset, size), offset, size))
                    offset, length = offset + size, length - size
                if not flying:
                    return
                number, at, size = flying.popleft()
                reply = self._wire.take(number)
                if reply.code == sftp.SFTP_EOF:
                    return
                block = expect(reply, sftp.CMD_DATA, self._path).body[4:]
                if not block:
                    return
                if len(block) > size:
                    raise RemoteFailure(f"{shown(self._path)}: the server answered a read with more than was requested")
                if len(block) < size:  # a short read is no end: request the rest before anything behind it is given out
                    rest = at + len(block)
                    flying.appendleft((self._request(rest, size - len(block)), rest, size - len(block)))
                yield at, block
                self._wire.give_back(reply)
        finally:
            self._wire.forget(number for number, _, _ in flying)

    def close(self) -> None:
        """Close the file; nothing can be lost by a failure, so none is raised."""
        with contextlib.suppress(TransportError):
            self._wire.forget([self._wire.post(sftp.CMD_CLOSE, self.handle)])

    def _request(self, offset: int, size: int) -> int:
        return self._wire.post(sftp.CMD_READ, self.handle + u64(offset) + u32(size))


class SftpWriter:
    """A file open for writing; see the port's Writer.

    The first failure is kept: a file of which a write failed is never called good.
    """

    def __init__(
        self, wire: Wire, handle: bytes, path: str, server: ServerBehaviour, free_space: Callable[[], int | None]
    ) -> None:
        self._wire = wire
        self._handle = string(handle)
        self._path = path
        self._server = server
        self._free_space = free_space
        self._flying: deque[tuple[int, int]] = deque()  # (request, offset), in the order of sending
        self._failed_at: int | None = None
        self._failure: TransportError | None = None

    @property
    def unsettled(self) -> int | None:
        """The lowest offset whose status did not come, or was bad."""
        offsets = [offset for _, offset in self._flying]
        if self._failed_at is not None:
            offsets.append(self._failed_at)
        return min(offsets, default=None)

    def write(self, offset: int, data: Bytes) -> None:
        """Send `data` for `offset`, split into what the server takes."""
        view = memoryview(data).cast("B")
        for start in range(0, len(view), self._wire.write_block):
            piece = view[start : start + self._wire.write_block]
            while len(self._flying) >= WRITES_IN_FLIGHT:
                self._settle_one()
            head = self._handle + u64(offset + start) + u32(len(piece))
            self._flying.append((self._wire.post(sftp.CMD_WRITE, head, piece), offset + start))

    def settle(self) -> None:
        """Wait for every status."""
        while self._flying:
            self._settle_one()
        if self._failure is not None:
            raise self._failure

    def flush(self) -> None:
        """Wait for every status, then fsync where the server can."""
        self.settle()
        if FSYNC not in self._wire.extensions:
            return
        with patient(self._wire):
            reply = self._wire.extended(FSYNC, self._handle)
        if reply.code in REFUSED:
            self._server.syncs = False
        else:
            self._check(reply)

    def begin_copy(self, reader: SftpReader, offset: int, count: int) -> int:
        """Have the server copy a range of an open file to the same range of this one, by its copy-data extension;
        return the request's number, which is `copied` or `forget`ten later."""
        ranges = reader.handle + u64(offset) + u64(count) + self._handle + u64(offset)
        return self._wire.post(sftp.CMD_EXTENDED, string("copy-data") + ranges)

    def copied(self, number: int) -> bool:
        """Return once the range is copied; False when the server has no such extension."""
        with patient(self._wire):
            reply = self._wire.take(number)
        if reply.code in REFUSED:
            return False
        self._check(reply)
        return True

    def forget(self, number: int) -> None:
        """Drop the answer to a copy when it comes: the file is not wanted any more."""
        self._wire.forget([number])

    def close(self) -> None:
        """Wait for every status, and for that of the close (NFS reports a full disk or quota only there)."""
        try:
            self.settle()
        except TransportError:
            self.abandon()
            raise
        with patient(self._wire):
            self._check(self._wire.call(sftp.CMD_CLOSE, self._handle))

    def abandon(self) -> None:
        """Close the file without asking how the writes went: the file is not wanted any more."""
        with contextlib.suppress(TransportError):
            self._wire.forget(number for number, _ in self._flying)
            self._flying.clear()
            check(self._wire.call(sftp.CMD_CLOSE, self._handle), self._path)

    def _settle_one(self) -> None:
        number, offset = self._flying[0]
        reply = self._wire.take(number)
        self._flying.popleft()
        if reply.code != sftp.SFTP_OK:
            self._failed_at = offset if self._failed_at is None else min(self._failed_at, offset)
        self._check(reply)

    def _check(self, reply: Reply) -> None:
        if reply.code != sftp.SFTP_OK:
            free = self._free_space() if reply.code == sftp.SFTP_FAILURE else None
            full = free is not None and free < SPACE_IS_GONE
            self._failure = self._failure or write_error(reply, self._path, full)
            raise self._failure
