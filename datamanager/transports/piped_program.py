"""A program behind two pipes: a process of this host, be it ssh, which has the machine's program behind it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import subprocess
from typing import Protocol

from datamanager.errors import RemoteFailure, TransportError
from datamanager.transports.channel import RemoteProgram

_GRACE = 2.0
"""Seconds for a process to end after it took no more input."""
_PIPE = 1 << 20
"""Bytes of a program's output that may wait for us: it then writes often before we wake up."""


class Start(Protocol):
    """Starts the process with these descriptors. Raises: MachineUnavailable, RemoteFailure."""

    def __call__(self, *, stdin: int, stdout: int) -> subprocess.Popen[bytes]:
        """Return the process."""


class PipedProgram(RemoteProgram):
    """See RemoteProgram. `start` starts it; without `stdin` its input is empty."""

    def __init__(self, patience: float, start: Start, *, stdin: bool) -> None:
        super().__init__(patience)
        self._input: int | None = None
        theirs = subprocess.DEVNULL
        self._output, output = os.pipe2(os.O_CLOEXEC)
        with contextlib.suppress(OSError):  # one user may have so many pipes of this size; any will do
            fcntl.fcntl(output, fcntl.F_SETPIPE_SZ, _PIPE)
        try:
            if stdin:
                theirs, self._input = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(self._input, False)
            self._process = start(stdin=theirs, stdout=output)
        except BaseException:
            os.close(self._output)
            self.close_input()
            raise
        finally:
            os.close(output)
            if theirs != subprocess.DEVNULL:
                os.close(theirs)
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(self._output, select.POLLIN)
        if self._input is not None:
            self._writable.register(self._input, select.POLLOUT)

    def read_into(self, buffer: memoryview, timeout: float) -> int | None:
        """Receive the next piece of its output, what login scripts printed before it taken away, without a copy."""
        if self._before is not None:
            return super().read_into(buffer, timeout)
        if not self._readable.poll(timeout * 1000):
            return None
        return os.readv(self._output, [buffer])

    def _receive(self, timeout: float) -> bytes | None:
        """Return what comes next; see RemoteProgram."""
        if not self._readable.poll(timeout * 1000):
            return None
        return os.read(self._output, 65536)

    def close_input(self) -> None:
        """Let the program see the end of its input."""
        if self._input is not None:
            os.close(self._input)
            self._input = None

    def exit_status(self) -> int | None:
        """Return the exit status; None if the process was killed."""
        status = self._process.wait()
        return None if status < 0 else status

    def _send(self, data: memoryview, timeout: float) -> int:
        """Write what is taken; a pipe is writable long before its buffer is empty, so a wait is a rare thing."""
        if self._input is None:
            raise RemoteFailure("the program's input is closed")
        try:
            while True:
                with contextlib.suppress(BlockingIOError):
                    return os.write(self._input, data)
                if not timeout or not self._writable.poll(timeout * 1000):
                    return 0
        except OSError as exc:
            raise self._ended() from exc

    def _close(self) -> None:
        self.close_input()
        self._process.kill()
        self._process.wait()
        os.close(self._output)

    def _ended(self) -> TransportError:
        """Return why it takes no more input."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        return RemoteFailure("the program ended before it read all of its input")
