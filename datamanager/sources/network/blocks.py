"""The minimum rate that a server must keep, and blocks of 1 MiB from the pieces that it sends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

from datamanager.errors import TooLarge
from datamanager.sources.source_port import BLOCK

MIN_RATE = 100
"""Bytes per second that a body must bring, averaged over one read timeout spent waiting."""
FLUSH_AFTER = 0.5
"""Seconds after which a block is yielded although it is not full."""


class MinimumRate:
    """Counts bytes and the seconds spent waiting for them; `window` is seconds. Used by one thread."""

    def __init__(self, window: float | None, rate: float = MIN_RATE) -> None:
        self._window = window
        self._rate = rate
        self._waited = 0.0
        self._received = 0

    def wait(self, seconds: float) -> None:
        """Count seconds of waiting that are judged with the next bytes."""
        self._waited += seconds

    def add(self, seconds: float, count: int) -> None:
        """Count `count` bytes that came after `seconds` of waiting.

        Raises: TimeoutError when less than the rate came over one window spent waiting, although each byte alone may
        have been in time.
        """
        self._waited += seconds
        self._received += count
        if self._window is not None and self._waited > self._window:
            if self._received < self._rate * self._waited:
                raise TimeoutError("timed out: the server sends too slowly")
            self._waited, self._received = 0.0, 0


def gathered(
    pieces: Iterable[bytes | memoryview],
    url: str,
    most: int,
    max_size: int,
    pauses: Callable[[float], bool] = lambda _: False,
) -> Iterator[memoryview]:
    """Yield the bytes of `pieces` in blocks of at most 1 MiB; what trickles in is yielded every half second.

    A block is valid until the next one is taken. `most` is how many bytes may come, `max_size` how many the whole
    file may have: the error names that. `pauses` says whether the next piece would take longer than so many seconds.

    Raises: TooLarge, and what `pieces` raises.
    """
    block = memoryview(bytearray(BLOCK))
    filled = received = 0
    due = time.monotonic() + FLUSH_AFTER
    following = iter(pieces)
    while True:
        if filled and pauses(max(due - time.monotonic(), 0)):
            yield block[:filled]
            filled, due = 0, time.monotonic() + FLUSH_AFTER
        piece = next(following, None)
        if piece is None:
            break
        received += len(piece)
        if received > most:
            raise TooLarge(f"{url} is larger than the {max_size} bytes allowed")
        rest = memoryview(piece)
        while rest:
            count = min(len(rest), BLOCK - filled)
            block[filled : filled + count] = rest[:count]
            rest = rest[count:]
            filled += count
            if filled == BLOCK:
                yield block
                filled, due = 0, time.monotonic() + FLUSH_AFTER
        if filled and time.monotonic() >= due:
            yield block[:filled]
            filled, due = 0, time.monotonic() + FLUSH_AFTER
    if filled:
        yield block[:filled]
