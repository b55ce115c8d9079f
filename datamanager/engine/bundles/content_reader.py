"""A bundle in the making, read like a file: headers from the layout, bytes from the members' machine.

Small members are read some hundred at a time, with many requests in flight; a large one with several reads in flight,
as a file is. Nothing is kept but what is being given out.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, closing, contextmanager
from typing import NoReturn

from datamanager.engine.bundles.layout import LARGE, BundleEntry, Layout
from datamanager.engine.path_confinement import lstat_or_none
from datamanager.engine.virtual_files import RangeQueue, VirtualReader, just
from datamanager.errors import (
    DataManagerError,
    PathMissing,
    RemoteFailure,
    SourceChanged,
    SourceMissing,
    TransportError,
)
from datamanager.transports.port import Reader, Session
from datamanager.transports.values import Check, FileKind, FileStat, NextRange

BATCH = 8 * 1024 * 1024
"""Bytes of small members that are read together, and held in memory."""
AT_ONCE = 1024
"""Small members that are read together."""
_BLOCK = 1 << 20

Blamed = MutableMapping[int, DataManagerError]
"""What is wrong with entries, by their place in the layout."""


class BundleReader(VirtualReader):
    """See the port's Reader. An entry that is not what it was is noted in `blamed`, and its error raised."""

    def __init__(self, session: Session, layout: Layout, blamed: Blamed) -> None:
        self._session = session
        self._layout = layout
        self.size = layout.size
        self._blamed = blamed
        self._open = ExitStack()
        self._large: tuple[int, Reader] | None = None

    def stat(self) -> FileStat:
        """Return the virtual file's stat."""
        return self._layout.stat

    def close(self) -> None:
        """Close the member that is open, if one is."""
        self._large = None
        self._open.close()

    def ranges(self, following: NextRange) -> Iterator[tuple[int, memoryview]]:
        """Yield (offset, block) of the requested ranges; within a large member, reads of the next range are in flight
        before the last one's bytes are given out."""
        queue, layout = RangeQueue(following), self._layout
        while (dealt := queue(True)) is not None:
            offset, length = dealt
            stop = min(offset + length, self.size)
            if offset >= stop:
                return
            index = layout.at(offset)
            if self._within_large(index, offset):
                queue.put_back(offset, stop - offset)
                yield from self._read_large(index, queue)
                continue
            large = layout.next_large(offset)
            until = stop if large is None else min(stop, layout.data(large))
            queue.put_back(until, stop - until)
            yield from self._read_small(index, offset, until)

    def examine(self, check: Check) -> None:
        """Blame every entry that can't be read, by opening them all: they are to be left out together.

        Raises: what breaks the connection, and what `check` raises.
        """
        layout, index = self._layout, 0
        while index < len(layout.entries):
            check()
            following = self._batch(index, layout.start(index), self.size)
            for one in range(index, following):
                if layout.entries[one].size > LARGE:
                    with _blamed_alone():
                        all(self.ranges(just(layout.data(one), 1)))
            with _blamed_alone():
                self._small([one for one in range(index, following) if layout.entries[one].size <= LARGE])
            index = following

    def _within_large(self, index: int, offset: int) -> bool:
        if index == len(self._layout.entries):
            return False
        size, begin = self._layout.entries[index].size, self._layout.data(index)
        return size > LARGE and begin <= offset < begin + size

    def _read_large(self, index: int, queue: RangeQueue) -> Iterator[tuple[int, memoryview]]:
        """Give out ranges as long as they begin in this member."""
        begin = self._layout.data(index)
        end = begin + self._layout.entries[index].size
        requested = given = 0

        def within(wait: bool) -> tuple[int, int] | None:
            nonlocal requested
            dealt = queue(wait)
            if dealt is None:
                return None
            offset, length = dealt
            if not begin <= offset < end:
                queue.put_back(offset, length)
                return None
            mine = min(length, end - offset)
            queue.put_back(offset + mine, length - mine)
            requested += mine
            return offset - begin, mine

        try:
            for at, block in self._reader(index).ranges(within):
                given += len(block)
                yield begin + at, block
        except TransportError as exc:
            if exc.retryable:
                raise
            entry = self._layout.entries[index]
            self._blame(index, missing(entry) if isinstance(exc, PathMissing) else exc)
        if given < requested:
            self._blame(index, changed(self._layout.entries[index]))

    def _reader(self, index: int) -> Reader:
        if self._large is None or self._large[0] != index:
            self.close()
            entry = self._layout.entries[index]
            reader = self._open.enter_context(self._session.open_read(entry.path))
            if not same(entry, reader.stat()):
                self._blame(index, changed(entry))
            self._large = index, reader
        return self._large[1]

    def _read_small(self, index: int, offset: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        """Give out what lies between large members' bytes."""
        while offset < stop:
            following = self._batch(index, offset, stop)
            # the last batch has all that follows its entries
            until = stop if following == len(self._layout.entries) else min(stop, self._layout.start(following))
            stretch = memoryview(self._stretch(index, following, offset, until))
            for at in range(0, len(stretch), _BLOCK):
                yield offset + at, stretch[at : at + _BLOCK]
            index, offset = following, until

    def _batch(self, index: int, offset: int, stop: int) -> int:
        """Return the entry before which a batch ends that begins at `offset` in entry `index`."""
        last, start = index, self._layout.start
        while last < len(self._layout.entries) and start(last) < stop and last - index < AT_ONCE:
            last += 1
            if start(last) - offset >= BATCH:
                break
        return last

    def _stretch(self, index: int, following: int, offset: int, stop: int) -> bytearray:
        """Return the bytes from `offset` to `stop`, where these entries lie, and maybe padding before and the end mark
        after them."""
        layout = self._layout
        data = self._small([one for one in range(index, following) if self._touches(one, offset, stop)])
        stretch = bytearray(stop - offset)  # padding and the end mark are zeros

        def put(at: int, piece: bytes) -> None:
            first, last = max(at, offset), min(at + len(piece), stop)
            if first < last:
                stretch[first - offset : last - offset] = piece[first - at : last - at]

        for one in range(index, following):
            put(layout.start(one), layout.header(one))
            put(layout.data(one), data.get(one, b""))
        return stretch

    def _touches(self, index: int, offset: int, stop: int) -> bool:
        size, begin = self._layout.entries[index].size, self._layout.data(index)
        return 0 < size <= LARGE and begin < stop and begin + size > offset

    def _small(self, indices: list[int]) -> dict[int, bytes]:
        """Read small members whole."""
        data: dict[int, bytes] = {}
        doubtful = list[int]()
        entries = [self._layout.entries[index] for index in indices]
        likely = max((entry.size for entry in entries), default=0)
        with closing(self._session.bulk.read([entry.path for entry in entries], LARGE, likely)) as results:
            for place, found in results:
                index, entry = indices[place], self._layout.entries[indices[place]]
                if isinstance(found, RemoteFailure):
                    doubtful.append(index)
                elif isinstance(found, PathMissing):
                    self._blamed[index] = missing(entry)
                elif isinstance(found, TransportError):
                    self._blamed[index] = found
                elif len(found.data) != entry.size or not same(entry, found.stat):
                    self._blamed[index] = changed(entry)
                else:
                    data[index] = found.data
        for index in doubtful:  # it may have grown, or be no file any more
            entry = self._layout.entries[index]
            now = lstat_or_none(self._session, entry.path)
            unreadable = now is not None and same(entry, now)
            self._blamed[index] = RemoteFailure(f"{entry.source} can't be read") if unreadable else changed(entry)
        for index in indices:
            if index not in data:
                raise self._blamed[index]
        return data

    def _blame(self, index: int, error: DataManagerError) -> NoReturn:
        self._blamed[index] = error
        raise error


@contextmanager
def _blamed_alone() -> Iterator[None]:
    try:
        yield
    except DataManagerError as exc:
        if exc.retryable:
            raise


def same(entry: BundleEntry, now: FileStat) -> bool:
    """Say whether a file still is what the entry says."""
    return (now.kind, now.size, now.mtime) == (FileKind.FILE, entry.size, entry.mtime)


def missing(entry: BundleEntry) -> SourceMissing:
    """Say that an entry's file is not there."""
    return SourceMissing(f"{entry.source}: no such file")


def changed(entry: BundleEntry) -> SourceChanged:
    """Say that an entry's file is not what it was."""
    return SourceChanged(f"{entry.source} changed during the transfer")
