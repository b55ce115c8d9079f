"""Paramiko's SFTP client with pipelined reads: many requests on their way, replies taken in the order of the file.

Paramiko's own prefetch asks from a thread of its own, whose errors nobody hears.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import paramiko
from paramiko.message import Message
from paramiko.sftp import CMD_DATA, CMD_READ, CMD_STATUS, SFTP_EOF, SFTPError, int64

from datamanager.sources.network.blocks import Pace
from datamanager.sources.network.file_servers import bounded

READ = 2**15
"""Bytes asked for at once: what every server gives."""
AHEAD = 128
"""Reads on their way: 4 MiB, which fill 200 MB/s at 20 ms of round trip."""
MAX_PACKET = 2**18
"""Largest packet taken from a server, in bytes; OpenSSH sends no larger ones."""
_TAKE = 2**18


class PacedChannel:
    """What paramiko's client needs of a channel; waiting is bounded, and so is what one packet may hold."""

    def __init__(self, channel: paramiko.Channel, window: float) -> None:
        channel.settimeout(window)
        self._channel = channel
        self._pace = Pace(window)
        self._buffer = bytearray()

    def get_name(self) -> str:
        """Return the name that log lines have."""
        return self._channel.get_name()

    def send(self, data: bytes) -> int:
        """Send what the server's window takes."""
        with _told_apart():
            return self._channel.send(data)

    def recv(self, size: int) -> bytes:
        """Return at most `size` bytes, b"" at the end. Raises: TimeoutError, also at less than the minimum rate."""
        if size > MAX_PACKET:
            raise SFTPError(f"a packet of more than {MAX_PACKET} bytes")
        if not self._buffer:
            began = time.monotonic()
            with _told_apart():
                self._buffer += self._channel.recv(_TAKE)
            self._pace.took(time.monotonic() - began, len(self._buffer))
        with memoryview(self._buffer) as view:
            data = bytes(view[:size])
        del self._buffer[:size]
        return data

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


@contextlib.contextmanager
def _told_apart() -> Iterator[None]:
    """Make a plain OSError a ConnectionError: as such paramiko raises what the server says of a file."""
    try:
        yield
    except OSError as exc:
        if type(exc) is not OSError:
            raise
        raise ConnectionError("the connection broke") from exc


@dataclass(slots=True, weakref_slot=True)
class _Read:
    """A read on its way, as paramiko's client knows what to tell of its reply."""

    offset: int
    length: int
    arrived: Callable[[int], None]
    """Is told how many bytes came."""
    data: bytes | None = None
    ended: bool = False
    failed: Exception | None = None

    def _async_response(self, kind: int, message: Message, _number: int) -> None:
        if kind == CMD_DATA:
            self.data = message.get_string()
            self.arrived(len(self.data))
        elif kind == CMD_STATUS and message.get_int() == SFTP_EOF:
            self.ended = True
        else:
            self.failed = SFTPError("the server answered a read with an error")


class ReadingClient(paramiko.SFTPClient):
    """An SFTP client whose `stream` keeps many reads on their way. Used by one thread."""

    _new = 0
    """Bytes of the file that came since the pace was last told."""

    def stream(self, file: paramiko.SFTPFile, start: int, stop: int, window: float) -> Iterator[bytes]:
        """Yield the file's bytes from `start` to `stop`, in order; fewer when the file ends before.

        Raises: SFTPError; TimeoutError at less than the minimum rate over `window` seconds; what paramiko raises.
        """
        handle: Any = file.handle  # bytes; the stubs think of a server's
        waiting: deque[_Read] = deque()
        pace = Pace(window)  # of the file's bytes: what is around them counts for nothing
        asked = start
        while asked < stop or waiting:
            while asked < stop and len(waiting) < AHEAD:
                waiting.append(self._post(handle, asked, min(READ, stop - asked)))
                asked += waiting[-1].length
            read = waiting.popleft()
            data = self._wait(read, pace)
            if read.ended:
                return
            yield data
            while len(data) < read.length:  # a short read is allowed; the rest goes before what was asked after it
                read = self._post(handle, read.offset + len(data), read.length - len(data))
                data = self._wait(read, pace)
                if read.ended:
                    return
                yield data

    def _note(self, count: int) -> None:
        self._new += count

    def _post(self, handle: Any, offset: int, length: int) -> _Read:
        read = _Read(offset, length, self._note)
        client: Any = self  # the stubs know paramiko's public names only
        client._async_request(read, CMD_READ, handle, int64(offset), length)  # noqa: SLF001
        return read

    def _wait(self, read: _Read, pace: Pace) -> bytes:
        client: Any = self
        while read.data is None and not read.ended and read.failed is None:
            began = time.monotonic()
            client._read_response()  # noqa: SLF001
            pace.took(time.monotonic() - began, self._new)
            self._new = 0
        if read.failed is not None:
            raise read.failed
        data = read.data or b""
        if not read.ended and not 0 < len(data) <= read.length:
            raise SFTPError("the server answered a read with another length")
        return data


@contextlib.contextmanager
def reading(transport: paramiko.Transport, connect_timeout: float, window: float) -> Iterator[ReadingClient]:
    """Start the SFTP server over a connection that is logged in; timeouts are seconds. Raises: what paramiko raises."""
    # paramiko waits without end for the answer to a request for a subsystem
    with bounded(2 * connect_timeout, transport.close):
        channel = transport.open_session(timeout=connect_timeout)
        channel.invoke_subsystem("sftp")
        paced: Any = PacedChannel(channel, window)
        client = ReadingClient(paced)
    try:
        yield client
    finally:
        with contextlib.suppress(EOFError, OSError, paramiko.SSHException):  # the connection may be gone already
            channel.close()
