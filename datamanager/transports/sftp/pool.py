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
from datamanager.transports.channel import Channel
from datamanager.transports.port import Session
from datamanager.transports.remote.running import InstalledPrograms
from datamanager.transports.session_limiter import BoundedStorage
from datamanager.transports.sftp.server_behaviour import ServerBehaviour
from datamanager.transports.sftp.session import SftpSession
from datamanager.transports.sftp.wire import Wire

_log = logging.getLogger(__name__)

IDLE_SECONDS, LAST_IDLE_SECONDS = 60.0, 600.0
"""How long an unused session is kept, and the last one of a machine."""


class Connector(Protocol):
    """Makes channels to one machine. Safe to share between threads."""

    round_trip: float
    """Seconds to the machine, as a session measured last; set by the pool, 0 before."""

    def open_channel(self) -> Channel:
        """Return a new channel. Raises: MachineUnavailable, HostKeyMismatch, AuthenticationFailed."""


class SftpStorage(BoundedStorage):
    """The port's Storage over SFTP.

    Nothing is tried twice here: the caller knows whether it can wait. Nor does anybody wait to try in turn what has
    just failed: when the machine can't be reached, and no session to it lives, all callers that wait get the error.
    """

    def __init__(self, machine: Machine, connector: Connector, *, idle_seconds: float = IDLE_SECONDS) -> None:
        super().__init__(machine)
        self._machine = machine
        self._connector = connector
        self._idle_seconds, self._last_idle_seconds = idle_seconds, max(idle_seconds, LAST_IDLE_SECONDS)
        self._installed = InstalledPrograms()
        self._server = ServerBehaviour(machine.name)
        self._changed = threading.Condition()
        self._idle: deque[tuple[float, SftpSession]] = deque()  # (since when, session), longest idle first
        self._channels: set[Channel] = set()
        self._sessions = 0  # that were made and not ended yet, idle or in use
        self._expected: Future[SftpSession] | None = None  # made for whoever acquires one next
        self._watcher: threading.Thread | None = None

    @property
    def idle(self) -> int:
        """How many sessions wait for their next use."""
        with self._changed:
            return len(self._idle)

    def expect(self, *, many: bool) -> None:
        """See the port."""
        with self._changed:
            ready = any(session.has_program or not many for _, session in self._idle)
            # it counts while it is made, so that there are never more than the machine's `max_connections`
            if ready or self._expected is not None or not self._limiter.try_acquire(1):
                return
            self._expected = future = Future[SftpSession]()
        name = f"dm-{self.machine}-expected"
        threading.Thread(target=self._make_expected, args=(future, many), name=name, daemon=True).start()

    def close(self) -> None:
        """Close every idle session; those in use are closed when they are released. Idempotent."""
        super().close()
        with self._changed:
            sessions = [session for _, session in self._idle]
            self._idle.clear()
            self._changed.notify_all()
        for session in sessions:
            self._end(session)

    @contextmanager
    def _pooled(self) -> Iterator[Session]:
        session = self._idle_session() or self._expected_session() or self._new_session()
        try:
            yield session
        finally:
            self._connector.round_trip = session.round_trip
            self._put_back(session)

    def _put_back(self, session: SftpSession) -> None:
        """Keep a session for its next user, if it still works."""
        with self._changed:
            keep = session.usable and not self._limiter.closed
            if keep:
                self._idle.append((time.monotonic(), session))
        if not keep:
            self._end(session)

    def _make_expected(self, future: Future[SftpSession], many: bool) -> None:
        """Make a session for who waits for `future`; without such a one it is idle, and a failure nobody's."""
        session: SftpSession | None = None
        try:
            session = self._idle_session() or self._new_session()
            if many:
                session.begin_many()
        except BaseException as exc:  # noqa: BLE001 - raised by who takes the session
            if session is not None:
                self._end(session)
            if self._is_taken(future):
                future.set_exception(exc)
            else:
                _log.info("%s: a session that is expected could not be made: %s", self.machine, exc)
        else:
            if self._is_taken(future):
                future.set_result(session)
            else:
                self._put_back(session)
        finally:
            self._limiter.release(1)

    def _is_taken(self, future: Future[SftpSession]) -> bool:
        """Say whether somebody waits for an expected session; if not, nobody will."""
        with self._changed:
            if self._expected is not future:
                return True
            self._expected = None
            return False

    def _expected_session(self) -> SftpSession | None:
        """Wait for the session that is made already, if there is one that nobody else waits for."""
        with self._changed:
            future, self._expected = self._expected, None
        return None if future is None else future.result()

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
        try:
            session = self._connect()
        except MachineUnavailable as exc:
            with self._changed:
                alone = self._sessions == 0
            if alone:  # else those who wait get a session that is released
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
                if self._limiter.closed and not self._channels:
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
