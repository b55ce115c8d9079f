"""Several connections for one download, where that brings more: many servers give each connection a rate of its own.

It begins with one. Where that one is slow, and it is the source that is waited for, another one is asked for, while the
first goes on: a link may be good for one use, or for some minutes. Where it is had, several take turns in fetching
parts, which are handed on in their order; when they don't bring clearly more, or the source refuses them, one goes on
alone. Every part is of the version that was begun (`Source.open`), so nothing is ever put together from two.
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
from datamanager.sources.port import Download, Source

LANES = 4
"""Connections of one download at the most."""
MOST = 16
"""Connections of all downloads of a process from which on no further ones are made for more speed: memory is bounded,
and so many downloads fill a mover by themselves."""
PART = 4 * 2**20
"""Bytes that one connection fetches before it is another part's turn: so much may be held in memory by each."""
WORTH = 64 * 2**20
"""Bytes that must be left for it to be worth a try."""
WATCHED = 2.0
"""Seconds that one connection is watched …"""
TRIED = 4.0
"""… and then several: their first parts come late, and servers count in whole seconds."""
FAST = 100e6
"""Bytes per second from which on one connection is enough."""
SOON = 0.5
"""Seconds in which most sources have answered, so long as one can be without them; else more bytes come meanwhile."""
GAIN = 1.25
"""How much more several must bring."""
PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between tries to go on alone: a server that counts connections may still count those that ended."""

log = logging.getLogger(__name__)


class Places:
    """How many connections there are in this process."""

    def __init__(self, most: int) -> None:
        self._lock = threading.Lock()
        self._most = most
        self._taken = 0

    def take(self, count: int, *, always: bool = False) -> bool:
        """Count connections; unless `always`, only while there are not too many. Say whether they were counted."""
        with self._lock:
            taken = always or self._taken + count <= self._most
            self._taken += count if taken else 0
            return taken

    def give(self, count: int) -> None:
        """Count no longer."""
        with self._lock:
            self._taken -= count


_PLACES = Places(MOST)


class Parallel:
    """A source that is read over several connections where that brings more."""

    def __init__(self, source: Source, places: Places = _PLACES) -> None:
        self._source = source
        self._places = places
        self._alone = False
        """Several were tried, and did not help."""

    def check(self) -> None:
        """See Source.check."""
        self._source.check()

    @contextmanager
    def open(self, start: int = 0, stop: int | None = None, *, version: str | None = None) -> Iterator[Download]:
        """See Source.open."""
        self._places.take(1, always=True)
        try:
            with ExitStack() as stack:
                first = stack.enter_context(self._source.open(start, stop, version=version))
                end = first.size if stop is None else stop
                parts = first.ranges and first.version is not None and not self._alone
                if parts and end is not None and end - first.start >= WORTH:
                    several = _Several(self._source, first, stack.close, end, self._places, self._give_up)
                    with closing(several):
                        yield several
                else:
                    yield first
        finally:
            self._places.give(1)

    def _give_up(self) -> None:
        self._alone = True


class _Several:
    """See Download: what the first answer says, and its bytes by whichever way."""

    def __init__(
        self,
        source: Source,
        first: Download,
        close_first: Callable[[], None],
        end: int,
        places: Places,
        give_up: Callable[[], None],
    ) -> None:
        self._source = source
        self._first = first
        self._close_first = close_first
        self._end = end
        self._places = places
        self._give_up = give_up
        self.size, self.start, self.version, self.ranges = first.size, first.start, first.version, first.ranges
        self.etag, self.last_modified = first.etag, first.last_modified
        self.content_type, self.filename, self.url = first.content_type, first.filename, first.url
        self._position = first.start
        self._blocks = self._read()

    def blocks(self) -> Iterator[memoryview]:
        """See Download.blocks."""
        return self._blocks

    def close(self) -> None:
        """End what still fetches, whoever still holds `blocks` (the traceback of an error does)."""
        self._blocks.close()

    def _read(self) -> Generator[memoryview]:
        alone, another = _Meter(), None
        with ExitStack() as places:
            for block in alone.metered(self._first.blocks()):
                self._position += len(block)
                yield block
                if another is None and self._is_worth_it(alone):
                    places.callback(self._places.give, LANES - 1)
                    another = _Another(self._source, self._position, self.version)
                    another.thread.join(SOON)
                if another is not None and another.given is False:
                    self._give_up()
                    places.close()
                elif another is not None and another.given and self._is_long:
                    break
            else:
                return
            self._close_first()
            if (yield from self._in_parts(alone.rate)):
                return
        self._give_up()
        yield from self._rest()

    @property
    def _is_long(self) -> bool:
        return self._end - self._position >= WORTH

    def _is_worth_it(self, alone: _Meter) -> bool:
        """Say whether to try more connections; their places are taken then."""
        if alone.seconds < WATCHED:
            return False
        slow = alone.rate < FAST and alone.waited > alone.seconds / 2
        worth = slow and self._is_long and self._places.take(LANES - 1)
        if not worth:
            alone.reset()
        return worth

    def _in_parts(self, rate: float) -> Generator[memoryview, None, bool]:
        """Yield bytes from several connections; return whether that was all of them."""
        lanes, meter = _Lanes(self._source, self._position, self._end, self.version), _Meter()
        judged = False
        try:
            for block in meter.metered(lanes.blocks()):
                self._position += len(block)
                yield block
                if not judged and meter.seconds >= TRIED:
                    judged = True
                    log.info("%s: %d connections bring %.1f times as much", self.url, LANES, meter.rate / rate)
                    if meter.rate < GAIN * rate:
                        return False
        except _NoParts as refused:
            log.info("%s: one connection goes on alone: %s", self.url, refused)
            return False
        finally:
            lanes.stop()
        return True

    def _rest(self) -> Iterator[memoryview]:
        stop = None if self._end == self.size else self._end
        with ExitStack() as stack:
            for pause in (*PAUSES, None):
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
                raise SourceChanged(f"{self.url} does not send its parts any more")
            yield from rest.blocks()


class _Another:
    """Whether the source gives a connection for a part of this version, beside the one that it has; asked meanwhile."""

    def __init__(self, source: Source, start: int, version: str | None) -> None:
        self.given: bool | None = None
        """None until it is known."""
        self._source = source
        self._start = start
        self._version = version
        self.thread = threading.Thread(target=self._ask, name="lane", daemon=True)
        self.thread.start()

    def _ask(self) -> None:
        given = False
        try:
            with self._source.open(self._start, self._start + 1, version=self._version) as part:
                given = part.start == self._start
        except DataManagerError as error:
            log.info("there is one connection only: %s", error.detail)
        finally:
            self.given = given


class _NoParts(Exception):
    """A part could not be fetched."""


class _Lanes:
    """Threads that fetch the parts from `begin` to `end`, a few ahead of who takes them in their order."""

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
        for _ in range(LANES):
            threading.Thread(target=self._fetch_all, name="lane", daemon=True).start()

    def blocks(self) -> Iterator[memoryview]:
        """Yield the bytes in their order. Raises: _NoParts when a part can't be fetched; what was yielded is right."""
        while self._head < len(self._parts):
            with self._changed:
                while not self._refused and not self._fetched.get(self._head):
                    self._changed.wait()
                if not self._fetched.get(self._head):
                    raise _NoParts(self._refused)
                block = self._fetched[self._head].popleft()
                if block == "end":
                    del self._fetched[self._head]
                    self._head += 1
                    self._changed.notify_all()
            if block != "end":
                yield memoryview(block)

    def stop(self) -> None:
        """Let the threads end, each with what it is waiting for just now; what they still bring is thrown away."""
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
                log.exception("a part of a download: a fault of ours")
                self._refuse(type(error).__name__)

    def _take(self) -> int | None:
        """Return the next part to fetch, once it is not too far ahead; None when there is nothing more to do."""
        with self._changed:
            while not self._ended and self._next < len(self._parts) and self._next >= self._head + LANES:
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
                self._refuse("it sends the whole where a part was asked for")
                return
            for block in download.blocks():
                left -= len(block)
                if left < 0 or not self._add(number, bytes(block)):
                    break
        if left == 0:
            self._add(number, "end")
        elif not self._ended:
            self._refuse("it sends another part than was asked for")

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


class _Meter:
    """How fast blocks come, and how long they are waited for."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self._begun = time.monotonic()
        self._bytes = 0
        self.waited = 0.0
        """Seconds in which the source was waited for."""

    def metered(self, blocks: Iterator[memoryview]) -> Iterator[memoryview]:
        """Yield blocks, counted."""
        while True:
            asked = time.monotonic()
            block = next(blocks, None)
            self.waited += time.monotonic() - asked
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
