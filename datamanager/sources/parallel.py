"""Several connections for one download, where that is faster: many servers limit the rate of each connection.

It begins with one. Where that one is slow, and the source is what is waited for, a second one is requested while the
first continues: a link may be valid once, or for some minutes. Where the source grants it, several workers fetch parts,
which are yielded in order; when they are not clearly faster, or the source refuses them, one connection goes on alone.
Every part is of the version that the download began with (`Source.open`), so two versions are never mixed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Literal

from datamanager.errors import DataManagerError, SourceChanged
from datamanager.sources.source_port import Download, Source

WORKERS = 4
"""Connections of one download at the most."""
CONNECTIONS_MAX = 16
"""Connections of all downloads of a process from which on no further ones are opened for speed: memory is bounded, and
so many downloads use all of a mover by themselves."""
PART = 4 * 2**20
"""Bytes that one worker fetches at a time, and may hold in memory."""
PARALLEL_FROM = 64 * 2**20
"""Bytes left from which on parallel connections are tried."""
WATCH_FIRST = 2.0
"""Seconds after which the rate of one connection is judged …"""
WATCH_PARALLEL = 4.0
"""… and that of several: their first parts come late, and servers count in whole seconds."""
FAST = 100e6
"""Bytes per second from which on one connection is enough."""
GRANT_WAIT = 0.5
"""Seconds to wait for the second connection's answer; a later one is taken when it comes."""
GAIN = 1.25
"""How much faster several connections must be."""
RETRY_PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between tries to continue alone: a server that counts connections may still count those that ended."""

log = logging.getLogger(__name__)


class ConnectionBudget:
    """Counts the connections of this process."""

    def __init__(self, most: int) -> None:
        self._lock = threading.Lock()
        self._most = most
        self._taken = 0

    def acquire(self, count: int, *, always: bool = False) -> bool:
        """Count connections; unless `always`, only while there are not too many. Say whether they were counted."""
        with self._lock:
            taken = always or self._taken + count <= self._most
            self._taken += count if taken else 0
            return taken

    def release(self, count: int) -> None:
        """Give counted connections back."""
        with self._lock:
            self._taken -= count


_BUDGET = ConnectionBudget(CONNECTIONS_MAX)


class Parallel:
    """A source that is read over parallel connections where that is faster."""

    def __init__(self, source: Source, budget: ConnectionBudget = _BUDGET) -> None:
        self.source = source
        self.budget = budget
        self.single = False
        """Several connections were tried, and were not faster."""

    @contextmanager
    def open(self, start: int = 0, stop: int | None = None, *, version: str | None = None) -> Iterator[Download]:
        """See Source.open."""
        self.budget.acquire(1, always=True)
        try:
            with ExitStack() as stack:
                first = stack.enter_context(self.source.open(start, stop, version=version))
                end = first.size if stop is None else stop
                parts = first.ranges and first.version is not None and not self.single
                if parts and end is not None and end - first.start >= PARALLEL_FROM:
                    download = _ParallelDownload(self, first, stack.close, end)
                    with closing(download):
                        yield download
                else:
                    yield first
        finally:
            self.budget.release(1)


class _ParallelDownload:
    """The first answer's head, and its bytes over one or several connections; see Download."""

    def __init__(self, parent: Parallel, first: Download, close_first: Callable[[], None], end: int) -> None:
        self._parent = parent
        self._source, self._budget = parent.source, parent.budget
        self._first = first
        self._close_first = close_first
        self._end = end
        self._granted: bool | None = None
        """Whether the source grants a second connection; None until that is known."""
        self.size, self.start, self.version, self.ranges = first.size, first.start, first.version, first.ranges
        self.etag, self.last_modified = first.etag, first.last_modified
        self.content_type, self.filename, self.url = first.content_type, first.filename, first.url
        self._position = first.start
        self._blocks = self._read()

    def blocks(self) -> Iterator[memoryview]:
        """See Download.blocks."""
        return self._blocks

    def close(self) -> None:
        """End the workers, even while `blocks` is still referenced (the traceback of an error does)."""
        self._blocks.close()

    def _read(self) -> Generator[memoryview]:
        alone, second = _RateMeter(), None
        with ExitStack() as budget:
            for block in alone.metered(self._first.blocks()):
                self._position += len(block)
                yield block
                if second is None and self._is_slow(alone):
                    budget.callback(self._budget.release, WORKERS - 1)
                    second = threading.Thread(
                        target=self._ask, args=(self._position,), name="download part", daemon=True
                    )
                    second.start()
                    second.join(GRANT_WAIT)
                if self._granted is False:
                    self._parent.single = True
                    budget.close()
                elif self._granted and self._is_long:
                    break
            else:
                return
            self._close_first()
            if (yield from self._by_workers(alone.rate)):
                return
        self._parent.single = True
        yield from self._rest()

    @property
    def _is_long(self) -> bool:
        return self._end - self._position >= PARALLEL_FROM

    def _is_slow(self, alone: _RateMeter) -> bool:
        """Say whether to try more connections, which are acquired then."""
        if alone.seconds < WATCH_FIRST:
            return False
        slow = alone.rate < FAST and alone.waited > alone.seconds / 2
        worth = slow and self._is_long and self._budget.acquire(WORKERS - 1)
        if not worth:
            alone.reset()
        return worth

    def _ask(self, start: int) -> None:
        """Request a byte of this version over a second connection."""
        granted = False
        try:
            with self._source.open(start, start + 1, version=self.version) as part:
                granted = part.start == start
        except DataManagerError as error:
            log.info("only one connection is possible: %s", error.detail)
        finally:
            self._granted = granted

    def _by_workers(self, rate: float) -> Generator[memoryview, None, bool]:
        """Yield bytes from several connections; return whether that was all of them."""
        workers, meter = _Workers(self._source, self._position, self._end, self.version), _RateMeter()
        judged = False
        try:
            for block in meter.metered(workers.blocks()):
                self._position += len(block)
                yield block
                if not judged and meter.seconds >= WATCH_PARALLEL:
                    judged = True
                    log.info("%s: %d connections are %.1f times as fast as one", self.url, WORKERS, meter.rate / rate)
                    if meter.rate < GAIN * rate:
                        return False
        except _PartRefused as refused:
            log.info("%s: one connection continues alone: %s", self.url, refused)
            return False
        finally:
            workers.stop()
        return True

    def _rest(self) -> Iterator[memoryview]:
        stop = None if self._end == self.size else self._end
        with ExitStack() as stack:
            for pause in (*RETRY_PAUSES, None):
                try:
                    rest = stack.enter_context(self._source.open(self._position, stop, version=self.version))
                    break
                except SourceChanged:
                    raise
                except DataManagerError:  # some call it forbidden (403) when there are too many
                    if pause is None:
                        raise
                    time.sleep(pause)
            if rest.start != self._position:
                raise SourceChanged(f"{self.url} no longer supports ranges")
            yield from rest.blocks()


class _PartRefused(Exception):
    """A part could not be fetched."""


class _Workers:
    """Threads that fetch the parts from `begin` to `end`, a few ahead of the consumer."""

    def __init__(self, source: Source, begin: int, end: int, version: str | None) -> None:
        self._source = source
        self._version = version
        self._parts = [(start, min(start + PART, end)) for start in range(begin, end, PART)]
        self._changed = threading.Condition()
        self._fetched: dict[int, deque[bytes | Literal["end"]]] = {}
        self._head = 0
        self._next = 0
        self._refused: str | None = None
        self._stopped = False
        for _ in range(WORKERS):
            threading.Thread(target=self._fetch_all, name="download part", daemon=True).start()

    def blocks(self) -> Iterator[memoryview]:
        """Yield the bytes in order. Raises: _PartRefused when a part can't be fetched; what was yielded is valid."""
        while self._head < len(self._parts):
            with self._changed:
                while not self._refused and not self._fetched.get(self._head):
                    self._changed.wait()
                if not self._fetched.get(self._head):
                    raise _PartRefused(self._refused)
                block = self._fetched[self._head].popleft()
                if block == "end":
                    del self._fetched[self._head]
                    self._head += 1
                    self._changed.notify_all()
            if block != "end":
                yield memoryview(block)

    def stop(self) -> None:
        """Stop the threads, each after the block that it waits for; what they still receive is dropped."""
        with self._changed:
            self._stopped = True
            self._fetched.clear()
            self._changed.notify_all()

    def _fetch_all(self) -> None:
        while (number := self._take()) is not None:
            try:
                self._fetch(number)
            except DataManagerError as error:
                self._refuse(error.detail)
            except Exception as error:
                log.exception("a part of a download: internal error")
                self._refuse(type(error).__name__)

    def _take(self) -> int | None:
        """Return the next part to fetch, once it is not too far ahead; None when there is nothing more to do."""
        with self._changed:
            while not self._ended and self._next < len(self._parts) and self._next >= self._head + WORKERS:
                self._changed.wait()
            if self._ended or self._next >= len(self._parts):
                return None
            number, self._next = self._next, self._next + 1
            self._fetched[number] = deque()
            return number

    def _fetch(self, number: int) -> None:
        start, stop = self._parts[number]
        left = stop - start
        with self._source.open(start, stop, version=self._version) as download:
            if download.start != start:
                self._refuse("it sends the whole file where a part was requested")
                return
            for block in download.blocks():
                left -= len(block)
                if left < 0 or not self._add(number, bytes(block)):
                    break
        if left == 0:
            self._add(number, "end")
        elif not self._ended:
            self._refuse("it sends another part than was requested")

    def _add(self, number: int, block: bytes | Literal["end"]) -> bool:
        with self._changed:
            if self._ended:
                return False
            self._fetched[number].append(block)
            self._changed.notify_all()
            return True

    def _refuse(self, why: str) -> None:
        with self._changed:
            self._refused = self._refused or why
            self._changed.notify_all()

    @property
    def _ended(self) -> bool:
        return self._stopped or self._refused is not None


class _RateMeter:
    """Measures the rate of blocks, and how long they are waited for."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Restart the measurement."""
        self._begun = time.monotonic()
        self._bytes = 0
        self.waited = 0.0
        """Seconds in which the source was waited for."""

    def metered(self, blocks: Iterator[memoryview]) -> Iterator[memoryview]:
        """Yield blocks, counted."""
        while True:
            began = time.monotonic()
            block = next(blocks, None)
            self.waited += time.monotonic() - began
            if block is None:
                return
            self._bytes += len(block)
            yield block

    @property
    def seconds(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._begun

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self._bytes / max(self.seconds, 1e-3)
