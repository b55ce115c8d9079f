"""Several readers and writers of one file, each a thread on its own connection, and the one thread that sees all bytes.

Chunks are dealt to whoever reads next, in the file's order; they arrive in any order, are seen in the file's order, and
are written by whoever writes next. Nothing is dealt that lies `WINDOW` or more ahead of what is surely stored.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from datamanager.engine.single.restart import WINDOW
from datamanager.errors import SourceChanged
from datamanager.transports.port import Reader, Writer

CHUNK = 2 * 1024 * 1024
"""Bytes dealt at once."""
THREAD = "stream"
"""What the threads are called."""
BUFFERS = 32
"""Chunks held in memory at once."""
AHEAD = 2
"""Chunks that one reader requests at once, twice what a channel's window lets through. More would wait in its
connection, and all that comes after them in the file, while other connections have nothing to do."""

Seen = Callable[[memoryview, int], None]
"""Called with each block in the file's order, and up to where bytes are surely stored."""


class ParallelStreams:
    """The readers and writers of the bytes from `start` to `stop`. Used once."""

    def __init__(self, readers: Sequence[Reader], writers: Sequence[Writer], start: int, stop: int) -> None:
        self._readers = readers
        self._writers = writers
        self._start = start
        self._stop = stop
        self._changed = threading.Condition()  # guards all that follows
        self._dealt = start
        self._position = start
        self._free = [memoryview(bytearray(min(CHUNK, stop - start))) for _ in range(BUFFERS)]
        self._filling: dict[int, _Chunk] = {}
        self._arrived: dict[int, _Chunk] = {}
        self._to_write: deque[_Chunk] = deque()
        self._posting: list[int | None] = [None] * len(writers)
        self._unsettled: list[int | None] = [None] * len(writers)
        self._finished = False
        self._failure: BaseException | None = None

    def move(self, seen: Seen) -> int:
        """Move all bytes and return `stop`; the writers' last statuses are still to be read.

        Raises: the first failure of a reader, a writer or `seen`; every thread has ended then.
        """
        work = [(self._read, one) for one in self._readers] + [(self._write, i) for i in range(len(self._writers))]
        threads = [threading.Thread(target=self._guard, args=args, name=THREAD) for args in work]
        for thread in threads:
            thread.start()
        try:
            while self._position < self._stop:
                chunk, stored = self._next()
                seen(chunk.view, stored)
                with self._changed:
                    self._position += chunk.size
                    self._to_write.append(chunk)
                    self._changed.notify_all()
        except BaseException as exc:
            self._fail(exc)
            raise
        finally:
            with self._changed:
                self._finished = True
                self._changed.notify_all()
            for thread in threads:
                thread.join()
        if self._failure is not None:
            raise self._failure
        return self._position

    def _next(self) -> tuple[_Chunk, int]:
        with self._changed:
            self._changed.wait_for(lambda: self._failure is not None or self._position in self._arrived)
            if self._failure is not None:
                raise self._failure
            return self._arrived.pop(self._position), self._stored()

    def _stored(self) -> int:
        """Return up to where every byte was answered well."""
        open_ends = [self._position, *(one for one in (*self._posting, *self._unsettled) if one is not None)]
        if self._to_write:
            open_ends.append(self._to_write[0].offset)
        return min(open_ends)

    def _deal(self, wait: bool) -> tuple[int, int] | None:
        with self._changed:
            while self._failure is None and self._dealt < self._stop:
                if self._free and self._dealt + CHUNK - self._stored() <= WINDOW:
                    offset = self._dealt
                    self._dealt = min(offset + CHUNK, self._stop)
                    self._filling[offset] = _Chunk(offset, self._dealt - offset, self._free.pop())
                    return offset, self._dealt - offset
                if not wait:
                    return None
                self._changed.wait()
            return None

    def _read(self, reader: Reader) -> None:
        mine: set[int] = set()

        def deal(wait: bool) -> tuple[int, int] | None:
            dealt = self._deal(wait) if len(mine) < AHEAD else None
            if dealt is not None:
                mine.add(dealt[0])
            return dealt

        for offset, block in reader.ranges(deal):
            chunk = self._filling[offset - (offset - self._start) % CHUNK]
            if not chunk.fill(offset, block):
                continue
            mine.remove(chunk.offset)
            with self._changed:
                if self._failure is not None:
                    return
                self._arrived[chunk.offset] = self._filling.pop(chunk.offset)
                self._changed.notify_all()
        if mine and self._failure is None:
            raise SourceChanged(f"the source ended before byte {min(mine) + CHUNK}")

    def _write(self, number: int) -> None:
        writer = self._writers[number]
        while True:
            with self._changed:
                chunk = self._to_write.popleft() if self._to_write and self._failure is None else None
                if chunk is not None:
                    self._posting[number] = chunk.offset
                elif self._finished or self._failure is not None:
                    return
                elif self._unsettled[number] is None:
                    self._changed.wait()
                    continue
            if chunk is None:  # nothing to do: ask how the last writes went, others may wait for that
                writer.settle()
            else:
                writer.write(chunk.offset, chunk.view)
            with self._changed:
                self._posting[number], self._unsettled[number] = None, writer.unsettled
                if chunk is not None:
                    self._free.append(chunk.buffer)
                self._changed.notify_all()

    def _guard(self, work: Callable[..., None], argument: object) -> None:
        try:
            work(argument)
        except BaseException as exc:  # noqa: BLE001 - raised again by `move`, in the thread that waits
            self._fail(exc)

    def _fail(self, exc: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or exc
            self._changed.notify_all()


class _Chunk:
    """A stretch of the file in a buffer, filled in order by one thread."""

    def __init__(self, offset: int, size: int, buffer: memoryview) -> None:
        self.offset = offset
        self.size = size
        self.buffer = buffer
        self._filled = 0

    @property
    def view(self) -> memoryview:
        """The chunk's bytes."""
        return self.buffer[: self.size]

    def fill(self, offset: int, block: memoryview) -> bool:
        """Take a block; say whether the chunk is whole now."""
        at = offset - self.offset
        self.buffer[at : at + len(block)] = block
        self._filled += len(block)
        return self._filled == self.size
