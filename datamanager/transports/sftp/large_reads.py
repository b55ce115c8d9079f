"""Large files read by a program on the machine, which saves a request for each piece and copies in the SFTP server.
What it reads is compared with the file that is open over SFTP; where there is no program, or it fails, SFTP reads on.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Generator, Iterator

from paramiko import sftp

from datamanager.errors import RemoteFailure
from datamanager.transports.channel import LONG_PATH
from datamanager.transports.remote.file_stream import FileStream
from datamanager.transports.remote.running import InstalledPrograms
from datamanager.transports.sftp.files import SftpReader
from datamanager.transports.sftp.wire import Wire, string, unpack_stat
from datamanager.transports.values import path_replaced, shown

_log = logging.getLogger(__name__)

STREAMED_FROM = 128 * 1024 * 1024
"""Bytes from which on a program is started; for less, that takes longer than it saves."""
_WHILE_STARTING = 8 * 1024 * 1024
"""Bytes requested over SFTP at once while it starts."""
_SAMPLES, _SAMPLE = 8, 4096
"""How many pieces of what the program passes on, at places that nobody can guess, are compared with the file that is
open; and the bytes of each."""

Samples = deque[tuple[int, bytes]]
"""Pieces of the open file with their offsets, in order."""


class LargeReader(SftpReader):
    """See the port's Reader. `blocks` of a large file come by a program, over a short path: a long one is limited by
    windows, of which several connections have more.
    """

    def __init__(self, wire: Wire, handle: bytes, path: str, installed: InstalledPrograms) -> None:
        super().__init__(wire, handle, path)
        self._installed = installed

    def blocks(self, offset: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """Yield the bytes in order. Raises: as `_judge_other_bytes`, when a program does not read what was opened."""
        size = (self.seen or self.stat()).size
        end = size if length is None else min(size, offset + length)
        begin = offset
        possible = self._wire.channel.passes_on_files and self._installed.pass_on_files
        if possible and end - offset >= STREAMED_FROM and self._wire.round_trip < LONG_PATH:
            offset = yield from self._passed_on(offset, end)
        yield from super().blocks(offset, None if length is None else length - (offset - begin))

    def _passed_on(self, offset: int, end: int) -> Generator[memoryview, None, int]:
        """Yield the bytes over SFTP until a program is ready, then by that; return up to where: before `end` when there
        is none, or it failed.
        """
        try:
            stream = FileStream(self._wire.channel, self._path)
        except RemoteFailure as exc:
            self._give_up_programs(exc.detail)
            return offset
        with stream:
            offset = yield from self._until_ready(stream, offset, end)
            begin, samples = offset, self._samples(offset, end)
            if not stream.ready():
                if stream.refused:
                    self._give_up_programs("it runs no program for us")
                return offset
            for piece in stream.blocks(offset) if samples else ():
                block = piece[: end - offset]
                if not block:
                    break  # the file has grown
                if not _agree(samples, offset, block):
                    self._judge_other_bytes(given_out=offset > begin)
                    return offset
                yield block
                offset += len(block)
        return offset

    def _until_ready(self, stream: FileStream, offset: int, end: int) -> Generator[memoryview, None, int]:
        """Yield the bytes over SFTP until the program is ready, or has failed; return up to where."""
        dealt = offset

        def following(_: bool) -> tuple[int, int] | None:
            nonlocal dealt
            if dealt == end or stream.ready() or stream.ended:
                return None
            at, dealt = dealt, min(dealt + _WHILE_STARTING, end)
            return at, dealt - at

        for at, block in self.ranges(following):
            yield block
            offset = at + len(block)
        return offset

    def _samples(self, start: int, end: int) -> Samples:
        """Read pieces of the open file, the first one at `start`; none where nothing is there."""
        places = {start, *(start + secrets.randbelow(end - start) for _ in range(_SAMPLES))} if start < end else ()
        with self._wire.joined():
            asked = [(at, self._request(at, _SAMPLE)) for at in sorted(places)]
        replies = [(at, self._wire.take(number)) for at, number in asked]
        return deque((at, bytes(reply.body[4:])) for at, reply in replies if reply.kind == sftp.CMD_DATA)

    def _judge_other_bytes(self, *, given_out: bool) -> None:
        """Return when none of the program's bytes were given out. Raises: PathReplaced when it read another file than
        was opened; RemoteFailure (retryable) when the file was written to, or replaced by another version.
        """
        if not given_out:
            _log.info("%s: read over SFTP: a program there sees another file at the path", shown(self._path))
            return
        named = self._wire.call(sftp.CMD_LSTAT, string(self._path))
        looks = [self.stat(), unpack_stat(named.fields()) if named.kind == sftp.CMD_ATTRS else None]
        if self.seen is None or not all(one is not None and one.is_version(self.seen) for one in looks):
            raise RemoteFailure(f"{shown(self._path)}: changed while it was read", retryable=True)
        raise path_replaced(f"{shown(self._path)}: a program on the machine read another file than the one opened")

    def _give_up_programs(self, why: str) -> None:
        self._installed.pass_on_files = False
        _log.info("%s: large files are read over SFTP alone: %s", shown(self._path), why)


def _agree(samples: Samples, offset: int, block: memoryview) -> bool:
    """Say whether a block at `offset` has the bytes of the samples that lie in it; those that end in it are done."""
    stop = offset + len(block)
    while samples and samples[0][0] < stop:
        at, data = samples[0]
        low, high = max(at, offset), min(at + len(data), stop)
        if block[low - offset : high - offset] != data[low - at : high - at]:
            return False
        if at + len(data) > stop:
            break
        samples.popleft()
    return True
