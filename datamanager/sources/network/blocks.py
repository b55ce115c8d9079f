"""Bytes of a server that is read without an HTTP client: the pace that it must keep, and blocks of what it brings."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator

from datamanager.errors import TooLarge
from datamanager.sources.http.pinned import MIN_RATE
from datamanager.sources.port import BLOCK

HAND_ON = 0.5
"""Seconds after which a block is handed on although it is not full."""


class Pace:
    """Counts bytes and the seconds spent waiting for them; `window` is seconds. Used by one thread."""

    def __init__(self, window: float) -> None:
        self._window = window
        self._waited = 0.0
        self._received = 0

    def took(self, seconds: float, count: int) -> None:
        """Note that `count` bytes came after `seconds` of waiting.

        Raises: TimeoutError when less than MIN_RATE came over one window spent waiting: each byte alone may be in time.
        """
        self._waited += seconds
        self._received += count
        if self._waited > self._window:
            if self._received < MIN_RATE * self._waited:
                raise TimeoutError("timed out: the server sends too slowly")
            self._waited, self._received = 0.0, 0


def gathered(pieces: Iterable[bytes | memoryview], url: str, most: int, max_size: int) -> Iterator[memoryview]:
    """Yield the bytes of `pieces` in blocks of at most 1 MiB, the last one too; what trickles in is handed on.

    A block is valid until the next one is asked for. `most` is how many bytes may come, `max_size` how many the whole
    thing may have: the text of the error names that.

    Raises: TooLarge, and what `pieces` raises.
    """
    block = memoryview(bytearray(BLOCK))
    filled = received = 0
    due = time.monotonic() + HAND_ON
    for piece in pieces:
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
                filled, due = 0, time.monotonic() + HAND_ON
        if filled and time.monotonic() >= due:
            yield block[:filled]
            filled, due = 0, time.monotonic() + HAND_ON
    if filled:
        yield block[:filled]
