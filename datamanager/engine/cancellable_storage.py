"""Storages of one transfer: what they lend is broken when the transfer is to stop and its machine does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from datamanager.engine.control import Control
from datamanager.transports.port import Session, Storage
from datamanager.transports.values import Check, no_check


class CancellableStorage:
    """The port's Storage around another one. Waiting for a session ends, and a session is given back at once, when the
    transfer is to stop.

    Every method may raise what `control` was told to stop with.
    """

    def __init__(self, storage: Storage, control: Control) -> None:
        self._storage = storage
        self._control = control

    @property
    def machine(self) -> str:
        """The machine's name."""
        return self._storage.machine

    @contextmanager
    def session(self, check: Check = no_check) -> Iterator[Session]:
        """Lend a session; see the port."""
        with self._storage.session(self._both(check)) as session, self._control.using([session]):
            yield session

    @contextmanager
    def session_pair(self, check: Check = no_check) -> Iterator[tuple[Session, Session]]:
        """Lend two sessions together; see the port."""
        with self._storage.session_pair(self._both(check)) as sessions, self._control.using(sessions):
            yield sessions

    @contextmanager
    def extra_sessions(self, count: int) -> Iterator[list[Session]]:
        """Lend up to `count` further sessions without waiting; see the port."""
        with self._storage.extra_sessions(count) as sessions, self._control.using(sessions):
            yield sessions

    def close(self) -> None:
        """Do nothing: the storage is others' too."""

    @property
    def unwrapped(self) -> Storage:
        """The storage itself, for clearing up after a stop."""
        return self._storage

    def _both(self, check: Check) -> Check:
        def both() -> None:
            self._control.check()
            check()

        return both


def unwrapped(storage: Storage) -> Storage:
    """Return the storage itself, which lends also after a stop: for clearing up."""
    return storage.unwrapped if isinstance(storage, CancellableStorage) else storage
