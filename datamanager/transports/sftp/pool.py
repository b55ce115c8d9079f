"""One machine's SFTP storage: a bounded pool of sessions, and the watch over them.

A session is made when one is asked for and none is idle; it is kept for the next user while it works. A thread of the
pool looks at every channel about once a second: it aborts those that stall and closes those not used for a minute.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Protocol

from datamanager.errors import MachineUnavailable, TransportError, TransportTimeout
from datamanager.machines import Machine
from datamanager.transports.channel import Channel
from datamanager.transports.port import Session
from datamanager.transports.remote.programs import Programs
from datamanager.transports.session_limiter import Loans
from datamanager.transports.sftp.session import SftpSession
from datamanager.transports.sftp.wire import Wire
from datamanager.transports.values import Check, no_check

_log = logging.getLogger(__name__)

IDLE_SECONDS = 60.0
"""How long an unused session is kept."""


class Connector(Protocol):
    """Makes channels to one machine. Safe to share between threads."""

    round_trip: float
    """Seconds to the machine, as a session measured last; told by the pool, 0 before."""

    def open_channel(self) -> Channel:
        """Return a new channel. Raises: MachineUnavailable, HostKeyMismatch, AuthenticationFailed."""
        ...


class SftpStorage:
    """The port's Storage over SFTP. Safe to share between threads; at most `max_connections` sessions are lent."""

    def __init__(self, machine: Machine, connector: Connector, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self._machine = machine
        self._connector = connector
        self._idle_seconds = idle_seconds
        self._programs = Programs()
        self._loans = Loans(machine.name, machine.max_connections)
        self._changed = threading.Condition()
        self._idle: deque[tuple[float, SftpSession]] = deque()  # (since when, session), longest idle first
        self._channels: set[Channel] = set()
        self._sessions = 0  # that were made and not ended yet, idle or on loan
        self._watcher: threading.Thread | None = None

    @property
    def machine(self) -> str:
        """The machine's name."""
        return self._machine.name

    @property
    def in_use(self) -> int:
        """How many sessions are on loan, or being made for a borrower."""
        return self._loans.taken

    @property
    def idle(self) -> int:
        """How many sessions wait for the next borrower."""
        with self._changed:
            return len(self._idle)

    @contextmanager
    def session(self, check: Check = no_check) -> Iterator[Session]:
        """Lend a session; blocks while all are in use.

        Raises: MachineUnavailable (also after `close`), HostKeyMismatch, AuthenticationFailed. Nothing is tried twice
        here: the caller knows whether it can wait. Nor does anybody wait to try in turn what has just failed: when the
        machine can't be reached, and no session to it lives, all who wait hear so at once.
        """
        with self._loans.places(1, check), self._lent() as session:
            yield session

    @contextmanager
    def pair(self, check: Check = no_check) -> Iterator[tuple[Session, Session]]:
        """Lend two sessions together; see the port."""
        if self._loans.most == 1:
            with self.session(check) as session:
                yield session, session
            return
        with self._loans.places(2, check), self._lent() as first, self._lent() as second:
            yield first, second

    @contextmanager
    def spare(self, count: int) -> Iterator[list[Session]]:
        """Lend up to `count` further sessions, made at the same time; what can't be had is left out. See the port."""
        with ExitStack() as lent:
            places = self._loans.take_free(count)
            with ThreadPoolExecutor(max(1, places)) as makers:
                asked = [makers.submit(lent.enter_context, self._spare_one()) for _ in range(places)]
            sessions: list[Session] = []
            for one in asked:
                try:
                    sessions.append(one.result())
                except TransportError as exc:
                    _log.info("%s: a further session could not be made: %s", self.machine, exc.detail)
            yield sessions

    def close(self) -> None:
        """Close every idle session; those on loan are closed when they come back. Idempotent."""
        self._loans.close()
        with self._changed:
            sessions = [session for _, session in self._idle]
            self._idle.clear()
            self._changed.notify_all()
        for session in sessions:
            self._end(session)

    @contextmanager
    def _lent(self) -> Iterator[SftpSession]:
        session = self._idle_session() or self._new_session()
        try:
            yield session
        finally:
            with self._changed:
                keep = session.usable and not self._loans.closed
                if keep:
                    self._idle.append((time.monotonic(), session))
            if not keep:
                self._end(session)

    @contextmanager
    def _spare_one(self) -> Iterator[SftpSession]:
        """Lend a session for a place that was taken before, and give the place back, also when there is none."""
        try:
            with self._lent() as session:
                yield session
        finally:
            self._loans.give_back(1)

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
            if alone:  # else those who wait get a session that comes back
                self._loans.refuse_waiting(exc.detail)
            raise
        with self._changed:
            self._sessions += 1
        return session

    def _connect(self) -> SftpSession:
        channel = self._connector.open_channel()
        self._watch(channel)
        channel.patience = (
            self._machine.connect_timeout + 1
        )  # ssh's own ConnectTimeout has a better message: let it win
        try:
            wire = Wire(channel)
        except BaseException as exc:
            channel.abort()
            self._forget(channel)
            channel.close()
            if isinstance(exc, TransportTimeout):
                raise MachineUnavailable(f"{self.machine}: the SFTP server did not answer: {exc.detail}") from exc
            raise
        channel.patience = self._machine.stall_timeout
        self._connector.round_trip = wire.round_trip
        return SftpSession(wire, self._programs)

    def _end(self, session: SftpSession) -> None:
        self._forget(session.channel)
        with self._changed:
            self._sessions -= 1
        try:
            session.close()
        except TransportError as exc:
            _log.info("%s: a session ended badly: %s", self.machine, exc.detail)

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
                if self._loans.closed and not self._channels:
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
            while self._idle and now - self._idle[0][0] >= self._idle_seconds:
                expired.append(self._idle.popleft()[1])
            return expired
