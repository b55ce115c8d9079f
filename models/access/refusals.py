"""Refusals in the audit trail: many of one kind are told together, so that nobody fills the disk by being refused.

Of a person (or an address), a code and a minute the first refusal is a row, with what was asked for, and all further
ones are a row with their number when the minute is over. Beyond KEYS_MAX of these in a minute the rest is counted
together. So a process writes at most 2 * (KEYS_MAX + 1) rows a minute, whoever sends what.

Refusals are noted in memory, for the request they belong to is not to take longer than one that is answered: what a
foreign object and none at all are answered with must not differ in time. A process that is killed loses what it has
not written: those of the last second, and the numbers of the last minute.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from threading import Lock

import structlog
from sqlalchemy.orm import Session

from models.access.requester import Requester
from models.access.trail import TrailOutcome, note

KEYS_MAX = 100
MINUTE = 60.0
"""Seconds that are told together."""
WAITING_MAX = 2_000
"""Rows that wait at most while the catalogue is away; further ones are left out, which the log says."""
OTHERS = Requester(means="several", origin="others")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RefusedRequest:
    """Who was refused what, how many times."""

    by: Requester
    code: str
    action: str
    subject: str | None = None
    count: int = 1


@dataclass(slots=True)
class Refusals:
    """The refusals of one process. Safe to share between threads."""

    most: int = KEYS_MAX
    _first: dict[tuple[str | None, str, str], RefusedRequest] = field(default_factory=dict)
    _further: Counter[tuple[str | None, str, str]] = field(default_factory=Counter)
    _waiting: list[RefusedRequest] = field(default_factory=list)
    _begun: float | None = None
    _lock: Lock = field(default_factory=Lock)

    def note(self, refusal: RefusedRequest) -> None:
        """Note a refusal; never waits for the catalogue."""
        by = refusal.by
        key = (by.person, "" if by.person is not None else network_of(by.origin), refusal.code)
        with self._lock:
            if key not in self._first and len(self._first) >= self.most:
                refusal, key = replace(refusal, by=OTHERS, subject=None), (None, OTHERS.origin, "")
            if key in self._first:
                self._further[key] += 1
            else:
                self._first[key] = refusal
                self._waiting.append(refusal)

    def take(self, time: float, *, last: bool = False) -> list[RefusedRequest]:
        """Return what is to be written at a monotonic `time`; it is the caller's then. `last`: the process ends."""
        with self._lock:
            if self._begun is None:
                self._begun = time
            if last or time - self._begun >= MINUTE:
                told = (replace(self._first[key], subject=None, count=count) for key, count in self._further.items())
                self._waiting += told
                self._first.clear()
                self._further.clear()
                self._begun = time
            taken, self._waiting = self._waiting, []
            return taken

    def give_back(self, refusals: Sequence[RefusedRequest]) -> None:
        """Take back what could not be written."""
        with self._lock:
            waiting = [*refusals, *self._waiting]
            if len(waiting) > WAITING_MAX:
                log.warning("refusals_left_out", count=len(waiting) - WAITING_MAX)
            self._waiting = waiting[:WAITING_MAX]


def write_refusals(session: Session, refusals: Sequence[RefusedRequest]) -> None:
    """Write rows for refusals."""
    for one in refusals:
        counts = {"refusals": one.count} if one.count > 1 or one.subject is None else None
        note(session, one.action, TrailOutcome.REFUSED, subject=one.subject, code=one.code, counts=counts, by=one.by)


def network_of(address: str) -> str:
    """Return what counts as one client's: an address, of IPv6 its /64, which a single host may have."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else address
