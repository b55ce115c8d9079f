"""A channel: the byte stream to one SFTP server, whichever SSH implementation carries it.

A stalled peer must not block a thread for ever, and neither a blocked system call nor paramiko's write path gives up by
itself. So a channel notes since when it is blocked, and a watchdog (see `pool`) aborts it from outside.
"""

from __future__ import annotations

import abc
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Self

from datamanager.errors import (
    ConnectionLost,
    DataManagerError,
    MachineUnavailable,
    RemoteFailure,
    TransportError,
    TransportTimeout,
)
from datamanager.transports.login_shell import MOST_TEXT, START, printed_text
from datamanager.transports.values import Bytes

LONG_PATH = 0.004
"""Seconds of round trip from which on a connection's windows, not its processors, bound what it carries."""
NOT_ALLOWED = "certificates for this machine allow no programs"
SLOW = 10.0
"""How many times the usual patience a request or program gets that is silent while the disk works: an fsync, a copy on
the server, an unpacking tar."""


class RemoteProgram(abc.ABC):
    """A program that runs on the machine, started by a `command_line`; used by one thread.

    Leaving the context closes its channel and its standard input; that alone does not end one that reads neither.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        """How many seconds `write` waits for a byte to be taken."""
        self._before: bytes | None = b""
        """What login scripts printed so far; None once the program has started."""

    def read(self, timeout: float) -> bytes | None:
        """Return the next piece of its standard output, `b""` at the end, None when none came for `timeout` seconds.

        What login scripts print before is no part of it. Raises: RemoteFailure when they print more than 64 KiB.
        """
        deadline = time.monotonic() + timeout
        while (piece := self._receive(max(0.0, deadline - time.monotonic()))) and self._before is not None:
            text, start, piece = (self._before + piece).partition(START)
            self._before = None if start else text
            if len(text) > MOST_TEXT:
                raise RemoteFailure(f"no program started, {printed_text(text)}")
            if piece:
                break
        return piece

    def read_into(self, buffer: memoryview, timeout: float) -> int | None:
        """Receive the next piece of its standard output into a buffer of at least 64 KiB, and return how many bytes
        came: 0 at the end, None when none came for `timeout` seconds. Raises: as `read`.
        """
        piece = self.read(timeout)
        if piece is None:
            return None
        buffer[: len(piece)] = piece
        return len(piece)

    def write(self, data: Bytes) -> None:
        """Write all of `data` to its standard input, blocking; `data` may be reused when this returns.

        Output that is not read meanwhile can block the program. Raises: TransportTimeout when it takes no byte for
        `patience` seconds; ConnectionLost; RemoteFailure when its input is closed at either end.
        """
        rest = memoryview(data).cast("B")
        while rest:
            sent = self._send(rest, self.patience)
            if not sent:
                raise TransportTimeout(f"the program accepted no input for {self.patience:g} seconds")
            rest = rest[sent:]

    def write_some(self, data: Bytes, seconds: float = 0.0) -> int:
        """Write what is taken within so many seconds and return how many bytes that are, maybe 0. Raises: as `write`.

        The session's thread may be at work beside this one.
        """
        return self._send(memoryview(data).cast("B"), seconds)

    @abc.abstractmethod
    def close_input(self) -> None:
        """End its standard input. Idempotent. Raises: ConnectionLost, RemoteFailure."""

    @abc.abstractmethod
    def exit_status(self) -> int | None:
        """Return its exit status once its output has ended, or None if it was killed or the connection went first."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._close()

    @abc.abstractmethod
    def _receive(self, timeout: float) -> bytes | None:
        """Return what comes next, `b""` at the end, None when nothing came for `timeout` seconds."""

    @abc.abstractmethod
    def _send(self, data: memoryview, timeout: float) -> int:
        """Send what is taken within `timeout` seconds and return how many bytes that are, maybe 0. Raises: as `write`,
        but for TransportTimeout."""

    @abc.abstractmethod
    def _close(self) -> None:
        """Free its resources."""


class Channel(abc.ABC):
    """A duplex byte stream to an SFTP server.

    One thread reads and writes; `check_stall` and `abort` may come from another.
    `patience` is how many seconds a read or write may be blocked without a byte.
    """

    passes_on_files = False
    """Whether a program's output comes quicker than what is read over SFTP."""
    python = "python3"
    exact = False
    """What a program reports of a file is compared with what SFTP reports: see `many_files.Host` for both."""

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.blocked_since: float | None = None
        """Monotonic time since when a read or write waits for a byte; None while nothing waits."""
        self.stalled = False

    @abc.abstractmethod
    def send_some(self, parts: Sequence[Bytes]) -> int:
        """Send what fits of the parts and return how many bytes went, at least one; block until something fits.

        Return 0 instead when nothing fits but there is something to receive: the peer may be waiting for that.
        Raises: ConnectionLost, TransportTimeout.
        """

    @abc.abstractmethod
    def receive_into(self, buffer: memoryview) -> int:
        """Receive at least one byte, blocking, and return how many came; 0 at the end of the stream.

        Raises: ConnectionLost, TransportTimeout.
        """

    @abc.abstractmethod
    def alive(self) -> bool:
        """Say, without blocking, whether an idle channel still looks usable."""

    @abc.abstractmethod
    def run(self, argv: Sequence[str], *, stdin: bool = False, forward_agent: bool = False) -> RemoteProgram:
        """Start a program on the machine, over the same connection; its standard input is empty without `stdin`.

        The words reach the program as they are, by a `command_line`. `forward_agent` lets it use our SSH agent's keys
        while it runs, perhaps over a connection of its own. Raises: RemoteFailure when it is refused.
        """

    @abc.abstractmethod
    def abort(self) -> None:
        """Break the stream at once; a blocked thread wakes with an error. From any thread; idempotent."""

    @abc.abstractmethod
    def close(self) -> None:
        """End the stream and free its resources. Idempotent."""

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Let the watchdog see that a byte is waited for inside."""
        self.blocked_since = time.monotonic()
        try:
            yield
        finally:
            self.blocked_since = None

    def start_error(self, cause: TransportError) -> DataManagerError:
        """Say why the stream ended before the server's first word: the machine's error, or the signer's."""
        return MachineUnavailable(f"the SFTP server did not start: {cause.detail}")

    def check_stall(self, now: float) -> None:
        """Abort when no byte moved for `patience` seconds although one is waited for (the watchdog's call)."""
        since = self.blocked_since
        if since is not None and now - since > self.patience and not self.stalled:
            self.stalled = True
            self.abort()

    def lost(self, reason: str) -> TransportError:
        """Return the error that tells why the stream broke: it was aborted for a stall, or it was lost."""
        if self.stalled:
            return TransportTimeout(f"no data for {self.patience:g} seconds")
        return ConnectionLost(reason)
