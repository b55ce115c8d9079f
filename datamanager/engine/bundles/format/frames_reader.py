"""The tar file in a compressed bundle, read at any offset: only the frames that are needed, with reads in flight."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import accumulate, takewhile

from datamanager.domain.bundle_model import Frame
from datamanager.engine.bundles.format.frames import expanded
from datamanager.engine.bundles.format.ranges import Deals, just
from datamanager.errors import ChecksumMismatch
from datamanager.transports.port import Reader
from datamanager.transports.values import FileKind, FileStat, NextRange

TOGETHER = 4 * 1024 * 1024
"""Bytes of ranges from which on no further one is asked for before they are given out."""
_BLOCK = 1 << 20


class FramesReader:
    """See the port's Reader. ChecksumMismatch is raised where a damaged frame is needed, and not before."""

    def __init__(self, stored: Reader, frames: Sequence[Frame]) -> None:
        self._stored = stored
        self._frames = frames
        self._at = array("Q", accumulate((one.stored for one in frames), initial=0))
        self._starts = array("Q", accumulate((one.size for one in frames), initial=0))
        self._last: tuple[int, bytes] = (-1, b"")
        self._damaged: set[int] = set()

    def stat(self) -> FileStat:
        """Return the stat of the tar file in the bundle."""
        stored = self._stored.stat()
        return FileStat(FileKind.FILE, self._starts[-1], stored.mtime, stored.mode)

    def blocks(self, offset: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """Yield the bytes in order."""
        left = max(0, self._starts[-1] - offset)
        for _, block in self.ranges(just(offset, left if length is None else min(left, length))):
            yield block

    def ranges(self, following: NextRange) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, block) of the ranges dealt out."""
        deals = Deals(following)
        while together := self._together(deals):
            with closing(self._read(self._needed(together))) as frames:
                for offset, length in together:
                    stop = min(offset + length, self._starts[-1])
                    while offset < stop:
                        number = self._number(offset)
                        while self._last[0] != number:
                            self._last = next(frames)
                        begin = offset - self._starts[number]
                        block = memoryview(self._last[1])[begin : begin + min(_BLOCK, stop - offset)]
                        yield offset, block
                        offset += len(block)

    def _together(self, deals: Deals) -> list[tuple[int, int]]:
        """Return the ranges to read next: ascending ones, as far as they are dealt without waiting."""
        together = list[tuple[int, int]]()
        total = end = 0
        while total < TOGETHER and (dealt := deals(not together)) is not None:
            if dealt[0] < end:
                deals.give_back(*dealt)
                break
            together.append(dealt)
            total, end = total + dealt[1], sum(dealt)
        return together

    def _needed(self, ranges: Sequence[tuple[int, int]]) -> Iterator[int]:
        """Yield the frames that hold the ranges, but for the one that is at hand, each once, in order."""
        before = self._last[0] if ranges and self._number(ranges[0][0]) == self._last[0] else -1
        for offset, length in ranges:
            stop = min(offset + length, self._starts[-1])
            if offset >= stop:
                continue
            for number in range(max(self._number(offset), before + 1), self._number(stop - 1) + 1):
                yield number
                before = number

    def _number(self, offset: int) -> int:
        return bisect_right(self._starts, offset) - 1

    def _read(self, numbers: Iterator[int]) -> Generator[tuple[int, bytes], None, None]:
        """Read these frames, up to one that is known to be damaged; several of them are asked for at once."""
        asked = list[int]()
        good = takewhile(lambda number: number not in self._damaged, numbers)

        def dealt(_: bool) -> tuple[int, int] | None:
            number = next(good, None)
            if number is None:
                return None
            asked.append(number)
            return self._at[number], self._frames[number].stored

        data = bytearray()
        for _, block in self._stored.ranges(dealt):
            data += block
            while asked and len(data) >= self._frames[asked[0]].stored:
                number = asked.pop(0)
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
