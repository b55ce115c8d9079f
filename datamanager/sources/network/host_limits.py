"""How many connections a server allows to this mover, learnt from its refusals. Many FTP servers allow few to one
address; who asks for more is refused again and again, or locked out.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from datamanager.errors import ServerBusy

KEPT = 600.0
"""Seconds for which a limit is kept: a server may have been busy with others."""
AGAIN = timedelta(seconds=5)
"""When a download is tried again that a limit keeps waiting."""

Server = tuple[str, int]
"""Host and port."""


class HostLimits:
    """The connections of a mover to each server, and what is known of their limits. Safe to share between threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._open: Counter[Server] = Counter()
        self._limits: dict[Server, tuple[int, float]] = {}

    @contextmanager
    def connection(self, server: Server) -> Iterator[None]:
        """Count a connection while the block lasts. Raises: ServerBusy when the server's limit is reached; it is not
        asked then.
        """
        with self._lock:
            limit = self._limit(server)
            if limit is not None and self._open[server] >= limit:
                text = f"{server[0]} allows {limit} connections to this mover, and has them; the download waits"
                raise ServerBusy(text, again=AGAIN)
            self._open[server] += 1
        try:
            yield
        finally:
            with self._lock:
                self._open[server] -= 1
                if not self._open[server]:
                    del self._open[server]

    def refused(self, server: Server) -> None:
        """Note, within a `connection` that the server refused for their number, that the others are all it allows.
        Without others nothing is learnt: it is busy with somebody else's.
        """
        with self._lock:
            others = self._open[server] - 1
            if others > 0:
                known = self._limit(server)
                self._limits[server] = (others if known is None else min(known, others), self._clock() + KEPT)

    def _limit(self, server: Server) -> int | None:
        limit, until = self._limits.get(server, (0, 0.0))
        if until > self._clock():
            return limit
        self._limits.pop(server, None)
        return None
