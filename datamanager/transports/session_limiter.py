"""How many sessions of a machine are in use at once: bounded, and served in the order of their requests."""

from __future__ import annotations

import abc
import logging
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Protocol

from datamanager.errors import MachineUnavailable, TransportError
from datamanager.machines import Machine
from datamanager.signing.signer import PersonLogin
from datamanager.transports.port import Session
from datamanager.transports.values import Check, no_check

_log = logging.getLogger(__name__)

_CHECK_EVERY = 0.2
"""Seconds between two calls of `check`."""

_FEW = 4
"""Sessions of which none is kept free."""


@dataclass(eq=False, slots=True)
class _Ticket:
    """One caller that waits; `refused`: why in vain."""

    refused: str | None = None


class Pool(Protocol):
    """A pool of sessions that shares the machine's limit with others."""

    @property
    def idle(self) -> int:
        """How many sessions wait for their next use."""

    @property
    def opened(self) -> int:
        """How many sessions there are, idle or in use."""

    def close_idle(self) -> bool:
        """Close the session that is idle longest; False when there is none."""


class SessionLimiter:
    """A semaphore with a queue; safe to share between threads.

    Callers that want two wait for both without holding one, so that two of them can't wait for each other; as nobody
    overtakes them, they can't be left waiting either.
    """

    def __init__(self, machine: str, most: int) -> None:
        self.most = most
        self._machine = machine
        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[_Ticket] = deque()
        self.in_use = 0
        """How many are acquired."""
        self._pools: list[Pool] = []
        self.closed = False
        """Whether no more can be acquired."""

    @contextmanager
    def acquired(self, count: int, check: Check = no_check) -> Iterator[None]:
        """Acquire so many, at most `most`, for the context; blocks until they are free.

        Raises: MachineUnavailable once the limiter is closed, also to callers that wait, and to callers that wait when
        `refuse_waiting` is called; what `check` raises meanwhile.
        """
        ticket = _Ticket()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while not (self.closed or (self._waiting[0] is ticket and self.in_use + count <= self.most)):
                    check()
                    self._changed.wait(_CHECK_EVERY)
                    if ticket.refused is not None:
                        raise MachineUnavailable(ticket.refused)
                if self.closed:
                    raise MachineUnavailable(f"{self._machine}: the storage is closed")
                self.in_use += count
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            self.release(count)

    def join(self, pool: Pool) -> None:
        """Count the pool's idle sessions too when room is made."""
        with self._changed:
            self._pools.append(pool)

    def leave(self, pool: Pool) -> None:
        """Forget a pool. Idempotent."""
        with self._changed:
            self._pools = [one for one in self._pools if one is not pool]

    def make_room(self, pool: Pool) -> None:
        """Close idle sessions of other pools until all that there are, with one that is acquired and still to be made,
        are no more than `most`."""
        while True:
            with self._changed:
                others = [one for one in self._pools if one is not pool and one.idle]
                if not others or self.in_use + sum(one.idle for one in self._pools) <= self.most:
                    return
            others[0].close_idle()

    @property
    def room(self) -> int:
        """How many more sessions there may be without closing an idle one of any pool."""
        with self._changed:
            return max(0, self.most - self.in_use - sum(one.idle for one in self._pools))

    def has_sessions(self) -> bool:
        """Say whether any pool has a session."""
        with self._changed:
            return any(pool.opened for pool in self._pools)

    def try_acquire(self, count: int) -> int:
        """Acquire up to so many that nobody waits for, without waiting, and return how many: to be released.

        One stays free for the next caller, where there are more than a few: a large transfer over a long path would
        have them all for hours.
        """
        with self._changed:
            free = self.most - (self.most > _FEW) - self.in_use
            acquired = 0 if self.closed or self._waiting else max(0, min(count, free))
            self.in_use += acquired
            return acquired

    def release(self, count: int) -> None:
        """Release what `try_acquire` acquired."""
        with self._changed:
            self.in_use -= count
            self._changed.notify_all()

    def refuse_waiting(self, why: str) -> None:
        """End the wait of all callers that wait now; later ones are not affected."""
        with self._changed:
            for ticket in self._waiting:
                ticket.refused = why
            self._changed.notify_all()

    def close(self) -> None:
        """Let no more be acquired; those in use are released as usual. Idempotent."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()


class BoundedStorage(abc.ABC):
    """The port's Storage, of at most the machine's `max_connections` sessions in use. Safe to share between threads."""

    login: PersonLogin | None = None
    """See the port."""

    def __init__(self, machine: Machine, limiter: SessionLimiter | None = None) -> None:
        self.machine = machine.name
        self._shares = limiter is not None
        self._limiter = limiter or SessionLimiter(machine.name, machine.max_connections)

    @property
    def in_use(self) -> int:
        """How many sessions are in use, or being made for a caller."""
        return self._limiter.in_use

    @contextmanager
    def session(self, check: Check = no_check) -> Iterator[Session]:
        """Acquire a session; see the port. Raises: MachineUnavailable, also after `close`."""
        with self._limiter.acquired(1, check), self._pooled() as session:
            yield session

    @contextmanager
    def session_pair(self, check: Check = no_check) -> Iterator[tuple[Session, Session]]:
        """Acquire two sessions together; see the port."""
        if self._limiter.most == 1:
            with self.session(check) as session:
                yield session, session
            return
        with self._limiter.acquired(2, check), self._pooled() as first, self._pooled() as second:
            yield first, second

    @contextmanager
    def extra_sessions(self, count: int) -> Iterator[list[Session]]:
        """Acquire up to `count` further sessions, made at the same time; one that can't be made is left out."""
        with ExitStack() as stack:
            acquired = self._limiter.try_acquire(count)
            with ThreadPoolExecutor(max(1, acquired)) as makers:
                opening = [makers.submit(stack.enter_context, self._extra()) for _ in range(acquired)]
            sessions: list[Session] = []
            for one in opening:
                try:
                    sessions.append(one.result())
                except TransportError as exc:
                    _log.info("%s: an additional session could not be opened: %s", self.machine, exc.detail)
            yield sessions

    def close(self) -> None:
        """Let no more sessions be acquired. A limit that is shared stays as it is. Idempotent."""
        if not self._shares:
            self._limiter.close()

    @contextmanager
    def _extra(self) -> Iterator[Session]:
        """Use a session that was acquired before, and release it, also when it can't be made."""
        try:
            with self._pooled() as session:
                yield session
        finally:
            self._limiter.release(1)

    @abc.abstractmethod
    def _pooled(self) -> AbstractContextManager[Session]:
        """Take an idle session or make one, and put it back with the context. Its place in the limit is acquired."""
