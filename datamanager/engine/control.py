"""The control of a running transfer: its progress, its limits, and how it is stopped.

The sessions in use are aborted when it is to stop and its machine does not answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from threading import Lock

from datamanager.domain.states import Phase
from datamanager.engine.throttle import Throttle
from datamanager.errors import Cancelled, DataManagerError, DeadlineExceeded, NotAllowed, Paused
from datamanager.signing.signer import PersonLogin
from datamanager.transports.port import Session, Storage
from datamanager.transports.values import Check, no_check

USER_STOPS = (Cancelled, DeadlineExceeded, Paused, NotAllowed)
"""Reasons to stop that come from users, or from what they may do: what is past its commit point is done first."""


class Control:
    """Shared by the thread that moves bytes and those that watch it.

    Those that work call `advance`; anybody may call `stop`.
    """

    def __init__(self, throttle: Throttle | None = None) -> None:
        self.throttle = throttle
        """What `advance` waits for; None: nothing is limited."""
        self.phase = Phase.QUEUED
        self.bytes_done = 0
        self.bytes_total: int | None = None
        self._stop: DataManagerError | None = None
        self._user_stop: DataManagerError | None = None
        self._shielded = False
        self._shielded_parts = 0
        self._lock = Lock()
        self._sessions: set[Session] = set()

    def enter(self, phase: Phase, total: int | None = None) -> None:
        """Note the phase; its bytes are counted from 0 when `total` is given. Raises: whatever `stop` was given."""
        self.check()
        self.phase = phase
        if total is not None:
            self.bytes_done, self.bytes_total = 0, total

    def advance(self, count: int) -> None:
        """Count bytes that were moved, and block until the limits allow more. A `Progress` of the transports.

        Raises: whatever `stop` was given, also while it blocks.
        """
        self.count(count)
        self.check()
        if self.throttle is not None:
            self.throttle.take(count, self.check)

    def skip(self, count: int) -> None:
        """Count bytes that no limit is for: those that stay on their machine. Raises: whatever `stop` was given."""
        self.count(count)
        self.check()

    def count(self, count: int) -> None:
        """Count bytes as done, or take them back. From any thread."""
        with self._lock:
            self.bytes_done += count

    def watch(self, _: int) -> None:
        """Make work stoppable that moves no bytes of its own (remote hashing)."""
        self.check()

    def stop(self, reason: DataManagerError) -> None:
        """Make the work end with `reason` at its next step; the first reason counts, one that a user gave the least."""
        if isinstance(reason, USER_STOPS):
            self._user_stop = self._user_stop or reason
        else:
            self._stop = self._stop or reason

    @property
    def stopping(self) -> DataManagerError | None:
        """The reason to stop, if there is one now."""
        return self._stop or (None if self._shielded or self._shielded_parts else self._user_stop)

    def check(self) -> None:
        """Raise the reason to stop, if there is one now."""
        if (reason := self.stopping) is not None:
            raise reason

    def shield(self) -> None:
        """Pass the commit point: from here on users can't stop it. Raises: whatever `stop` was given."""
        self.check()
        self._shielded = True

    def unshield(self) -> None:
        """Let users stop it again, also by a request made before: nothing was done that needs its other half."""
        self._shielded = False

    def reason(self, *, shielded: bool) -> DataManagerError | None:
        """Return the reason for which a part of the work is to stop, if there is one now."""
        return self._stop or (None if shielded or self._shielded else self._user_stop)

    def count_shielded(self, change: int) -> None:
        """Note that there is one more, or less, part that users can't stop. From any thread."""
        with self._lock:
            self._shielded_parts += change

    @contextmanager
    def using(self, sessions: Iterable[Session]) -> Iterator[None]:
        """Have these sessions aborted by `abort` while the body runs. Raises: whatever `stop` was given."""
        mine = set(sessions)
        self._sessions |= mine
        try:
            self.check()
            yield
        finally:
            self._sessions -= mine

    def abort(self) -> None:
        """Break the sessions in use, so that a thread which waits for a machine that is silent notices the stop."""
        for session in list(self._sessions):
            session.abort()


class PartControl(Control):
    """The control of a part of the work, beside which others are under way: its bytes count for the whole, whose limits
    and stops are its own. Users' stops end the parts that are not shielded; the whole ends when no part is."""

    def __init__(self, whole: Control) -> None:
        super().__init__()
        self._whole = whole

    def count(self, count: int) -> None:
        """Count bytes as done, here and for the whole, or take them back."""
        super().count(count)
        self._whole.count(count)

    def advance(self, count: int) -> None:
        """Count bytes, and block until the limits of the whole allow more."""
        self.skip(count)
        if self._whole.throttle is not None:
            self._whole.throttle.take(count, self.check)

    def give_back(self, kept: int) -> None:
        """Take back what was counted for the whole, but for `kept` bytes: the rest is to be moved again."""
        self.count(kept - self.bytes_done)

    @property
    def stopping(self) -> DataManagerError | None:
        """The reason to stop, if there is one now."""
        return self._whole.reason(shielded=self._shielded)

    def shield(self) -> None:
        """Pass the commit point. Raises: whatever `stop` was given."""
        self.check()
        if not self._shielded:
            self._shielded = True
            self._whole.count_shielded(1)

    def unshield(self) -> None:
        """Let users stop it again."""
        if self._shielded:
            self._shielded = False
            self._whole.count_shielded(-1)


class CancellableStorage:
    """The port's Storage around another one. Waiting for a session ends, and a session is released at once, when the
    transfer is to stop.

    Every method may raise the reason that `control` was stopped with.
    """

    def __init__(self, storage: Storage, control: Control) -> None:
        self.unwrapped = storage
        """The storage itself, for clearing up after a stop."""
        self._control = control

    @property
    def machine(self) -> str:
        """The machine's name."""
        return self.unwrapped.machine

    @property
    def login(self) -> PersonLogin | None:
        """As whom it is used; see the port."""
        return self.unwrapped.login

    @contextmanager
    def session(self, check: Check = no_check) -> Iterator[Session]:
        """Acquire a session; see the port."""
        with self.unwrapped.session(self._both(check)) as session, self._control.using([session]):
            yield session

    @contextmanager
    def session_pair(self, check: Check = no_check) -> Iterator[tuple[Session, Session]]:
        """Acquire two sessions together; see the port."""
        with self.unwrapped.session_pair(self._both(check)) as sessions, self._control.using(sessions):
            yield sessions

    @contextmanager
    def extra_sessions(self, count: int) -> Iterator[list[Session]]:
        """Acquire up to `count` further sessions without waiting; see the port."""
        with self.unwrapped.extra_sessions(count) as sessions, self._control.using(sessions):
            yield sessions

    def expect(self, count: int = 1, *, many: bool = False) -> None:
        """Prepare sessions; see the port."""
        self.unwrapped.expect(count, many=many)

    def close(self) -> None:
        """Do nothing: the storage is others' too."""

    def _both(self, check: Check) -> Check:
        def both() -> None:
            self._control.check()
            check()

        return both


def unwrapped(storage: Storage) -> Storage:
    """Return the storage itself, whose sessions can be acquired also after a stop: for clearing up."""
    return storage.unwrapped if isinstance(storage, CancellableStorage) else storage
