"""How many requests per second groups and persons send to this process: a leaky bucket each.

(The generic cell rate algorithm of ITU-T I.371, annex A: one number is kept, the time at which the bucket is empty.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import timedelta

from datamanager.errors import TooManyRequests
from datamanager.identity.quotas import Holder, Quotas

FORGET_ABOVE = 10_000
"""Buckets that may be kept although they are empty."""


class RequestRates:
    """The rates of one process: each may send one second's requests at once, and so many per second in the long run.
    Belongs to one event loop. `monotonic` is the clock.
    """

    def __init__(self, quotas: Quotas, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._quotas = quotas
        self._monotonic = monotonic
        self._empty: dict[Holder, float] = {}

    def require(self, person: str | None, groups: Iterable[str]) -> None:
        """Count a request. Raises: TooManyRequests with the wait after which the next one is accepted; the request that
        is refused is not counted.
        """
        now = self._monotonic()
        filled = dict[Holder, float]()
        for holder, quota in self._quotas.limited(person, groups):
            rate = quota.requests_per_second
            if rate is not None:
                filled[holder] = max(self._empty.get(holder, now), now) + 1 / rate
                over = filled[holder] - now - 1  # of one second's requests
                if over > 1e-9:
                    what = f"{holder} may send {rate} requests per second to each process of the API"
                    raise TooManyRequests(what, again=timedelta(seconds=over))
        self._empty.update(filled)
        if len(self._empty) > FORGET_ABOVE:
            self._empty = {holder: empty for holder, empty in self._empty.items() if empty > now}
