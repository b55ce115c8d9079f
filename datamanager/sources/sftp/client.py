"""sftp: a file on an SSH server that is no configured machine.

`sftp://host/path` is absolute, `sftp://host/~/path` is below the login's directory. Regular files only; their size and
modification time are the version. (draft-ietf-secsh-filexfer-02)
"""

from __future__ import annotations

import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import paramiko
from paramiko import sftp

from datamanager.errors import (
    ConnectionLost,
    DownloadFailed,
    InternalError,
    PathMissing,
    PermissionDenied,
    SizeMismatch,
    SourceChanged,
    SourceMissing,
    TooLarge,
    TransportError,
)
from datamanager.sources.network.blocks import MinimumRate, gathered
from datamanager.sources.network.connections import connect_guarded, time_limit
from datamanager.sources.network.source_context import SourceContext
from datamanager.sources.sftp.ssh_login import Login, TrustedKeys, logged_in, parse_private_key, ssh_errors
from datamanager.sources.source_port import Source
from datamanager.sources.terms.source_options import SftpOptions, option_error, plain_text, refuse_expect_type
from datamanager.sources.terms.urls import FileUrl, parse_file_url
from datamanager.transports.channel import Channel, RemoteProgram
from datamanager.transports.sftp.errors import expect
from datamanager.transports.sftp.files import SftpReader
from datamanager.transports.sftp.wire import NO_ATTRIBUTES, Wire, string, u32
from datamanager.transports.values import Bytes

PORTS = {"sftp": 22}
_RECEIVE = 2**18

_SIZE, _OWNER, _PERMISSIONS, _TIMES = 0x1, 0x2, 0x4, 0x8


@dataclass(frozen=True, slots=True)
class SftpTerms:
    """A file of an SFTP server, with its options, parsed."""

    url: FileUrl
    login: Login
    host_key: str | None = None
    """The only host key to accept, as in known_hosts or as fingerprint; else the known_hosts files decide."""

    @classmethod
    def parse(cls, url: str, options: SftpOptions) -> SftpTerms:
        """Return the terms of a URL with these options.

        Raises: UrlNotAllowed, InvalidRequest (no username, keys that can't be read), NotSupported (expect_type).
        """
        parsed = parse_file_url(url, PORTS)
        refuse_expect_type(options, parsed.scheme)
        if not options.username:
            raise option_error("username", "is needed: sftp has no anonymous login")
        TrustedKeys(parsed, options.host_key, ())
        key = plain_text(options.private_key)
        login = Login(options.username, plain_text(options.password), None if key is None else parse_private_key(key))
        return cls(parsed, login, options.host_key)

    @property
    def hosts(self) -> list[tuple[str, int]]:
        """See SourceTerms.hosts."""
        return [(self.url.host, self.url.port)]

    def open(self, context: SourceContext) -> Source:
        """See SourceTerms.open."""
        return SftpSource(self, context)


@dataclass(frozen=True, slots=True)
class SftpSource:
    """What a file of an SFTP server is read by."""

    terms: SftpTerms
    context: SourceContext
    known_hosts: Sequence[Path] | None = None
    """Files to take instead of the user's and the system's."""

    @contextmanager
    def open(self, start: int = 0, stop: int | None = None, *, version: str | None = None) -> Iterator[SftpDownload]:
        """Connect, log in and open the file; see Source.open."""
        url, context = self.terms.url, self.context
        trusted = TrustedKeys(url, self.terms.host_key, self.known_hosts)
        sock, _ = connect_guarded(context.guard, url, context.connect_timeout)
        with ExitStack() as stack:
            login = logged_in(sock, url, trusted, self.terms.login, context.connect_timeout)
            transport = stack.enter_context(login)
            # only what this source does is translated, not what goes wrong where the bytes are stored
            with sftp_errors(url.shown):
                wire = _start_sftp(transport, context.connect_timeout, context.read_timeout)
                with time_limit(context.read_timeout, transport.close):
                    download = SftpDownload(wire, url, context, start, stop)
            if version is not None and version != download.version:
                raise SourceChanged(f"{url.shown} has changed since the download began")
            yield download


class SftpDownload:
    """A file that is open. Raises (when made): SourceMissing, TooLarge, DownloadFailed, what the server answers."""

    etag = content_type = None
    ranges = True

    def __init__(self, wire: Wire, url: FileUrl, context: SourceContext, start: int, stop: int | None) -> None:
        self.url, self.filename = url.shown, url.filename
        self._wire = wire
        self._context = context
        path = url.path.removeprefix(b"/~/")
        self._attributes_of(sftp.CMD_STAT, string(path))  # before: to open a pipe waits for a writer
        opened = expect(
            wire.call(sftp.CMD_OPEN, string(path), u32(sftp.SFTP_FLAG_READ), NO_ATTRIBUTES), sftp.CMD_HANDLE, self.url
        )
        self._file = SftpReader(wire, opened.fields().get_string(), self.url)
        self._attributes = size, mtime = self._attributes_of(sftp.CMD_FSTAT, self._file.handle)
        if size > context.max_size:
            raise TooLarge(f"{self.url} is {size} bytes, the maximum is {context.max_size}")
        self.size: int | None = size
        self.version: str | None = f"{size}-{mtime}"
        self.last_modified: str | None = format_datetime(datetime.fromtimestamp(mtime, UTC), usegmt=True)
        self.start = min(start, size)
        self._stop = size if stop is None else min(stop, size)

    def blocks(self) -> Iterator[memoryview]:
        """Yield the file's bytes, and check in the end that it has not changed; see Download.blocks."""
        return gathered(self._pieces(), self.url, self._stop - self.start, self._context.max_size)

    def _pieces(self) -> Iterator[memoryview]:
        window, received = self._context.read_timeout, 0
        rate = MinimumRate(window)  # of the file's bytes: what the protocol adds counts for nothing
        wanted = iter([(self.start, self._stop - self.start)])
        with sftp_errors(self.url, reading=True):
            pieces = self._file.ranges(lambda _: next(wanted, None))
            while True:
                began = time.monotonic()
                _, piece = next(pieces, (0, None))
                if piece is None:
                    break
                rate.add(time.monotonic() - began, len(piece))
                received += len(piece)
                yield piece
            with time_limit(window, self._wire.channel.abort):
                changed = self._attributes_of(sftp.CMD_FSTAT, self._file.handle) != self._attributes
        if changed:
            raise SourceChanged(f"{self.url} changed while it was read")
        if received != self._stop - self.start:
            raise SizeMismatch(f"{self.url} announced {self._stop - self.start} bytes and sent {received}")

    def _attributes_of(self, kind: int, what: bytes) -> tuple[int, int]:
        """Return the size and modification time of a regular file, by path or handle."""
        message = expect(self._wire.call(kind, what), sftp.CMD_ATTRS, self.url).fields()
        flags = message.get_int()
        size = message.get_int64() if flags & _SIZE else None
        if flags & _OWNER:
            message.get_int(), message.get_int()
        if not stat.S_ISREG(message.get_int() if flags & _PERMISSIONS else 0):
            raise SourceMissing(f"{self.url} is not a regular file")
        if size is None or not flags & _TIMES:
            raise DownloadFailed(f"{self.url}: the server does not send the file's size and modification time")
        message.get_int()
        return size, message.get_int()


class _PacedChannel(Channel):
    """A channel over a connection that is logged in, which its owner closes. Errors are paramiko's.

    Waiting is bounded, and the server must keep a minimum rate.
    """

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

    def run(self, *_: object, **__: object) -> RemoteProgram:
        """Refuse: nothing but SFTP is spoken with a source."""
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


def _start_sftp(transport: paramiko.Transport, connect_timeout: float, window: float) -> Wire:
    """Start the SFTP server over a connection that is logged in; timeouts are seconds.

    Raises: TransportError, and what paramiko raises.
    """
    # paramiko waits without end for the answer to a request for a subsystem
    with time_limit(2 * connect_timeout, transport.close):
        return Wire(_PacedChannel(transport, connect_timeout, window))


@contextmanager
def sftp_errors(shown: str, *, reading: bool = False) -> Iterator[None]:
    """Raise our errors for an SFTP conversation's, without the server's texts; `shown` is a `public_url`.

    `reading`: the file is open.
    """
    with ssh_errors(shown):
        try:
            yield
        except ConnectionLost as exc:
            raise ConnectionLost(f"the SSH connection to {shown} broke") from exc
        except TransportError as exc:
            if isinstance(exc, PathMissing) and not reading:
                raise SourceMissing(f"{shown}: there is no such file") from exc
            if isinstance(exc, PermissionDenied) and not reading:
                raise PermissionDenied(f"{shown}: the server denies reading it") from exc
            raise DownloadFailed(f"{shown}: the SFTP server answered with an error, or not in proper SFTP") from exc
