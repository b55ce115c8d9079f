"""http and https read by a machine's own curl: the mover writes the requests and checks the heads; the bytes never come
here.

What is sent, to whom, and which answers are accepted is decided by the code that decides it for `HttpSource`.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from typing import Any, Self

from urllib3 import HTTPHeaderDict

from datamanager.errors import ConnectionLost, DownloadFailed, SizeMismatch
from datamanager.sources.http.answer import CheckedHead, Head, RangeRequest
from datamanager.sources.http.client import HttpSource, HttpTerms, followed
from datamanager.sources.http.curl_config import NOT_TAKEN, STALLED, UNREACHED, curl_config, curl_error
from datamanager.sources.http.head import MAX_HEAD, interim, parse_head
from datamanager.sources.network.blocks import gathered
from datamanager.sources.network.connections import MAX_ADDRESSES
from datamanager.sources.network.source_context import RunCurl, SourceContext
from datamanager.sources.source_port import Source
from datamanager.sources.terms.source_options import option_error
from datamanager.sources.terms.urls import Target, public_url
from datamanager.transports.port import RunningCurl

LATE = 5.0
"""Seconds beyond its own time limits after which a curl is ended: it hangs, or its server sends no line's end."""

_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
_ELSEWHERE = {
    "proxy": "the machine's curl uses no proxy",
    "client_cert": "its key would have to be on the machine's disk",
    "decompress": "the bytes do not pass the mover, which would decompress them",
    "extract": "the bytes do not pass the mover, which would decompress them",
}


class RemoteHttpTerms(HttpTerms):
    """An http or https URL that the machine itself is to fetch, with its options, parsed."""

    @classmethod
    def parse(cls, url: str, options: Any) -> Self:
        """Return the terms; see HttpTerms.parse. Raises: InvalidRequest, which names the first unfit option."""
        terms = super().parse(url, options)
        for name, why in _ELSEWHERE.items():
            if getattr(options, name, None):
                raise option_error(name, f"cannot be combined with fetch: remote: {why}")
        return terms

    def open(self, context: SourceContext) -> Source:
        """See SourceTerms.open; where no machine has a curl, the mover reads the source."""
        source = HttpSource(self, context)
        return source if context.run is None else RemoteHttpSource(source, context.run)


class CurlDownload(CheckedHead):
    """An answer that a machine receives. Raises (when made): DownloadFailed, TooLarge, SourceChanged."""

    def __init__(self, curl: RunningCurl, head: Head, target: Target, source: HttpSource, wanted: RangeRequest) -> None:
        terms = source.terms
        super().__init__(head, target, source.context.max_size, wanted, terms.expect_type, terms.encodings)
        self.patience = source.context.read_timeout
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
            raise ConnectionLost(f"curl ended unexpectedly while it downloaded {self.url}")
        if end.status:
            raise curl_error(end.status, self.url)
        if end.received < count:  # old versions of curl print trailers with the heads
            raise DownloadFailed(f"{self.url} sends trailers after its body, which fetch: remote does not support")
        if end.received > count or (self._announced is not None and count != self._announced):
            raise SizeMismatch(f"{self.url} announced {self._announced} bytes and sent {count}")


@dataclass(frozen=True, slots=True)
class RemoteHttpSource:
    """An http or https URL, read from a machine; `rate` is bytes per second that it may take there."""

    source: HttpSource
    run: RunCurl
    rate: int | None = None

    def by(self, run: RunCurl, rate: int | None) -> Self:
        """Return the same source, its curls started by `run` and limited to `rate`."""
        return replace(self, run=run, rate=rate)

    @contextmanager
    def open(self, start: int = 0, stop: int | None = None, *, version: str | None = None) -> Iterator[CurlDownload]:
        """Have the machine ask for the URL, and follow redirects by hand; see Source.open."""
        wanted = RangeRequest(start, stop, version)
        target, answer = followed(
            self.source.terms.target,
            lambda at, trusted: self._get(at, wanted, trusted=trusted),
            lambda one: one.head,
            lambda one: one.running.close(),
        )
        with answer.running:
            yield CurlDownload(answer.curl, answer.head, target, self.source, wanted)

    def _get(self, target: Target, wanted: RangeRequest, *, trusted: bool) -> _Answer:
        """Have the request sent to the first of the host's checked addresses that accepts the connection."""
        context = self.source.context
        headers = self.source.request(target, wanted, trusted=trusted).headers
        addresses = context.guard.check(target.host, target.port)[:MAX_ADDRESSES]
        for number, address in enumerate(addresses, 1):
            config = curl_config(
                target,
                address,
                {name: _text(value) for name, value in headers.items()},
                verify=self.source.terms.trust.verify,
                connect_timeout=context.connect_timeout,
                read_timeout=context.read_timeout,
                rate=self.rate,
            )
            with ExitStack() as running:
                curl = running.enter_context(self.run(config, self._authorities()))
                patience = context.connect_timeout + context.read_timeout + LATE
                head = _head(curl, public_url(target.url), patience, last=number == len(addresses))
                if head is not None:
                    return _Answer(curl, head, running.pop_all())
        raise ConnectionLost(f"no connection to {public_url(target.url)}")

    def _authorities(self) -> bytes:
        """Return the authorities of the options, and nothing besides the certificates that their text may hold."""
        ca = self.source.terms.trust.ca
        if ca is None:
            return b""
        texts = _CERTIFICATE.findall(ca)
        if not texts:
            raise option_error("ca", "must be PEM certificates")
        return "".join(ssl.DER_cert_to_PEM_cert(ssl.PEM_cert_to_DER_cert(text)) for text in texts).encode("ascii")


@dataclass(frozen=True, slots=True)
class _Answer:
    curl: RunningCurl
    head: Head
    running: ExitStack


def _head(curl: RunningCurl, url: str, patience: float, *, last: bool) -> Head | None:
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
        if not interim(head.status):
            return head
        left -= len(text)
    raise DownloadFailed(f"{url} did not answer in proper HTTP (no end of interim answers)")


def _parsed(text: bytes, url: str) -> Head:
    try:
        _, status, headers = parse_head(text)
    except HTTPException:
        raise DownloadFailed(f"{url} did not answer in proper HTTP") from None
    return Head(status, HTTPHeaderDict(headers.items()))


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
