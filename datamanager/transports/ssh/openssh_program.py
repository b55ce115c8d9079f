"""A remote program through the system's OpenSSH client: `ssh host 'words'`."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

from datamanager.errors import ConnectionLost, RemoteFailure, TransportError
from datamanager.machines import Machine
from datamanager.transports.channel import RemoteProgram
from datamanager.transports.ssh.openssh_client import CONNECTION_FAILED, start_ssh

_GRACE = 2.0
"""Seconds for ssh to say why it took no more input."""


class OpenSshProgram(RemoteProgram):
    """See RemoteProgram. `master` is the control socket of the connection to share.

    A forwarded agent needs a connection of its own: the one that is shared was made without, and the process that holds
    it refuses what was not asked for then.
    """

    def __init__(
        self, machine: Machine, master: Path | None, argv: Sequence[str], *, stdin: bool, forward_agent: bool
    ) -> None:
        super().__init__(machine.stall_timeout)
        self._input: int | None = None
        theirs = subprocess.DEVNULL
        self._output, output = os.pipe2(os.O_CLOEXEC)
        try:
            if stdin:
                theirs, self._input = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(self._input, False)
            options, connection = (["-A"], None) if forward_agent else ([], master)
            words = [shlex.join(argv)]
            self._process = start_ssh(
                machine, connection, options, words, stdin=theirs, stdout=output, stderr=subprocess.DEVNULL
            )
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

    def read(self, timeout: float) -> bytes | None:
        """Return the next output, `b""` at the end, None after `timeout` seconds without."""
        if not self._readable.poll(timeout * 1000):
            return None
        return os.read(self._output, 65536)

    def close_input(self) -> None:
        """Let the program see the end of its input."""
        if self._input is not None:
            os.close(self._input)
            self._input = None

    def exit_status(self) -> int | None:
        """Return the exit status; ssh's own failure is None."""
        status = self._process.wait()
        return None if status == CONNECTION_FAILED or status < 0 else status

    def _send(self, data: memoryview, timeout: float) -> int:
        """Write what ssh takes; a pipe is writable long before its buffer is empty, so a wait is a rare thing."""
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
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        if self._process.returncode == CONNECTION_FAILED:
            return ConnectionLost("the connection broke while the program ran")
        return RemoteFailure("the program ended before it read all of its input")
