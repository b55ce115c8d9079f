"""ftp and ftps: one RETR in binary mode over a passive data connection.

The path is below the login's directory; `ftp://host/%2Fetc/motd` is absolute (RFC 1738, 3.2.2). Size and modification
time are the version, where the server reports both.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import format_datetime

from datamanager.errors import ConnectionLost, DownloadFailed, SizeMismatch, SourceChanged, TooLarge
from datamanager.sources.ftp.ftp_control import FtpControl, FtpLogin, ftp_errors
from datamanager.sources.network.blocks import MinimumRate, gathered
from datamanager.sources.network.connections import connect_guarded, time_limit
from datamanager.sources.network.source_context import SourceContext
from datamanager.sources.network.tls import Trust
from datamanager.sources.source_port import Source
from datamanager.sources.terms.source_options import FtpOptions, option_error, plain_text, refuse_expect_type
from datamanager.sources.terms.urls import FileUrl, parse_file_url

PORTS = {"ftp": 21, "ftps": 990}
_RECEIVE = 2**18


@dataclass(frozen=True, slots=True)
class FtpTerms:
    """A file of an FTP server, with its options, parsed."""

    url: FileUrl
    login: FtpLogin
    trust: Trust = field(default_factory=Trust, repr=False)

    @classmethod
    def parse(cls, url: str, options: FtpOptions) -> FtpTerms:
        """Return the terms of a URL with these options.

        Raises: UrlNotAllowed, InvalidRequest (a password without username, TLS terms that do not fit), NotSupported.
        """
        parsed = parse_file_url(url, PORTS)
        refuse_expect_type(options, parsed.scheme)
        if options.password is not None and options.username is None:
            raise option_error("password", "needs username")
        tls: str | None = options.tls
        if parsed.scheme == "ftps" and tls is None:
            tls = "explicit" if parsed.port == PORTS["ftp"] else "implicit"
        return cls(parsed, FtpLogin(options.username, plain_text(options.password), tls), Trust.of(options))

    @property
    def hosts(self) -> list[tuple[str, int]]:
        """See SourceTerms.hosts."""
        return [(self.url.host, self.url.port)]

    def open(self, context: SourceContext) -> Source:
        """See SourceTerms.open."""
        return FtpSource(self, context)


@dataclass(frozen=True, slots=True)
class FtpSource:
    """What a file of an FTP server is read by."""

    terms: FtpTerms
    context: SourceContext

    @contextmanager
    def open(self, start: int = 0, stop: int | None = None, *, version: str | None = None) -> Iterator[FtpDownload]:
        """Connect, log in and begin the transfer; see Source.open."""
        url, context = self.terms.url, self.context
        server = (url.host, url.port)
        with ExitStack() as stack:
            stack.enter_context(context.hosts.connection(server))
            with ftp_errors(url.shown):
                tls = self.terms.trust.context(context.ca_file)
            sock, address = connect_guarded(context.guard, url, context.connect_timeout)
            control = stack.enter_context(
                closing(FtpControl(sock, url.host, address, context.guard, tls, self.terms.login, context.read_timeout))
            )
            try:
                with (
                    ftp_errors(url.shown, login=True),
                    time_limit(context.connect_timeout + context.read_timeout, control.abort_waits),
                ):
                    control.begin()
            except DownloadFailed as error:
                if error.again is not None:
                    context.hosts.refused(server)
                raise
            with ftp_errors(url.shown), time_limit(context.read_timeout, control.abort_waits):
                found = _Found.at(control, url)
                if found.size is not None and found.size > context.max_size:
                    raise TooLarge(f"{url.shown} is {found.size} bytes, the maximum is {context.max_size}")
                if version is not None and version != found.version:
                    raise SourceChanged(f"{url.shown} has changed since the download began")
                begin = start if found.size is None else min(start, found.size)
                begin = begin if begin and control.can_begin_at(begin) else 0
                data = stack.enter_context(control.retrieve(found.path, begin, size_known=found.size is not None))
                data.settimeout(context.read_timeout)
            yield FtpDownload(self, control, data, found, begin, stop)
            data.close()
            control.quit_and_close()


@dataclass(frozen=True, slots=True)
class _Found:
    """A file's path, size and modification time, as the server gives them."""

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
    """FTP servers allow few connections to one client."""

    def __init__(
        self, source: FtpSource, control: FtpControl, data: socket.socket, found: _Found, start: int, stop: int | None
    ) -> None:
        url = self._from = source.terms.url
        self.url, self.filename = url.shown, url.filename
        self.size, self.version, self.start = found.size, found.version, start
        self.last_modified = None if found.modified is None else format_datetime(found.modified, usegmt=True)
        self._stop = stop if stop is None or found.size is None else min(stop, found.size)
        self._context, self._control, self._data, self._found = source.context, control, data, found

    def blocks(self) -> Iterator[memoryview]:
        """Yield the bytes; the server has to say in the end that they were all; see Download.blocks."""
        most = self._context.max_size - self.start
        return gathered(self._pieces(), self.url, most, self._context.max_size)

    def _pieces(self) -> Iterator[bytes | memoryview]:
        rate = MinimumRate(self._context.read_timeout)
        received = self.start
        while piece := self._receive(rate):
            if self._stop is not None and received + len(piece) >= self._stop and self._stop != self.size:
                yield memoryview(piece)[: self._stop - received]
                return  # the rest was not requested; leaving the context ends the transfer
            received += len(piece)
            if self.size is not None and received > self.size:
                raise SizeMismatch(f"{self.url} announced {self.size} bytes and sent more")
            yield piece
        self._check_end(received)

    def _receive(self, rate: MinimumRate) -> bytes:
        with ftp_errors(self.url):
            began = time.monotonic()
            piece = self._data.recv(_RECEIVE)
            rate.add(time.monotonic() - began, len(piece))
            return piece

    def _check_end(self, received: int) -> None:
        """Read the server's final answer, and check that the file has not changed."""
        self._data.close()
        with ftp_errors(self.url), time_limit(self._context.read_timeout, self._control.abort_waits):
            answer = self._control.getresp()
            if not answer.startswith("2"):
                raise ConnectionLost(f"{self.url}: the server does not report that the file is complete")
            if self.size is not None and received != self.size:
                raise SizeMismatch(f"{self.url} announced {self.size} bytes and sent {received}")
            if self.version is not None and _Found.at(self._control, self._from) != self._found:
                raise SourceChanged(f"{self.url} changed while it was read")
