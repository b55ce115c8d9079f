"""A remote program on a further channel of a paramiko connection."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Sequence
from typing import Any

import paramiko
from paramiko.agent import AgentRequestHandler

from datamanager.errors import RemoteFailure, TransportError
from datamanager.transports.channel import Channel, RemoteProgram
from datamanager.transports.login_shell import command_line


class ParamikoProgram(RemoteProgram):
    """See RemoteProgram. `parent` is the session's channel, which knows how long to wait and why a connection broke.

    A forwarded agent needs a connection of the program's own (`own_agent`): the server may ask for the agent as long as
    the connection lasts. It is closed with the program.
    """

    def __init__(
        self,
        parent: Channel,
        transport: paramiko.Transport,
        argv: Sequence[str],
        *,
        stdin: bool,
        own_agent: bool,
        connect_timeout: float,
    ) -> None:
        super().__init__(parent.patience)
        self._parent = parent
        self._transport = transport
        self._agent: AgentRequestHandler | None = None
        self._owned = transport if own_agent else None
        self._input_open = stdin
        if not transport.is_active():
            raise parent.lost("the connection broke before")
        self._answers = list[paramiko.Message]()
        try:
            self._channel = transport.open_session(timeout=connect_timeout)
            self._answers = _answers_later(self._channel)
            if own_agent:
                self._agent = AgentRequestHandler(self._channel)
            self._channel.exec_command(command_line(argv))
            if not stdin:
                self._channel.shutdown_write()
        except (paramiko.SSHException, OSError, EOFError) as exc:
            self._answer()
            self._end_connection()
            if not transport.is_active():
                raise parent.lost(f"the connection broke: {exc}") from exc
            raise RemoteFailure(f"the machine refuses to run programs: {exc}") from exc

    def _receive(self, timeout: float) -> bytes | None:
        """Return what comes next; see RemoteProgram."""
        self._channel.settimeout(timeout)
        try:
            return self._channel.recv(65536)
        except TimeoutError:
            return None

    def close_input(self) -> None:
        """Let the program see the end of its input."""
        if self._input_open:
            self._input_open = False
            try:
                self._channel.shutdown_write()
            except (paramiko.SSHException, OSError, EOFError) as exc:
                raise self._ended(exc) from exc

    def exit_status(self) -> int | None:
        """Return the exit status; paramiko's -1 means that none came."""
        status = self._channel.recv_exit_status()
        return None if status < 0 else status

    def _send(self, data: memoryview, timeout: float) -> int:
        """Send what the program's window takes."""
        if not self._input_open:
            raise RemoteFailure("the program's input is closed")
        self._channel.settimeout(timeout)
        if timeout:  # below the window, for which the wait ends by itself, there is a socket, which the watchdog ends
            self._parent.blocked_since = time.monotonic() + timeout
        try:
            sent = self._channel.send(data)  # type: ignore[arg-type]  # a memoryview is as good
        except TimeoutError:
            return 0
        except (paramiko.SSHException, OSError, EOFError) as exc:
            raise self._ended(exc) from exc
        finally:
            if timeout:
                self._parent.blocked_since = None
        if not sent:
            raise self._ended()
        return sent

    def _close(self) -> None:
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):  # the peer is gone
            self._channel.close()
        self._answer()
        self._end_connection()

    def _answer(self) -> None:
        """Answer the server's close of the channel, if it came: nothing else is sent on this channel any more."""
        transport: Any = self._transport
        with contextlib.suppress(paramiko.SSHException, OSError, EOFError):
            while self._answers:
                transport._send_user_message(self._answers.pop(0))  # noqa: SLF001

    def _ended(self, cause: Exception | None = None) -> TransportError:
        """Say whether the connection went or only the program, which then has said so by its output's end or status.

        A connection that broke is not yet known as such everywhere: paramiko closes its channels before it says that
        the transport is not active.
        """
        said = self._channel.eof_received or self._channel.exit_status >= 0
        if isinstance(cause, EOFError) or not said or not self._transport.is_active():
            return self._parent.lost("the connection broke while the program ran")
        return RemoteFailure("the program ended before it read all of its input")

    def _end_connection(self) -> None:
        if self._agent is not None:
            self._agent.close()
        if self._owned is not None:
            self._owned.close()


def _answers_later(channel: Any) -> list[paramiko.Message]:
    """Keep what the connection's own thread would send when the server closes the channel in the list returned.

    Paramiko makes a message under the channel's lock but sends it afterwards. Its thread may answer a CLOSE in between,
    and OpenSSH ends the whole connection for an EOF that comes behind that (paramiko issue 1115, open in 5.1).
    """
    later = list[paramiko.Message]()
    close = channel._close_internal  # noqa: SLF001

    def close_internal() -> Sequence[paramiko.Message | None]:
        messages: Sequence[paramiko.Message | None] = close()
        if threading.current_thread() is not channel.transport:
            return messages
        later.extend(message for message in messages if message is not None)
        return ()

    channel._close_internal = close_internal  # noqa: SLF001
    return later
