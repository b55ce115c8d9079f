"""Bandwidth limits: token buckets, filled at a rate up to a burst, emptied by the bytes that pass. (RFC 2697, 3)

A bucket is shared by all transfers of a machine, another one belongs to a request; each byte is charged to all of its
transfer's buckets. Who comes first is served first, a small piece at a time, so transfers share a bucket evenly. Rates
may change at any time, also under those that wait.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

BURST = 1024 * 1024
"""Bytes that a bucket holds at least: what may pass at once after a pause."""
BURST_SECONDS = 0.25
"""A fast bucket holds more: what its rate brings in this time."""
PIECE = 64 * 1024
"""Bytes charged at a time: small, so that large blocks don't keep others waiting …"""
PIECE_SECONDS = 0.02
"""… but not so small that a fast transfer wakes more often than this."""
SLICE = 0.2  # seconds between two looks at whether to stop, and at the rates

Check = Callable[[], object]
Clock = Callable[[], float]
Sleep = Callable[[float], object]


class Bucket:
    """One limit, in bytes per second; None: none. Safe to share between threads.

    Whoever charges bytes gets a ticket, and may continue once `due` says 0. Over any time t with one rate, at most
    burst + rate · t bytes may pass, where the burst is `max(BURST, BURST_SECONDS · rate)`.
    """

    def __init__(self, rate: int | None = None, clock: Clock = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._rate = rate
        self._level = _burst(rate)
        """Bytes that may pass now, at most a burst; negative while a transfer waits."""
        self._charged = 0
        """All bytes ever charged: a ticket is this number at its time."""
        self._time = clock()

    @property
    def rate(self) -> int | None:
        """Bytes per second that may pass, None for any number."""
        return self._rate

    @rate.setter
    def rate(self, rate: int | None) -> None:
        with self._lock:
            self._fill()
            self._rate = rate
            self._fill()  # what was saved up for a higher rate is not for this one

    @property
    def piece(self) -> int | None:
        """Bytes to charge at a time; None for any number."""
        rate = self._rate
        return None if rate is None else max(PIECE, int(rate * PIECE_SECONDS))

    def charge(self, count: int) -> int:
        """Queue for `count` bytes; return the ticket."""
        with self._lock:
            self._fill()
            self._level -= count
            self._charged += count
            return self._charged

    def due(self, ticket: int) -> float:
        """Return the seconds until a ticket's bytes may pass, as the rate is now; 0 when they may."""
        with self._lock:
            self._fill()
            missing = ticket - self._charged - self._level
            return 0.0 if self._rate is None or missing <= 0 else missing / self._rate

    def refund(self, count: int) -> None:
        """Take back a charge whose bytes will not pass."""
        with self._lock:
            self._level += count
            self._charged -= count

    def _fill(self) -> None:
        now = self._clock()
        passed, self._time = now - self._time, now
        if self._rate is None:
            self._level = 0.0  # nobody waits, and nothing is saved up
        else:
            self._level = min(self._level + self._rate * passed, _burst(self._rate))


class Throttle:
    """The limits of one transfer: its machines' buckets and its own. Safe to share between its threads."""

    def __init__(
        self, machines: Iterable[Bucket], own: int | None, clock: Clock = time.monotonic, sleep: Sleep = time.sleep
    ) -> None:
        self._own = Bucket(own, clock)
        self._buckets = (*machines, self._own)
        self._sleep = sleep

    @property
    def limited(self) -> bool:
        """Whether a limit is in force now."""
        return any(bucket.rate is not None for bucket in self._buckets)

    @property
    def rate(self) -> int | None:
        """Bytes per second that may pass now, None for any number."""
        return min((bucket.rate for bucket in self._buckets if bucket.rate is not None), default=None)

    def limit(self, rate: int | None) -> None:
        """Set the transfer's own limit, in bytes per second; None for none."""
        self._own.rate = rate

    def take(self, count: int, check: Check) -> None:
        """Block until `count` bytes may pass. `check` is called at least each SLICE seconds while it blocks.

        Raises: what `check` raises; bytes that have not passed by then are not charged.
        """
        while count > 0:
            piece = min((count, *(bucket.piece or count for bucket in self._buckets)))
            self._pass(piece, check)
            count -= piece

    def _pass(self, count: int, check: Check) -> None:
        tickets = [(bucket, bucket.charge(count)) for bucket in self._buckets]
        try:
            while (pause := max(bucket.due(ticket) for bucket, ticket in tickets)) > 0:
                check()
                self._sleep(min(pause, SLICE))
        except BaseException:
            for bucket, _ in tickets:
                bucket.refund(count)
            raise


class Throttles:
    """The buckets of a mover's machines, made at the first use. Safe to share between threads."""

    def __init__(self, clock: Clock = time.monotonic, sleep: Sleep = time.sleep) -> None:
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._buckets: dict[str, Bucket] = {}

    def set(self, machine: str, rate: int | None) -> None:
        """Set what all of this mover's transfers of a machine may move together, in bytes per second; None: no limit.

        It takes effect at once, also for those under way.
        """
        bucket = self._bucket(machine)
        if bucket.rate != rate:
            bucket.rate = rate

    def of(self, machines: Iterable[str], own: int | None = None) -> Throttle:
        """Return the throttle of a transfer between these machines; `own` is its request's limit.

        A machine whose limit was not set has none.
        """
        buckets = [self._bucket(name) for name in sorted(set(machines))]
        return Throttle(buckets, own, self._clock, self._sleep)

    def _bucket(self, machine: str) -> Bucket:
        with self._lock:
            return self._buckets.setdefault(machine, Bucket(clock=self._clock))


def _burst(rate: int | None) -> float:
    return 0.0 if rate is None else max(float(BURST), BURST_SECONDS * rate)
