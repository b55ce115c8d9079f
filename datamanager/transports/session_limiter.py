"""How many sessions of a machine are on loan at once: bounded, and served in the order of asking."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from datamanager.errors import MachineUnavailable
from datamanager.transports.values import Check, no_check

_LOOK = 0.2
"""Seconds between two looks at whether to go on waiting."""

_FEW = 4
"""Places of which none is kept free."""


@dataclass(eq=False, slots=True)
class _Ticket:
    """Somebody who waits; `refused`: why in vain."""

    refused: str | None = None


class Loans:
    """Counts places; safe to share between threads.

    Those who want two wait for both without holding one, so that two of them can't wait for each other; as nobody
    overtakes them, they can't be left waiting either.
    """

    def __init__(self, machine: str, most: int) -> None:
        self.most = most
        self._machine = machine
        self._changed = threading.Condition()
        self._waiting: deque[_Ticket] = deque()
        self._taken = 0
        self._closed = False

    @property
    def taken(self) -> int:
        """How many places are taken."""
        with self._changed:
            return self._taken

    @property
    def closed(self) -> bool:
        """Whether no more places are given."""
        with self._changed:
            return self._closed

    @contextmanager
    def places(self, count: int, check: Check = no_check) -> Iterator[None]:
        """Take so many places, at most `most`; blocks until they are free.

        Raises: MachineUnavailable once the loans are closed, also to those who wait, and to those who wait when
        `refuse_waiting` is called; what `check` raises meanwhile.
        """
        ticket = _Ticket()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while not (self._closed or (self._waiting[0] is ticket and self._taken + count <= self.most)):
                    check()
                    self._changed.wait(_LOOK)
                    if ticket.refused is not None:
                        raise MachineUnavailable(ticket.refused)
                if self._closed:
                    raise MachineUnavailable(f"{self._machine}: the storage is closed")
                self._taken += count
            finally:
                self._waiting.remove(ticket)
                self._changed.notify_all()
        try:
            yield
        finally:
            self.give_back(count)

    def take_free(self, count: int) -> int:
        """Take up to so many places that nobody waits for, without waiting, and return how many: to be given back.

        One stays free for the next who comes, where there are more than a few: a large transfer over a long path would
        have them all for hours.
        """
        with self._changed:
            free = self.most - (self.most > _FEW) - self._taken
            taken = 0 if self._closed or self._waiting else max(0, min(count, free))
            self._taken += taken
            return taken

    def give_back(self, count: int) -> None:
        """Give back places that were taken by `take_free`."""
        with self._changed:
            self._taken -= count
            self._changed.notify_all()

    def refuse_waiting(self, why: str) -> None:
        """Let those who wait now wait no longer; who comes later asks anew."""
        with self._changed:
            for ticket in self._waiting:
                ticket.refused = why
            self._changed.notify_all()

    def close(self) -> None:
        """Give no more places; those taken are given back as usual. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
