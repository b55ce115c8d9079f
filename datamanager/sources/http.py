"""http and https: one GET, redirects followed by hand and checked again, the exact bytes as they were sent.

Nothing is taken from the environment (proxy, ~/.netrc), nothing is decompressed, no cookie or credential goes to a next
host. RFC 9110 (semantics) and RFC 9112 (framing); framing that two readers could understand differently is refused.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urljoin

import requests
from urllib3 import HTTPResponse
from urllib3.exceptions import NewConnectionError

from datamanager.errors import DownloadFailed, SizeMismatch, TooLarge, UrlNotAllowed
from datamanager.sources.base import BLOCK
from datamanager.sources.faults import causes, translated
from datamanager.sources.guard import Guard
from datamanager.sources.pinned import Answer, PinnedAdapter
from datamanager.sources.urls import Target, parse_target, public_url

MAX_REDIRECTS = 10
MAX_ADDRESSES = 4
"""How many of a host's addresses are tried until one accepts the connection."""
HAND_ON = 0.5
"""Seconds after which a block is handed on although it is not full."""

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_RETRYABLE = frozenset({408, 429})
_LENGTH = re.compile(r"[0-9]{1,19}")
_HEADERS = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "data-manager",
}


@dataclass(frozen=True, slots=True)
class HttpSource:
    """An http or https URL. `connect_timeout` and `read_timeout` are seconds, `max_size` is bytes."""

    url: str
    guard: Guard
    max_size: int
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    ca_file: Path | None = None
    """Certificate authorities to trust besides the public ones."""

    def check(self) -> None:
        """Refuse a URL that is malformed or leads where downloads may not go. Raises: UrlNotAllowed."""
        target = parse_target(self.url)
        self.guard.check(target.host, target.port)

    @contextmanager
    def open(self) -> Iterator[HttpDownload]:
        """Ask for the URL and follow redirects to the answer with the bytes.

        Raises: UrlNotAllowed, DownloadFailed, TooLarge, ConnectionLost, TransportTimeout.
        """
        target, response = self._follow()
        try:
            yield HttpDownload(response, target, self.max_size)
        finally:
            _close(response)

    def _follow(self) -> tuple[Target, requests.Response]:
        target = parse_target(self.url)
        seen: set[str] = set()
        while True:
            seen.add(target.url)
            response = self._get(target)
            if response.status_code not in _REDIRECTS:
                return target, response
            _close(response)
            target = _redirected(target, response)
            if target.url in seen:
                raise DownloadFailed(f"{public_url(self.url)} redirects in a loop")
            if len(seen) > MAX_REDIRECTS:
                raise DownloadFailed(f"{public_url(self.url)} redirects more than {MAX_REDIRECTS} times")

    def _get(self, target: Target) -> requests.Response:
        """Send the request to the first of the host's checked addresses that accepts the connection."""
        request = requests.Request("GET", target.url, headers=_HEADERS | {"Host": target.netloc}).prepare()
        addresses = self.guard.check(target.host, target.port)[:MAX_ADDRESSES]
        with translated(public_url(target.url)):
            for address in addresses[:-1]:
                try:
                    return self._send(request, PinnedAdapter(target, address, self.ca_file))
                except requests.ConnectionError as exc:  # its timeout is one as well
                    unreached = isinstance(exc, requests.ConnectTimeout) or any(
                        isinstance(cause, NewConnectionError) for cause in causes(exc)
                    )
                    if not unreached:
                        raise
            return self._send(request, PinnedAdapter(target, addresses[-1], self.ca_file))

    def _send(self, request: requests.PreparedRequest, adapter: PinnedAdapter) -> requests.Response:
        # The adapter is used without a Session: cookies, proxies, ~/.netrc and redirects have no place to come from.
        return adapter.send(request, stream=True, timeout=(self.connect_timeout, self.read_timeout), verify=True)


def _redirected(target: Target, response: requests.Response) -> Target:
    """Return where the answer leads. Raises: DownloadFailed, UrlNotAllowed."""
    location = response.headers.get("Location")
    if not location:
        raise DownloadFailed(f"{public_url(target.url)} answered {response.status_code} without a Location")
    try:
        # http.client reads headers as latin-1; what servers send unescaped is UTF-8
        onward = parse_target(urljoin(target.url, location.encode("latin-1").decode("utf-8")))
    except UrlNotAllowed as exc:
        raise UrlNotAllowed(f"{public_url(target.url)} redirects to a URL that is refused: {exc.detail}") from exc
    except ValueError:
        # urllib.parse quotes what it can't read, credentials included
        raise UrlNotAllowed(f"{public_url(target.url)} redirects to a malformed URL") from None
    if target.scheme == "https" and onward.scheme != "https":
        raise UrlNotAllowed(f"{public_url(target.url)} redirects from https to http")
    return onward


class HttpDownload:
    """The answer to a GET whose head was found sound. Raises (when made): DownloadFailed, TooLarge."""

    def __init__(self, response: requests.Response, target: Target, max_size: int) -> None:
        self.url = public_url(target.url)
        self.etag = response.headers.get("ETag")
        self.last_modified = response.headers.get("Last-Modified")
        self._raw: HTTPResponse = response.raw
        self._max_size = max_size
        self.size = self._checked_head(response.status_code)

    def _checked_head(self, status: int) -> int | None:
        """Return the announced length in bytes, if there is one."""
        if status != requests.codes.ok:
            retryable = status in _RETRYABLE or status >= 500
            raise DownloadFailed(f"{self.url} answered {status}", retryable=retryable)
        encoding = ", ".join(self._raw.headers.getlist("Content-Encoding")).strip().lower()
        if encoding not in ("", "identity"):
            raise DownloadFailed(f"{self.url} sends its content encoded ({encoding[:40]!r}), unasked")
        framing = [value.strip().lower() for value in self._raw.headers.getlist("Transfer-Encoding")]
        lengths = self._raw.headers.getlist("Content-Length")
        if framing not in ([], ["chunked"]) or len(lengths) > 1 or (framing and lengths):
            raise DownloadFailed(f"{self.url} sends an ambiguous length (Transfer-Encoding, Content-Length)")
        if not lengths:
            return None
        if not _LENGTH.fullmatch(lengths[0].strip()):
            raise DownloadFailed(f"{self.url} sends an invalid Content-Length")
        size = int(lengths[0])
        if size > self._max_size:
            raise TooLarge(f"{self.url} is {size} bytes, allowed are {self._max_size}")
        return size

    def blocks(self) -> Iterator[memoryview]:
        """Yield the body; see Download.blocks."""
        block = memoryview(bytearray(BLOCK))
        filled = received = 0
        due = time.monotonic() + HAND_ON
        while piece := self._read(BLOCK - filled):
            received += len(piece)
            if received > self._max_size:
                raise TooLarge(f"{self.url} is larger than the {self._max_size} bytes allowed")
            block[filled : filled + len(piece)] = piece
            filled += len(piece)
            if filled == BLOCK or time.monotonic() >= due:
                yield block[:filled]
                filled = 0
                due = time.monotonic() + HAND_ON
        self._check_end(received)
        if filled:
            yield block[:filled]

    def _read(self, most: int) -> bytes:
        """Return what has arrived, at least one byte; b"" only at the body's proper end."""
        # read1 gives what one system call brings: a slow source is not waited for until a whole block is there.
        # It raises when the connection ends before Content-Length, or before the last chunk.
        with translated(self.url):
            return self._raw.read1(most, decode_content=False)

    def _check_end(self, received: int) -> None:
        # urllib3 has no public way to the answer below; requests reads the same attribute.
        answer = self._raw._original_response  # noqa: SLF001
        surplus = isinstance(answer, Answer) and answer.surplus
        if surplus or (self.size is not None and received != self.size):
            sent = "more" if surplus else str(received)
            raise SizeMismatch(f"{self.url} announced {self.size} bytes and sent {sent}")


def _close(response: requests.Response) -> None:
    response.close()
    response.connection.close()
