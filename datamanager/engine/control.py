"""What a running transfer tells and is told: bytes done, where it is, and that it must stop."""

from __future__ import annotations

from datamanager.domain.states import Phase
from datamanager.errors import DataManagerError


class Control:
    """Shared by the thread that moves bytes and those that watch it.

    Only the working thread calls `advance`; anybody may call `stop`. Reads and writes are single attributes, so no
    lock is needed.
    """

    def __init__(self) -> None:
        self.phase = Phase.QUEUED
        self.bytes_done = 0
        self.bytes_total: int | None = None
        self._stop: DataManagerError | None = None

    def enter(self, phase: Phase, total: int | None = None) -> None:
        """Note the phase; its bytes are counted from 0 when `total` is given. Raises: whatever `stop` was given."""
        self.check()
        self.phase = phase
        if total is not None:
            self.bytes_done, self.bytes_total = 0, total

    def advance(self, count: int) -> None:
        """Count bytes. A `Progress` of the transports. Raises: whatever `stop` was given."""
        self.bytes_done += count
        self.check()

    def watch(self, _: int) -> None:
        """Let work that moves no bytes of its own be stopped (remote hashing)."""
        self.check()

    def stop(self, reason: DataManagerError) -> None:
        """Make the work end with `reason` at its next step; the first reason counts."""
        self._stop = self._stop or reason

    def check(self) -> None:
        """Raise the reason to stop, if there is one."""
        if self._stop is not None:
            raise self._stop
