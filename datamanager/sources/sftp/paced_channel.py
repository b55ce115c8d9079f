"""The byte stream to an SFTP server that is no configured machine: waiting is bounded, and a minimum rate kept."""

from __future__ import annotations

import time
from collections.abc import Sequence

import paramiko

from datamanager.errors import InternalError, TransportError
from datamanager.sources.network.blocks import MinimumRate
from datamanager.sources.network.connect import time_limit
from datamanager.transports.channel import Channel, RemoteProgram
from datamanager.transports.sftp.wire import Wire
from datamanager.transports.values import Bytes

_RECEIVE = 2**18


class PacedChannel(Channel):
    """A channel over a connection that is logged in, which its owner closes. Errors are paramiko's."""

    def __init__(self, transport: paramiko.Transport, connect_timeout: float, window: float) -> None:
        super().__init__(window)
        self._rate = MinimumRate(window)
        self._buffer = bytearray()
        self._transport = transport
        self._channel = transport.open_session(timeout=connect_timeout)
        self._channel.invoke_subsystem("sftp")
        self._channel.settimeout(window)

    def send_some(self, parts: Sequence[Bytes]) -> int:
        """Send what the server's window takes. Raises: TimeoutError, and what paramiko raises."""
        sent = self._channel.send(parts[0])  # type: ignore[arg-type]  # a memoryview is as good
        if not sent:
            raise self.lost("the server closed the connection")
        return sent

    def receive_into(self, buffer: memoryview) -> int:
        """Receive at least one byte; 0 at the end. Raises: TimeoutError, also at less than the minimum rate."""
        if not self._buffer:
            began = time.monotonic()
            self._buffer += self._channel.recv(_RECEIVE)
            self._rate.add(time.monotonic() - began, len(self._buffer))
        count = min(len(buffer), len(self._buffer))
        buffer[:count] = self._buffer[:count]
        del self._buffer[:count]
        return count

    def alive(self) -> bool:
        """Say whether the connection is open."""
        return self._transport.is_active()

    def run(self, argv: Sequence[str], *, stdin: bool = False, forward_agent: bool = False) -> RemoteProgram:
        """Refuse: nothing but SFTP is spoken with a source."""
        del argv, stdin, forward_agent
        raise InternalError("no program is run on the server of a download")

    def abort(self) -> None:
        """Break the connection."""
        self._transport.close()

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def start_error(self, cause: TransportError) -> TransportError:
        """Return the cause: whoever opens the source says which server it is."""
        return cause


def start_sftp(transport: paramiko.Transport, connect_timeout: float, window: float) -> Wire:
    """Start the SFTP server over a connection that is logged in; timeouts are seconds.

    Raises: TransportError, and what paramiko raises.
    """
    # paramiko waits without end for the answer to a request for a subsystem
    with time_limit(2 * connect_timeout, transport.close):
        return Wire(PacedChannel(transport, connect_timeout, window))
