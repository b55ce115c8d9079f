"""How fast bytes move: over the last seconds, so that it follows, but does not jump with each block."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

SPAN = 5.0
"""Seconds that are looked back."""


class Speed:
    """Of one transfer, told again and again how many bytes are done. Used by one thread at a time."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, done: int) -> int | None:
        """Note that `done` bytes are done by now; return the bytes per second of late, None while it can't be known."""
        now = self._clock()
        if self._seen and done < self._seen[-1][1]:  # they are moved once more
            self._seen.clear()
        self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] >= SPAN:
            self._seen.popleft()
        since, before = self._seen[0]
        return int((done - before) / (now - since)) if now > since else None
