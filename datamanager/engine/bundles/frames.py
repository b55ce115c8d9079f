"""Compressed bundles: frames of zstd that can be read one by one, and the table of them at the end.

(RFC 8878; "Zstandard Seekable Format" 0.1.0, contrib/seekable_format of the zstd repository)
"""

from __future__ import annotations

import os
import struct
import sys
import tarfile
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import accumulate, takewhile

from datamanager.domain.bundle_model import Frame
from datamanager.engine.bundles.layout import Layout
from datamanager.engine.virtual_files import RangeQueue, VirtualReader
from datamanager.errors import ChecksumMismatch, RemoteFailure
from datamanager.transports.port import Reader
from datamanager.transports.values import FileKind, FileStat, NextRange

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FRAME = 1024 * 1024
"""Bytes of the tar file in a frame: what at most is read beside a small member."""
FRAMES = 16 * 1024
"""Frames in about which a bundle is cut: the frames of a larger one are longer …"""
FRAME_MAX = 8 * 1024 * 1024
"""… up to this, which is what reading one holds in memory."""
LEVEL = 3
_OPTIONS: dict[int, int] = {
    zstd.CompressionParameter.compression_level: LEVEL,
    zstd.CompressionParameter.checksum_flag: 1,
}
_WORKERS = min(4, os.cpu_count() or 1)
_SKIPPABLE, _SEEKABLE = 0x184D2A5E, 0x8F92EAB1
_HEAD, _ENTRY, _FOOTER = struct.Struct("<II"), struct.Struct("<II"), struct.Struct("<IBI")
_WITH_CHECKSUMS = 0x80
FOOTER = _FOOTER.size
"""Bytes at the end of the file that tell how long the table is."""


def cuts(layout: Layout) -> Iterator[int]:
    """Yield the lengths of the frames: large members have frames of their own, from their header to their padding."""
    frame = min(FRAME_MAX, FRAME * max(1, -(-layout.size // (FRAME * FRAMES))))
    begin = 0
    for index, entry in enumerate(layout.entries):
        if entry.size < frame:
            continue
        yield from _even(layout.start(index) - begin, frame)
        yield from _even(layout.start(index + 1) - layout.start(index), frame)
        begin = layout.start(index + 1)
    yield from _even(layout.size - begin, frame)


def _even(length: int, frame: int) -> Iterator[int]:
    while length > 0:
        yield min(length, frame)
        length -= frame


def compressed(blocks: Iterable[memoryview], lengths: Iterable[int]) -> Iterator[tuple[Frame, bytes]]:
    """Compress a stream that comes in blocks into frames of these lengths, several at a time, in order."""
    working: deque[tuple[int, Future[bytes]]] = deque()

    def done() -> tuple[Frame, bytes]:
        size, future = working.popleft()
        data = future.result()
        return Frame(len(data), size), data

    with ThreadPoolExecutor(_WORKERS, "zstd") as pool:
        for piece in _pieces(blocks, lengths):
            working.append((len(piece), pool.submit(zstd.compress, piece, None, _OPTIONS)))
            if len(working) > _WORKERS:
                yield done()
        while working:
            yield done()


def _pieces(blocks: Iterable[memoryview], lengths: Iterable[int]) -> Iterator[bytearray]:
    given = iter(blocks)
    rest = memoryview(b"")
    for length in lengths:
        piece = bytearray()
        while len(piece) < length:
            if not rest:
                rest = next(given)
            taken = rest[: length - len(piece)]
            piece += taken
            rest = rest[len(taken) :]
        yield piece


def expanded(data: bytes | bytearray | memoryview, frame: Frame) -> bytes:
    """Return the bytes of a frame. Raises: ChecksumMismatch when it is damaged."""
    decompressor = zstd.ZstdDecompressor()
    try:
        found = decompressor.decompress(data, frame.size + 1)
    except (zstd.ZstdError, EOFError) as exc:
        raise ChecksumMismatch("a frame of the bundle is damaged") from exc
    if len(found) != frame.size or not decompressor.eof or decompressor.unused_data:
        raise ChecksumMismatch("a frame of the bundle is damaged")
    return found


def seek_table(frames: Sequence[Frame]) -> bytes:
    """Return the table: a skippable frame, for the end of the file."""
    entries = b"".join(_ENTRY.pack(frame.stored, frame.size) for frame in frames)
    body = entries + _FOOTER.pack(len(frames), 0, _SEEKABLE)
    return _HEAD.pack(_SKIPPABLE, len(body)) + body


def table_size(footer: bytes) -> int:
    """Return the table's length in bytes. Raises: RemoteFailure when that is no table's end."""
    count: int
    count, descriptor, magic = _FOOTER.unpack(footer)
    if magic != _SEEKABLE or descriptor not in (0, _WITH_CHECKSUMS):
        raise RemoteFailure("the bundle has no table of frames at its end")
    entry = _ENTRY.size + (4 if descriptor == _WITH_CHECKSUMS else 0)
    return _HEAD.size + count * entry + _FOOTER.size


def read_table(table: bytes, size: int) -> tuple[Frame, ...]:
    """Read the table of a file of `size` bytes. Raises: RemoteFailure when it is damaged, or not of this file."""
    count, descriptor, _ = _FOOTER.unpack(table[-_FOOTER.size :])
    if _HEAD.unpack_from(table) != (_SKIPPABLE, len(table) - _HEAD.size):
        raise RemoteFailure("the bundle's table of frames is damaged")
    step = _ENTRY.size + (4 if descriptor == _WITH_CHECKSUMS else 0)
    frames = tuple(Frame(*_ENTRY.unpack_from(table, _HEAD.size + number * step)) for number in range(count))
    require_whole(frames, size - len(table))
    return frames


def require_whole(frames: Sequence[Frame], stored: int) -> None:
    """Check that frames are as many bytes as are stored, that they hold a tar file's records, which one wrong bit in
    their sizes excludes, and that none is too large. Raises: RemoteFailure.
    """
    sizes = [frame.size for frame in frames]
    whole = sum(frame.stored for frame in frames) == stored and sum(sizes) % tarfile.RECORDSIZE == 0
    if not whole or max(sizes, default=0) > FRAME_MAX:
        raise RemoteFailure("the bundle's table of frames is damaged")


TOGETHER = 4 * 1024 * 1024
"""Bytes of ranges from which on no further one is requested before they are yielded."""
_BLOCK = 1 << 20


class FramesReader(VirtualReader):
    """See the port's Reader. ChecksumMismatch is raised where a damaged frame is needed, and not before."""

    def __init__(self, stored: Reader, frames: Sequence[Frame]) -> None:
        self._stored = stored
        self._frames = frames
        self._at = array("Q", accumulate((one.stored for one in frames), initial=0))
        self._starts = array("Q", accumulate((one.size for one in frames), initial=0))
        self.size = self._starts[-1]
        self._last: tuple[int, bytes] = (-1, b"")
        self._damaged: set[int] = set()

    def stat(self) -> FileStat:
        """Return the stat of the tar file in the bundle."""
        stored = self._stored.stat()
        return FileStat(FileKind.FILE, self.size, stored.mtime, stored.mode)

    def ranges(self, following: NextRange) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, block) of the requested ranges."""
        queue = RangeQueue(following)
        while together := self._together(queue):
            with closing(self._read(self._needed(together))) as frames:
                for offset, length in together:
                    stop = min(offset + length, self.size)
                    while offset < stop:
                        number = self._number(offset)
                        while self._last[0] != number:
                            self._last = next(frames)
                        begin = offset - self._starts[number]
                        block = memoryview(self._last[1])[begin : begin + min(_BLOCK, stop - offset)]
                        yield offset, block
                        offset += len(block)

    def _together(self, queue: RangeQueue) -> list[tuple[int, int]]:
        """Return the ranges to read next: ascending ones, as far as they are dealt without waiting."""
        together = list[tuple[int, int]]()
        total = end = 0
        while total < TOGETHER and (dealt := queue(not together)) is not None:
            if dealt[0] < end:
                queue.put_back(*dealt)
                break
            together.append(dealt)
            total, end = total + dealt[1], sum(dealt)
        return together

    def _needed(self, ranges: Sequence[tuple[int, int]]) -> Iterator[int]:
        """Yield the frames that hold the ranges, but for the one that is at hand, each once, in order."""
        before = self._last[0] if ranges and self._number(ranges[0][0]) == self._last[0] else -1
        for offset, length in ranges:
            stop = min(offset + length, self.size)
            if offset >= stop:
                continue
            for number in range(max(self._number(offset), before + 1), self._number(stop - 1) + 1):
                yield number
                before = number

    def _number(self, offset: int) -> int:
        return bisect_right(self._starts, offset) - 1

    def _read(self, numbers: Iterator[int]) -> Generator[tuple[int, bytes], None, None]:
        """Read these frames, up to one that is known to be damaged; several of them are requested at once."""
        requested = list[int]()
        good = takewhile(lambda number: number not in self._damaged, numbers)

        def dealt(_: bool) -> tuple[int, int] | None:
            number = next(good, None)
            if number is None:
                return None
            requested.append(number)
            return self._at[number], self._frames[number].stored

        data = bytearray()
        for _, block in self._stored.ranges(dealt):
            data += block
            while requested and len(data) >= self._frames[requested[0]].stored:
                number = requested.pop(0)
                size = self._frames[number].stored
                yield number, self._expanded(number, data[:size])
                del data[:size]
        raise ChecksumMismatch("a frame of the bundle is damaged, or missing")

    def _expanded(self, number: int, data: bytearray) -> bytes:
        try:
            return expanded(data, self._frames[number])
        except ChecksumMismatch:
            self._damaged.add(number)
            raise
