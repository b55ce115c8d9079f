"""http and https read by a machine's own curl: we ask the questions and judge the heads, the bytes never come here.

What is sent, to whom, and what is taken for an answer is decided by the code that decides it for `HttpSource`.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException, parse_headers
from io import BytesIO
from typing import Protocol, Self

from urllib3 import HTTPHeaderDict
from urllib3.exceptions import HeaderParsingError
from urllib3.util.response import assert_header_parsing

from datamanager.errors import ConnectionLost, DownloadFailed, InvalidRequest, SizeMismatch
from datamanager.sources.http.answer import Asked, Head, SoundHead
from datamanager.sources.http.client import MAX_ADDRESSES, HttpSource, followed
from datamanager.sources.http.pinned import MAX_HEAD
from datamanager.sources.network.blocks import gathered
from datamanager.sources.remote_curl.curl_config import NOT_TAKEN, STALLED, UNREACHED, curl_config, curl_error
from datamanager.sources.terms.options import HttpOptions
from datamanager.sources.terms.urls import Target, public_url

LATE = 5.0
"""Seconds after which a curl that keeps to no limit of time is ended: it hangs, or its server sends no line's end."""

_STATUS = re.compile(rb"HTTP/[0-9](?:\.[0-9])? ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\n")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_ELSEWHERE = {
    "proxy": "the machine's curl asks no proxy",
    "client_cert": "its key would have to lie on the machine's disk",
    "decompress": "the bytes don't pass the mover, which would unpack them",
    "extract": "the bytes don't pass the mover, which would unpack them",
}


class CurlEnd(Protocol):
    """How a curl ended."""

    @property
    def status(self) -> int:
        """Its exit status."""
        ...

    @property
    def received(self) -> int:
        """Bytes of the body that it brought."""
        ...

    @property
    def connected(self) -> bool:
        """Whether it had a connection at all."""
        ...


class Curl(Protocol):
    """A curl at work on a machine; what each method does is said at the port of transports that has the same name."""

    def head(self, patience: float) -> bytes: ...
    def same(self, count: int) -> bool: ...
    def store(self, most: int) -> None: ...
    def send(self, most: int) -> Iterator[bytes]: ...

    @property
    def end(self) -> CurlEnd | None: ...


Run = Callable[[bytes, bytes], AbstractContextManager[Curl]]
"""Begins a curl on the machine, of its configuration and of the authorities (PEM) to trust, if not its own ones."""


def require_fetchable(options: HttpOptions) -> None:
    """Refuse options that can't be with `fetch: remote`. Raises: InvalidRequest, which names the first of them."""
    for name, why in _ELSEWHERE.items():
        if getattr(options, name, None):
            told = f"can't be with fetch: remote: {why}"
            raise InvalidRequest(f"options.{name}: {told}", {f"options.{name}": told})


class CurlDownload(SoundHead):
    """An answer that a machine receives. Raises (when made): DownloadFailed, TooLarge, SourceChanged."""

    def __init__(self, curl: Curl, head: Head, target: Target, source: HttpSource, asked: Asked) -> None:
        super().__init__(head, target, source.max_size, asked, source.expect_type)
        self.patience = source.read_timeout
        """Seconds in which something must arrive."""
        self._curl = curl

    def blocks(self) -> Iterator[memoryview]:
        """Yield the body; see Download.blocks."""
        received = 0
        most = self._max_size - self.start
        for block in gathered(self._curl.send(most + 1), self.url, most, self._max_size):
            received += len(block)
            yield block
        self.require_end(received)

    def same(self, count: int) -> bool:
        """Say whether the next `count` bytes are the last ones of the file that the machine has.

        Raises: ConnectionLost, TransportTimeout, DownloadFailed when they don't come.
        """
        same, end = self._curl.same(count), self._curl.end
        if not same and end is not None and end.status not in (0, NOT_TAKEN):
            raise curl_error(end.status, self.url)
        return same

    def store(self, most: int) -> None:
        """Have the rest written into the machine's file, at most `most` bytes; return when the answer has ended.

        Whether that was its proper end says `require_end`.
        """
        self._curl.store(most)

    def require_end(self, count: int) -> None:
        """Refuse any other end than the body's own, after `count` bytes. Raises: ConnectionLost, TransportTimeout,
        SizeMismatch, DownloadFailed.
        """
        end = self._curl.end
        if end is None:
            raise ConnectionLost(f"curl, which fetched {self.url}, went away")
        if end.status:
            raise curl_error(end.status, self.url)
        if end.received < count:  # an old quirk of curl's, which shows them with the heads
            raise DownloadFailed(f"{self.url} sends trailers behind its body, which can't be with fetch: remote")
        if end.received > count or (self._announced is not None and count != self._announced):
            raise SizeMismatch(f"{self.url} announced {self._announced} bytes and sent {count}")


@dataclass(frozen=True, slots=True)
class RemoteHttpSource:
    """An http or https URL, read from a machine; `rate` is bytes per second that it may take there."""

    source: HttpSource
    run: Run
    rate: int | None = None

    def by(self, run: Run, rate: int | None) -> Self:
        """Return the same source, read by another way to run curl on the machine."""
        return replace(self, run=run, rate=rate)

    def check(self) -> None:
        """Refuse what may not be asked; see Source.check. Names are resolved here, not on the machine."""
        self.source.check()

    @contextmanager
    def open(self, start: int = 0, stop: int | None = None, *, version: str | None = None) -> Iterator[CurlDownload]:
        """Have the machine ask for the URL, and follow redirects by hand; see Source.open."""
        asked = Asked(start, stop, version)
        target, answer = followed(
            self.source.first(),
            lambda at, trusted: self._get(at, asked, trusted=trusted),
            lambda one: one.head,
            lambda one: one.running.close(),
        )
        with answer.running:
            yield CurlDownload(answer.curl, answer.head, target, self.source, asked)

    def _get(self, target: Target, asked: Asked, *, trusted: bool) -> _Answer:
        """Have the request sent to the first of the host's checked addresses that accepts the connection."""
        source = self.source
        headers = source.request(target, asked, trusted=trusted).headers
        addresses = source.guard.check(target.host, target.port)[:MAX_ADDRESSES]
        for number, address in enumerate(addresses, 1):
            config = curl_config(
                target,
                address,
                {name: _text(value) for name, value in headers.items()},
                verify=source.trust.verify,
                connect_timeout=source.connect_timeout,
                read_timeout=source.read_timeout,
                rate=self.rate,
            )
            with ExitStack() as running:
                curl = running.enter_context(self.run(config, self._authorities()))
                patience = source.connect_timeout + source.read_timeout + LATE
                head = _head(curl, public_url(target.url), patience, last=number == len(addresses))
                if head is not None:
                    return _Answer(curl, head, running.pop_all())
        raise ConnectionLost(f"no connection to {public_url(target.url)}")

    def _authorities(self) -> bytes:
        """Return the authorities of the options, and nothing besides the certificates that their text may hold."""
        if self.source.trust.ca is None:
            return b""
        texts = _CERTIFICATE.findall(self.source.trust.ca)
        if not texts:
            raise InvalidRequest("options.ca: must be PEM certificates", {"options.ca": "must be PEM certificates"})
        return "".join(ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(text)) for text in texts).encode("ascii")


@dataclass(frozen=True, slots=True)
class _Answer:
    curl: Curl
    head: Head
    running: ExitStack


def _head(curl: Curl, url: str, patience: float, *, last: bool) -> Head | None:
    """Return the answer's head, interim ones (1xx) passed over; None when there was no connection and it may be tried
    at another address, as this is not the `last` one. Raises: TransportTimeout after `patience` seconds.
    """
    left, deadline = MAX_HEAD, time.monotonic() + patience
    while left > 0:
        text = curl.head(deadline - time.monotonic())
        end = curl.end
        if end is not None and not text.endswith((b"\n\r\n", b"\n\n")):
            unreached = end.status in UNREACHED or (end.status == STALLED and not end.connected)
            if unreached and not last:
                return None
            if end.status:
                raise curl_error(end.status, url)
            raise DownloadFailed(f"{url} did not answer in proper HTTP")
        head = _parsed(text, url)
        if head.status >= 200 or head.status == 101:
            return head
        left -= len(text)
    raise DownloadFailed(f"{url} did not answer in proper HTTP (no end of interim answers)")


def _parsed(text: bytes, url: str) -> Head:
    status = _STATUS.match(text)
    try:
        if status is None:
            raise HTTPException("no status line")
        message = parse_headers(BytesIO(text[status.end() :]))
        assert_header_parsing(message)  # what stands behind a malformed line would be ignored
    except (HTTPException, HeaderParsingError):
        raise DownloadFailed(f"{url} did not answer in proper HTTP") from None
    return Head(int(status[1]), HTTPHeaderDict(message.items()))


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
