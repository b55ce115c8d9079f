"""ftp and ftps: one RETR in binary mode over a passive data connection.

The path is below the login's directory; `ftp://host/%2Fetc/motd` is absolute (RFC 1738, 3.2.2). Size and modification
time are the version, where the server tells both.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import format_datetime
from pathlib import Path

from datamanager.errors import ConnectionLost, InvalidRequest, SizeMismatch, SourceChanged, TooLarge
from datamanager.sources.ftp.ftp_control import FtpControl, ftp_errors
from datamanager.sources.network.blocks import Pace, gathered
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.network.file_servers import FileUrl, bounded, connect, parse_file_url, refuse_expect_type
from datamanager.sources.network.tls import Trust
from datamanager.sources.terms.options import FtpOptions, HttpOptions

PORTS = {"ftp": 21, "ftps": 990}
_TAKE = 2**18


@dataclass(frozen=True, slots=True)
class FtpSource:
    """A file of an FTP server. Timeouts are seconds, `max_size` is bytes."""

    url: str
    guard: EgressGuard
    max_size: int
    tls: str | None = None
    """None, "explicit" or "implicit"."""
    username: str | None = None
    """None: anonymous."""
    password: str | None = field(default=None, repr=False)
    trust: Trust = field(default_factory=Trust, repr=False)
    ca_file: Path | None = None
    connect_timeout: float = 10.0
    read_timeout: float = 60.0

    @classmethod
    def of(
        cls,
        url: str,
        options: FtpOptions,
        *,
        guard: EgressGuard,
        max_size: int,
        connect_timeout: float,
        read_timeout: float,
        ca_file: Path | None,
    ) -> FtpSource:
        """Return the source for a URL with these options.

        Raises: UrlNotAllowed, InvalidRequest (a password without username, TLS terms that do not fit), NotSupported.
        """
        parsed = parse_file_url(url, PORTS)
        refuse_expect_type(options, parsed)
        if options.password is not None and options.username is None:
            raise InvalidRequest("options.password: needs username", {"options.password": "needs username"})
        tls: str | None = options.tls
        if parsed.scheme == "ftps" and tls is None:
            tls = "explicit" if parsed.port == PORTS["ftp"] else "implicit"
        trust = Trust.of(HttpOptions(ca=options.ca, verify_tls=options.verify_tls))
        password = None if options.password is None else options.password.get_secret_value()
        return cls(url, guard, max_size, tls, options.username, password, trust, ca_file, connect_timeout, read_timeout)

    def check(self) -> None:
        """Refuse a URL that is malformed, or a host where downloads may not go. Raises: UrlNotAllowed."""
        url = parse_file_url(self.url, PORTS)
        self.guard.check(url.host, url.port)

    @contextmanager
    def open(self, start: int = 0, stop: int | None = None, *, version: str | None = None) -> Iterator[FtpDownload]:
        """Connect, log in and begin the transfer; see Source.open."""
        url = parse_file_url(self.url, PORTS)
        with ExitStack() as stack:
            with ftp_errors(url.shown):
                context = self.trust.context(self.ca_file)
            sock, address = connect(self.guard, url, self.connect_timeout)
            control = stack.enter_context(
                closing(FtpControl(sock, url.host, address, self.guard, context, self.tls, self.read_timeout))
            )
            with (
                ftp_errors(url.shown, login=True),
                bounded(self.connect_timeout + self.read_timeout, control.break_off),
            ):
                control.begin(self.username, self.password)
            with ftp_errors(url.shown), bounded(self.read_timeout, control.break_off):
                found = _Found.at(control, url)
                if found.size is not None and found.size > self.max_size:
                    raise TooLarge(f"{url.shown} is {found.size} bytes, allowed are {self.max_size}")
                if version is not None and version != found.version:
                    raise SourceChanged(f"{url.shown} is not what it was when the download began")
                begin = start if found.size is None else min(start, found.size)
                begin = begin if begin and control.can_begin_at(begin) else 0
                data = stack.enter_context(control.retrieve(found.path, begin, size_known=found.size is not None))
                data.settimeout(self.read_timeout)
            yield FtpDownload(self, url, control, data, found, begin, stop)


@dataclass(frozen=True, slots=True)
class _Found:
    """What the server tells of a file."""

    path: str
    size: int | None
    modified: datetime | None

    @classmethod
    def at(cls, control: FtpControl, url: FileUrl) -> _Found:
        path = url.path[1:].decode("latin-1")  # the very bytes, see FtpControl
        return cls(path, control.size_of(path), control.modified(path))

    @property
    def version(self) -> str | None:
        if self.size is None or self.modified is None:
            return None
        return f"{self.size}-{int(self.modified.timestamp())}"


class FtpDownload:
    """A transfer that has begun."""

    etag = content_type = None
    ranges = False
    """Servers of this kind count connections, and few are allowed to one client."""

    def __init__(
        self,
        source: FtpSource,
        url: FileUrl,
        control: FtpControl,
        data: socket.socket,
        found: _Found,
        start: int,
        stop: int | None,
    ) -> None:
        self.url = url.shown
        self.filename = url.path.rpartition(b"/")[2].decode("utf-8", "replace")
        self.size = found.size
        self.version = found.version
        self.last_modified = None if found.modified is None else format_datetime(found.modified, usegmt=True)
        self.start = start
        self._stop = stop if stop is None or found.size is None else min(stop, found.size)
        self._source, self._from, self._control, self._data, self._found = source, url, control, data, found

    def blocks(self) -> Iterator[memoryview]:
        """Yield the bytes; the server has to say in the end that they were all; see Download.blocks."""
        most = self._source.max_size - self.start
        yield from gathered(self._pieces(), self.url, most, self._source.max_size)

    def _pieces(self) -> Iterator[bytes | memoryview]:
        pace = Pace(self._source.read_timeout)
        received = self.start
        while piece := self._receive(pace):
            if self._stop is not None and received + len(piece) >= self._stop and self._stop != self.size:
                yield memoryview(piece)[: self._stop - received]
                return  # the rest was not asked for; leaving the context ends the transfer
            received += len(piece)
            if self.size is not None and received > self.size:
                raise SizeMismatch(f"{self.url} announced {self.size} bytes and sent more")
            yield piece
        self._check_end(received)

    def _receive(self, pace: Pace) -> bytes:
        with ftp_errors(self.url):
            began = time.monotonic()
            piece = self._data.recv(_TAKE)
            pace.took(time.monotonic() - began, len(piece))
            return piece

    def _check_end(self, received: int) -> None:
        """Hear that the transfer is complete, and look whether the file is still what it was."""
        self._data.close()
        with ftp_errors(self.url), bounded(self._source.read_timeout, self._control.break_off):
            answer = self._control.getresp()
            if not answer.startswith("2"):
                raise ConnectionLost(f"{self.url}: the server does not say that the file is complete")
            if self.size is not None and received != self.size:
                raise SizeMismatch(f"{self.url} announced {self.size} bytes and sent {received}")
            if self.version is not None and _Found.at(self._control, self._from) != self._found:
                raise SourceChanged(f"{self.url} changed while it was read")
