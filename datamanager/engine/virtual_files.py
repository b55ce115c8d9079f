"""Virtual files: what is read like a file but lies in a larger one, or is made while it is read.

One of them is a reader of ranges. Many small ones that lie in a larger file are small files of a machine to the bulk
engine: they are read in the sequence in which they lie there, with many reads in flight.
"""

from __future__ import annotations

import abc
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from datamanager.errors import ChecksumMismatch, DataManagerError, PathMissing, TransportError
from datamanager.transports.bulk_port import Results
from datamanager.transports.port import Reader, Session
from datamanager.transports.values import FileStat, NextRange, SmallFile, shown


class RangeQueue:
    """A `NextRange`, with one range on top that was taken and put back."""

    def __init__(self, following: NextRange) -> None:
        self._following = following
        self._top: tuple[int, int] | None = None

    def __call__(self, wait: bool) -> tuple[int, int] | None:
        """Return the next range; see `NextRange`."""
        top, self._top = self._top, None
        return top or self._following(wait)

    def put_back(self, offset: int, length: int) -> None:
        """Have a range, or the rest of one, come next."""
        if length:
            self._top = (offset, length)


def just(offset: int, length: int) -> NextRange:
    """Deal out one range."""
    ranges = iter([(offset, length)] if length > 0 else [])
    return lambda _: next(ranges, None)


class VirtualReader(abc.ABC):
    """What the readers of virtual files have in common; see the port's Reader."""

    size: int
    """In bytes."""

    @abc.abstractmethod
    def stat(self) -> FileStat:
        """Return the virtual file's stat."""

    @abc.abstractmethod
    def ranges(self, following: NextRange) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, block) of the requested ranges."""

    def blocks(self, offset: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """Yield the bytes in sequence."""
        left = self._left(offset, length)
        for _, block in self.ranges(just(offset, left)):
            yield block

    def _left(self, offset: int, length: int | None) -> int:
        left = max(0, self.size - offset)
        return left if length is None else min(left, length)


class Slice(VirtualReader):
    """A part of an open file, as a file; see the port's Reader."""

    def __init__(self, reader: Reader, offset: int, stat: FileStat) -> None:
        self._reader = reader
        self._offset = offset
        self._stat = stat
        self.size = stat.size

    def stat(self) -> FileStat:
        """Return what it was given."""
        return self._stat

    def ranges(self, following: NextRange) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, block) of the requested ranges."""

        def shifted(wait: bool) -> tuple[int, int] | None:
            dealt = following(wait)
            if dealt is None or dealt[0] >= self.size:
                return None
            return self._offset + dealt[0], min(dealt[1], self.size - dealt[0])

        for offset, block in self._reader.ranges(shifted):
            yield offset - self._offset, block

    def blocks(self, offset: int = 0, length: int | None = None) -> Iterator[memoryview]:
        """Yield the bytes in sequence."""
        return self._reader.blocks(self._offset + offset, self._left(offset, length))


@dataclass(frozen=True, slots=True)
class ContainerMember:
    """A file in a larger one: where what is read of it begins and how long that is (bytes), and what it is."""

    offset: int
    length: int
    stat: FileStat
    unfold: Callable[[bytes], SmallFile | ChecksumMismatch]
    """Makes the file of what was read, or says that it is damaged."""


class ContainerMembers:
    """See `bulk_chunk.SmallFileSource`. The pieces are known by paths, as if the larger file were a directory."""

    def __init__(self, many: BulkContainerMembers) -> None:
        self.bulk = many

    def real_path(self, path: str) -> str:
        """Return the path: there are no links."""
        return path


class BulkContainerMembers:
    """See `bulk_chunk.BulkReads`. One damaged piece is its own failure."""

    in_one_turn = None

    def __init__(
        self,
        session: Session,
        opened: Callable[[Session], AbstractContextManager[Reader]],
        require_there: Callable[[Session], None],
        pieces: Mapping[str, ContainerMember],
    ) -> None:
        self._session = session
        self._opened = opened
        self._require_there = require_there
        self._pieces = pieces

    def real_path(self, paths: Sequence[str]) -> Results[str | TransportError]:
        """Yield each path: there are no links."""
        yield from enumerate(paths)

    def lstat(self, paths: Sequence[str]) -> Results[FileStat | TransportError]:
        """Yield what each one is. Raises: what `require_there` raises."""
        self._require_there(self._session)
        for index, path in enumerate(paths):
            piece = self._pieces.get(path)
            yield index, PathMissing(f"{shown(path)}: no such member") if piece is None else piece.stat

    def read(
        self,
        paths: Sequence[str],
        most: int,  # noqa: ARG002 - looked at before
        likely: int | None = None,  # noqa: ARG002
    ) -> Results[SmallFile | DataManagerError]:
        """Yield the pieces' bytes, or ChecksumMismatch, in the order in which they lie there."""
        pieces = [(index, self._pieces[path]) for index, path in enumerate(paths)]
        waiting = deque(sorted(pieces, key=lambda one: one[1].offset))
        with self._opened(self._session) as reader:
            while waiting:
                try:
                    yield from _read(reader, waiting)
                except ChecksumMismatch as damaged:  # a frame; what follows may be good
                    yield waiting.popleft()[0], damaged


def _read(
    reader: Reader, waiting: deque[tuple[int, ContainerMember]]
) -> Iterator[tuple[int, SmallFile | DataManagerError]]:
    ranges = iter([(piece.offset, piece.length) for _, piece in waiting if piece.length])
    data = bytearray()
    blocks = reader.ranges(lambda _: next(ranges, None))
    while waiting:
        index, piece = waiting[0]
        while len(data) < piece.length:
            found = next(blocks, None)
            if found is None:
                raise ChecksumMismatch("it ends before this member")
            data += found[1]
        waiting.popleft()
        yield index, piece.unfold(bytes(data[: piece.length]))
        del data[: piece.length]
