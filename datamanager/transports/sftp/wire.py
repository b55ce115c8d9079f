"""SFTP version 3 on the wire: numbered requests, many in flight, replies in whatever order they come.

Source: draft-ietf-secsh-filexfer-02; the extensions are OpenSSH's (its file PROTOCOL, section 4). Paramiko's client
sends one request and waits, or hands replies to callbacks that can lose a status; here whoever posts a request takes
its reply.
"""

from __future__ import annotations

import math
import re
import stat
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from paramiko import sftp
from paramiko.message import Message

from datamanager.errors import ConnectionLost, LoginOutput, RemoteFailure, TransportError
from datamanager.transports.channel import LONG_PATH, Channel
from datamanager.transports.login_shell import printed_text
from datamanager.transports.values import Bytes, FileKind, FileStat, clamped_mtime, from_wire, to_wire

_VERSION = 3
_ENDED_LINE = re.compile(rb"[^\s\0][^\n\0]*[\n\0]")
_HEADER = struct.Struct(">IBI")  # length of what follows, kind, number
_MAX_PACKET = 1 << 20
"""No server sends more; a greater length is not SFTP but text that a login script printed."""
_SMALL = 16 * 1024
"""Bytes of the receive buffer: many statuses fit, while the bulk of a DATA packet goes straight to its own memory."""

_JOINED = 16 * 1024
"""Bytes of small requests that are sent together."""

_SPARE = 4
"""Blocks of memory that are kept for the next ones to be read."""

DEFAULT_BLOCK = 32 * 1024
"""What every server takes in one READ or WRITE."""
LARGEST_BLOCK = 255 * 1024
"""What OpenSSH takes; also our own bound, whatever a server offers."""
_READS_SHORT, _READS_LONG = 32, 64
"""Reads in flight over a short path, where more are slower (measured), and over a long one."""
_LOOKS = 3
"""How many calls a path that seems long is measured by: the first one may have waited for a busy machine."""


def u32(value: int) -> bytes:
    """Encode an unsigned 32-bit integer."""
    return struct.pack(">I", value)


def u64(value: int) -> bytes:
    """Encode an unsigned 64-bit integer."""
    return struct.pack(">Q", value)


def string(value: bytes | str) -> bytes:
    """Encode a string; text is a path or a name."""
    raw = to_wire(value) if isinstance(value, str) else value
    return struct.pack(">I", len(raw)) + raw


@dataclass(frozen=True, slots=True)
class Reply:
    """A server's answer: its kind (CMD_STATUS, CMD_HANDLE, …) and what follows the request's number."""

    kind: int
    body: memoryview

    def fields(self) -> Message:
        """Return the body for reading field by field."""
        return Message(self.body)

    @property
    def code(self) -> int | None:
        """The code of a status, None for any other reply; most are looked at no further."""
        return int.from_bytes(self.body[:4], "big") if self.kind == sftp.CMD_STATUS else None


class Wire:
    """One SFTP conversation. Used by one thread at a time.

    After an error of the stream, or an interruption in the middle of a packet, it is `broken` for good.
    """

    def __init__(self, channel: Channel) -> None:
        """Open the conversation. Raises: LoginOutput; the channel's reason when the server does not answer."""
        self.channel = channel
        self.broken = False
        self.round_trip = math.inf
        """Seconds of the shortest call so far, which is at least the path's round trip."""
        self._next = 0
        self._joins = False
        self._joined = bytearray()
        self._waiting: set[int] = set()
        self._unwanted: set[int] = set()
        self._arrived: dict[int, Reply] = {}
        self._spare: list[bytearray] = []
        self.read_block = self.write_block = DEFAULT_BLOCK
        self._buffer = memoryview(bytearray(_SMALL))
        self._start = self._end = 0
        try:
            self.extensions = self._greet()
        except LoginOutput:
            raise
        except TransportError as exc:
            raise channel.start_error(exc) from exc
        self.open_handles = 0
        """How many files the server allows to be open at once; 0: it does not say."""
        self._ask_limits()
        for _ in range(_LOOKS):
            if self.round_trip >= LONG_PATH:
                self.call(sftp.CMD_REALPATH, string("/"))

    @property
    def reads_in_flight(self) -> int:
        """How many reads to have in flight on this path."""
        return _READS_SHORT if self.round_trip < LONG_PATH else _READS_LONG

    def post(self, kind: int, head: bytes, data: Bytes = b"") -> int:
        """Send a request and return its number, which must later be taken or forgotten.

        `data` is sent after `head` without being copied; it may be reused when this returns.
        """
        number = self._next
        self._next = (number + 1) & 0xFFFFFFFF
        self._waiting.add(number)
        header = _HEADER.pack(5 + len(head) + len(data), kind, number)
        if not self._joins:
            self._send(header + head, data)
        elif len(data) > _JOINED:
            self._flush()
            self._send(header + head, data)
        else:
            self._joined += header + head + data
            if len(self._joined) > _JOINED:
                self._flush()
        return number

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Send small requests together inside: a system call for many. They leave when enough have gathered, when a
        reply is waited for, and in the end.
        """
        self._joins = True
        try:
            yield
        finally:
            self._joins = False
            if not self.broken:
                self._flush()

    def take(self, number: int) -> Reply:
        """Return the reply to a request, waiting for it."""
        if number not in self._arrived:
            self._flush()
        while number not in self._arrived:
            self._receive()
        return self._arrived.pop(number)

    def call(self, kind: int, *fields: bytes) -> Reply:
        """Send a request and return its reply."""
        began = time.monotonic()
        reply = self.take(self.post(kind, b"".join(fields)))
        self.round_trip = min(self.round_trip, time.monotonic() - began)
        return reply

    def extended(self, name: str, *fields: bytes) -> Reply:
        """Send a request of an extension that the server advertised, and return its reply."""
        return self.call(sftp.CMD_EXTENDED, string(name), *fields)

    def forget(self, numbers: Iterable[int]) -> None:
        """Let the replies to these requests be dropped when they come; nothing waits for them any more."""
        for number in numbers:
            if self._arrived.pop(number, None) is None:
                self._unwanted.add(number)

    def give_back(self, reply: Reply) -> None:
        """Let a later reply have this one's memory: nobody reads it any more. A new block for each costs a tenth of a
        fast path."""
        buffer = reply.body.obj
        if isinstance(buffer, bytearray) and len(buffer) == self.read_block + 4 and len(self._spare) < _SPARE:
            self._spare.append(buffer)

    def _greet(self) -> dict[str, bytes]:
        # INIT and VERSION have the version where all other packets have a number
        try:
            self._send(_HEADER.pack(5, sftp.CMD_INIT, _VERSION), b"")
        except TransportError:
            self.broken = False
            self._packet()  # what the machine printed before its end says more than that sending failed
            raise
        kind, version, body = self._packet()
        if kind != sftp.CMD_VERSION or version < _VERSION:
            self.broken = True
            raise RemoteFailure(f"the server does not speak SFTP version {_VERSION}")
        message, extensions = Message(body), dict[str, bytes]()
        while name := message.get_string():
            extensions[from_wire(name)] = message.get_string()
        return extensions

    def _ask_limits(self) -> None:
        if "limits@openssh.com" not in self.extensions:
            return
        reply = self.extended("limits@openssh.com")
        if reply.kind != sftp.CMD_EXTENDED_REPLY:
            return
        message = reply.fields()
        message.get_int64()  # the largest packet; the two that follow are smaller
        read, write, self.open_handles = (message.get_int64() for _ in range(3))
        # 0: the server names no limit, so what every server takes is used, as OpenSSH's client does
        self.read_block, self.write_block = (
            min(read or DEFAULT_BLOCK, LARGEST_BLOCK),
            min(write or DEFAULT_BLOCK, LARGEST_BLOCK),
        )

    def _flush(self) -> None:
        if self._joined:
            gathered, self._joined = self._joined, bytearray()
            self._send(gathered, b"")

    def _send(self, head: Bytes, data: Bytes) -> None:
        if self.broken:
            raise ConnectionLost("the connection broke before")
        parts = [memoryview(head), memoryview(data)] if len(data) else [memoryview(head)]
        try:
            while parts:
                sent = self.channel.send_some(parts)
                if not sent:  # the server waits until we take its replies: both directions are full
                    self._receive()
                while parts and sent >= len(parts[0]):
                    sent -= len(parts.pop(0))
                if sent:
                    parts[0] = parts[0][sent:]
        except BaseException:
            self.broken = True  # part of a packet may be on its way
            raise

    def _receive(self) -> None:
        """Receive one reply and keep it for its taker."""
        kind, number, body = self._packet()
        if number in self._unwanted:
            self._unwanted.remove(number)
        elif number in self._waiting:
            self._arrived[number] = Reply(kind, body)
        else:
            self.broken = True
            raise ConnectionLost(f"the server answered request {number}, which was not sent")
        self._waiting.discard(number)

    def _packet(self) -> tuple[int, int, memoryview]:
        if self.broken:
            raise ConnectionLost("the connection broke before")
        try:
            length, kind, number = _HEADER.unpack(head := self._read(_HEADER.size))
            if not 5 <= length <= _MAX_PACKET:
                raise LoginOutput(f"SFTP was expected, {printed_text(self._line(bytes(head)))}")
            return kind, number, self._read(length - 5)
        except BaseException:
            self.broken = True  # part of a packet may be lost
            raise

    def _line(self, text: bytes) -> bytes:
        """Return what came instead of a packet, up to the end of its first line that is not blank, as far as it comes.

        A packet that follows ends it as well: each begins with a zero byte.
        """
        text += self._buffer[self._start : self._end]
        with suppress(TransportError):
            while len(text) < _SMALL and not _ENDED_LINE.search(text):
                text += self._buffer[: self._more(self._buffer)]
        return text

    def _read(self, count: int) -> memoryview:
        out = self._memory(count)
        done = 0
        while done < count:
            if self._start == self._end:
                if count - done >= _SMALL:
                    done += self._more(out[done:])
                    continue
                self._start, self._end = 0, self._more(self._buffer)
            step = min(count - done, self._end - self._start)
            out[done : done + step] = self._buffer[self._start : self._start + step]
            self._start += step
            done += step
        return out

    def _memory(self, count: int) -> memoryview:
        most = self.read_block + 4  # a block of data and its length
        if not _SMALL <= count <= most:
            return memoryview(bytearray(count))
        return memoryview(self._spare.pop() if self._spare else bytearray(most))[:count]

    def _more(self, buffer: memoryview) -> int:
        count = self.channel.receive_into(buffer)
        if not count:
            raise self.channel.lost("the SFTP server closed the connection")
        return count


# --- attributes of files (section 5) ---

_SIZE, _OWNER, _PERMISSIONS, _TIMES, _EXTENDED = 0x1, 0x2, 0x4, 0x8, 0x80000000

NO_ATTRIBUTES = u32(0)

SIZE_MAX = 2**63 - 1
"""Bytes: POSIX's off_t, and what a database's integers hold."""


def pack_attributes(*, mode: int, mtime: int | None = None) -> bytes:
    """Encode permission bits (setuid, setgid and sticky never) and, when given, the time of access and modification:
    the nearest one that fits, where it does not."""
    if mtime is None:
        return u32(_PERMISSIONS) + u32(mode & 0o777)
    return u32(_PERMISSIONS | _TIMES) + u32(mode & 0o777) + u32(clamped_mtime(mtime)) * 2


def pack_mtime(mtime: int) -> bytes:
    """Encode the time of access and modification alone."""
    return u32(_TIMES) + pack_attributes(mode=0, mtime=mtime)[8:]


def unpack_stat(message: Message) -> FileStat:
    """Decode attributes; what the server leaves out is 0, a file without a type is OTHER. A size that no file has (it
    is -1 on the wire, or nonsense) is the largest one that a file may have."""
    flags = message.get_int()
    size = min(message.get_int64(), SIZE_MAX) if flags & _SIZE else 0
    if flags & _OWNER:
        message.get_int(), message.get_int()
    mode = message.get_int() if flags & _PERMISSIONS else 0
    mtime = 0
    if flags & _TIMES:
        _, mtime = message.get_int(), message.get_int()
    if flags & _EXTENDED:
        for _ in range(message.get_int()):
            message.get_string(), message.get_string()
    return FileStat(FileKind.of(mode), size, mtime, stat.S_IMODE(mode))


def unpack_facts(message: Message) -> tuple[int | None, ...]:
    """Decode attributes that tell files apart: size, owner, group, mode, mtime; None for what the server leaves out."""
    flags = message.get_int()
    size = message.get_int64() if flags & _SIZE else None
    owner, group = (message.get_int(), message.get_int()) if flags & _OWNER else (None, None)
    mode = message.get_int() if flags & _PERMISSIONS else None
    _, mtime = (message.get_int(), message.get_int()) if flags & _TIMES else (None, None)
    return size, owner, group, mode, mtime


def unpack_space(message: Message) -> int | None:
    """Decode a reply of OpenSSH's statvfs: the bytes that this login may still write; None where the file system has no
    blocks at all, as servers answer that don't know."""
    _, fragment, blocks, _, available = (message.get_int64() for _ in range(5))
    return min(available * fragment, SIZE_MAX) if blocks and fragment else None
