"""A remote program through the system's OpenSSH client: `ssh host 'words'`."""

from __future__ import annotations

import contextlib
import os
import select
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from datamanager.errors import ConnectionLost, RemoteFailure, TransportError, TransportTimeout
from datamanager.machines import Machine
from datamanager.transports.ssh.openssh_client import CONNECTION_FAILED, start_ssh
from datamanager.transports.values import Bytes

_GRACE = 2.0
"""Seconds for ssh to say why it took no more input."""


class OpenSshProgram:
    """See RemoteProgram. `master` is the control socket of the connection to share.

    A forwarded agent needs a connection of its own: the one that is shared was made without, and the process that holds
    it refuses what was not asked for then.
    """

    def __init__(
        self, machine: Machine, master: Path | None, argv: Sequence[str], *, stdin: bool, forward_agent: bool
    ) -> None:
        self._patience = machine.stall_timeout
        self._input: int | None = None
        theirs = subprocess.DEVNULL
        self._output, output = os.pipe2(os.O_CLOEXEC)
        try:
            if stdin:
                theirs, self._input = os.pipe2(os.O_CLOEXEC)
                os.set_blocking(self._input, False)
            options, connection = (["-A"], None) if forward_agent else ([], master)
            self._process = start_ssh(
                machine,
                connection,
                options,
                [shlex.join(argv)],
                stdin=theirs,
                stdout=output,
                stderr=subprocess.DEVNULL,
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

    def write(self, data: Bytes) -> None:
        """Write all of `data` to its standard input."""
        rest = memoryview(data).cast("B")
        while rest:
            sent = self.write_some(rest)
            if not sent and not self._writable.poll(self._patience * 1000):
                raise TransportTimeout(f"the program took no byte of its input for {self._patience:g} seconds")
            rest = rest[sent:]

    def write_some(self, data: Bytes) -> int:
        """Write what is taken at once, maybe nothing."""
        if self._input is None:
            raise RemoteFailure("the program's input is closed")
        try:
            return os.write(self._input, data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise self._ended() from exc

    def close_input(self) -> None:
        """Let the program see the end of its input."""
        if self._input is not None:
            os.close(self._input)
            self._input = None

    def exit_status(self) -> int | None:
        """Return the exit status; ssh's own failure is None."""
        status = self._process.wait()
        return None if status == CONNECTION_FAILED or status < 0 else status

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close_input()
        self._process.kill()
        self._process.wait()
        os.close(self._output)

    def _ended(self) -> TransportError:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)
        if self._process.returncode == CONNECTION_FAILED:
            return ConnectionLost("the connection broke under the program")
        return RemoteFailure("the program ended before it took all of its input")
