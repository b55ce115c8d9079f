"""One machine's SFTP storage: a bounded pool of sessions, and the watch over them.

A session is made when one is acquired and none is idle, or before, when one is expected; it is kept for the next user
while it works. A thread of the pool looks at every channel about once a second: it aborts those that stall and closes
those not used for a minute, the last one after ten: a login takes a dozen round trips.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Protocol

from datamanager.errors import LoginOutput, MachineUnavailable, TransportError, TransportTimeout
from datamanager.machines import Machine
from datamanager.signing.signer import PersonLogin
from datamanager.transports.channel import Channel
from datamanager.transports.port import Session
from datamanager.transports.remote.running import InstalledPrograms
from datamanager.transports.session_limiter import BoundedStorage, SessionLimiter
from datamanager.transports.sftp.server_behaviour import ServerBehaviour
from datamanager.transports.sftp.session import SftpSession
from datamanager.transports.sftp.wire import Wire

_log = logging.getLogger(__name__)

IDLE_SECONDS, LAST_IDLE_SECONDS = 60.0, 600.0
"""How long an unused session is kept, and the last one of a pool."""


class Known:
    """What was found out of a machine, for one account there. Safe to share between threads, and pools."""

    def __init__(self, machine: str) -> None:
        self.programs = InstalledPrograms()
        self.server = ServerBehaviour(machine)


class Connector(Protocol):
    """Makes channels to one machine. Safe to share between threads."""

    round_trip: float
    """Seconds to the machine, as a session measured last; set by the pool, 0 before."""

    def open_channel(self) -> Channel:
        """Return a new channel. Raises: MachineUnavailable, HostKeyMismatch, AuthenticationFailed."""

    def close(self) -> None:
        """Free what later channels would need. Idempotent."""


class SftpStorage(BoundedStorage):
    """The port's Storage over SFTP.

    Nothing is tried twice here: the caller knows whether it can wait. Nor does anybody wait to try in turn what has
    just failed: when the machine can't be reached, and no session to it lives, all callers that wait get the error.
    """

    def __init__(
        self,
        machine: Machine,
        connector: Connector,
        *,
        limiter: SessionLimiter | None = None,
        login: PersonLogin | None = None,
        known: Known | None = None,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        super().__init__(machine, limiter)
        known = known or Known(machine.name)
        self.login = login
        self._closed = False
        self._machine = machine
        self._connector = connector
        self._idle_seconds, self._last_idle_seconds = idle_seconds, max(idle_seconds, LAST_IDLE_SECONDS)
        self._installed = known.programs
        self._server = known.server
        self._changed = threading.Condition()
        self._idle: deque[tuple[float, SftpSession]] = deque()  # (since when, session), longest idle first
        self._channels: set[Channel] = set()
        self._sessions = 0  # that were made and not ended yet, idle or in use
        self._watcher: threading.Thread | None = None
        # as many sessions are being made as these two have: the first that is ready is for who waits longest
        self._expected: deque[Future[SftpSession]] = deque()  # nobody waits for it yet
        self._awaited: deque[Future[SftpSession]] = deque()
        self._limiter.join(self)

    @property
    def idle(self) -> int:
        """How many sessions wait for their next use."""
        with self._changed:
            return len(self._idle)

    @property
    def opened(self) -> int:
        """How many sessions there are, idle or in use."""
        with self._changed:
            return self._sessions

    def expect(self, count: int = 1, *, many: bool = False) -> None:
        """See the port."""
        with self._changed:
            ready = sum(session.has_program or not many for _, session in self._idle)
            wanted = count - ready - len(self._expected)
        acquired = self._limiter.try_acquire(min(wanted, self._limiter.room)) if wanted > 0 else 0
        with self._changed:
            self._expected.extend(Future() for _ in range(acquired))
        for _ in range(acquired):
            name = f"dm-{self.machine}-expected"
            threading.Thread(target=self._make_expected, args=(many,), name=name, daemon=True).start()

    def close_idle(self) -> bool:
        """Close the session that is idle longest; False when there is none."""
        with self._changed:
            if not self._idle:
                return False
            _, session = self._idle.popleft()
        self._end(session)
        return True

    def close(self) -> None:
        """Close every idle session; those in use are closed when they are released. Idempotent."""
        super().close()
        with self._changed:
            self._closed = True
            sessions = [session for _, session in self._idle]
            self._idle.clear()
            self._changed.notify_all()
        for session in sessions:
            self._end(session)
        self._limiter.leave(self)
        self._connector.close()

    @contextmanager
    def _pooled(self) -> Iterator[Session]:
        if self._closed:
            raise MachineUnavailable(f"{self.machine}: the storage is closed")
        session = self._idle_session() or self._expected_session() or self._new_session()
        try:
            yield session
        finally:
            self._connector.round_trip = session.round_trip
            self._put_back(session)

    def _put_back(self, session: SftpSession) -> None:
        """Keep a session for its next user, if it still works."""
        with self._changed:
            keep = session.usable and not self._closed
            if keep:
                self._idle.append((time.monotonic(), session))
        if not keep:
            self._end(session)

    def _make_expected(self, many: bool) -> None:
        """Make a session for who waits longest for one; without such a one it is idle, and a failure nobody's. Its
        place is acquired, and released here.
        """
        session: SftpSession | None = None
        try:
            session = (self._idle_session() if many else None) or self._new_session()
            if many:
                session.begin_many()
        except BaseException as exc:  # noqa: BLE001 - raised by who takes the session
            if session is not None:
                self._end(session)
            if (waiter := self._waiter(made=False)) is not None:
                waiter.set_exception(exc)
            else:
                _log.info("%s: a session that is expected could not be made: %s", self.machine, exc)
        else:
            if (waiter := self._waiter(made=True)) is not None:
                waiter.set_result(session)
            else:
                self._put_back(session)
        finally:
            self._limiter.release(1)

    def _waiter(self, *, made: bool) -> Future[SftpSession] | None:
        """Return who gets the outcome of a making that has ended. A failure is nobody's while more sessions are being
        made than are waited for.
        """
        with self._changed:
            if self._awaited and (made or not self._expected):
                return self._awaited.popleft()
            self._expected.popleft()
            return None

    def _expected_session(self) -> SftpSession | None:
        """Wait for a session that is made already, if there is one that nobody else waits for."""
        with self._changed:
            if not self._expected:
                return None
            future = self._expected.popleft()
            self._awaited.append(future)
        return future.result()

    def _idle_session(self) -> SftpSession | None:
        """Return the session used last that still works; those that broke while idle are closed."""
        while True:
            with self._changed:
                if not self._idle:
                    return None
                _, session = self._idle.pop()
            if session.usable:
                return session
            self._end(session)

    def _new_session(self) -> SftpSession:
        self._limiter.make_room(self)
        try:
            session = self._connect()
        except MachineUnavailable as exc:
            if not self._limiter.has_sessions():  # else those who wait get a session that is released
                self._limiter.refuse_waiting(exc.detail)
            raise
        with self._changed:
            self._sessions += 1
        return session

    def _connect(self) -> SftpSession:
        channel = self._connector.open_channel()
        self._watch(channel)
        # ssh's own ConnectTimeout has a better message: let it win
        channel.patience = self._machine.connect_timeout + 1
        try:
            wire = Wire(channel)
        except BaseException as exc:
            channel.abort()
            self._forget(channel)
            channel.close()
            if isinstance(exc, LoginOutput):
                raise LoginOutput(f"{self.machine}: {exc.detail}") from exc
            if isinstance(exc, TransportTimeout):
                raise MachineUnavailable(f"{self.machine}: the SFTP server did not answer: {exc.detail}") from exc
            raise
        channel.patience = self._machine.stall_timeout
        self._connector.round_trip = wire.round_trip
        return SftpSession(wire, self._installed, self._server)

    def _end(self, session: SftpSession) -> None:
        self._forget(session.channel)
        with self._changed:
            self._sessions -= 1
        try:
            session.close()
        except TransportError as exc:
            _log.info("%s: a session ended with an error: %s", self.machine, exc.detail)

    def _watch(self, channel: Channel) -> None:
        with self._changed:
            self._channels.add(channel)
            if self._watcher is None:
                self._watcher = threading.Thread(target=self._watch_channels, name=f"dm-{self.machine}", daemon=True)
                self._watcher.start()

    def _forget(self, channel: Channel) -> None:
        with self._changed:
            self._channels.discard(channel)
            self._changed.notify_all()

    def _watch_channels(self) -> None:
        """Be the pool's thread: until the storage is closed and the last session has come back."""
        pause = min(1.0, self._machine.stall_timeout / 4)
        while True:
            with self._changed:
                if self._closed and not self._channels:
                    return
                self._changed.wait(pause if self._channels else None)
                channels = list(self._channels)
            now = time.monotonic()
            for channel in channels:
                channel.check_stall(now)
            for session in self._expired(now):
                self._end(session)

    def _expired(self, now: float) -> list[SftpSession]:
        with self._changed:
            expired: list[SftpSession] = []
            while self._idle:
                last = self._sessions - len(expired) == 1
                if now - self._idle[0][0] < (self._last_idle_seconds if last else self._idle_seconds):
                    break
                expired.append(self._idle.popleft()[1])
            return expired
