"""The answer to a GET, whole or of a range: framing, status, Content-Range and validators, checked before the body.

What two readers could understand differently is refused. A range is accepted only when it is exactly the requested one.
(RFC 9110, 8.8, 13.1.5, 14 and 15.3.7; RFC 9112, 6)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.message import Message
from email.utils import collapse_rfc2231_value, parsedate_to_datetime
from typing import Any

import requests
from urllib3 import HTTPHeaderDict, HTTPResponse

from datamanager.errors import DownloadFailed, SizeMismatch, SourceChanged, TooLarge
from datamanager.sources.http.pinned import PinnedResponse
from datamanager.sources.network.blocks import gathered
from datamanager.sources.network.connections import translated
from datamanager.sources.source_port import BLOCK
from datamanager.sources.terms.urls import Target, public_url

STRONG_AFTER = timedelta(seconds=60)
"""How much older than the answer a modification time must be to tell two versions apart (RFC 9110, 8.8.2.2)."""

WAIT_MAX = timedelta(days=1)
"""Longest wait that is understood."""

_WAITED_FOR = frozenset({429, 503})
_RETRYABLE = frozenset({408, 425, 429})
_SECONDS = re.compile(r"[0-9]{1,19}")
_LENGTH = re.compile(r"[0-9]{1,19}")
_ETAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')  # RFC 9110, 8.8.3; W/"…" is weak
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)", re.IGNORECASE)
_USUAL_TYPES = frozenset(
    {
        *("text/html", "text/plain", "text/csv", "text/xml", "application/xml", "application/xhtml+xml"),
        *("application/json", "application/problem+json", "application/octet-stream", "application/gzip"),
        *("application/zip", "application/x-netcdf", "application/x-hdf5", "image/tiff", "image/png", "image/jpeg"),
    }
)
"""Types that an error may name."""
_ETAG_MARK, _DATE_MARK = "etag:", "date:"


@dataclass(frozen=True, slots=True)
class RangeRequest:
    """Which bytes are requested: offsets, `stop` not included, and the version that they must be of."""

    start: int = 0
    stop: int | None = None
    version: str | None = None

    @property
    def partial(self) -> bool:
        """Whether a Range header is sent."""
        return self.start > 0 or self.stop is not None

    def headers(self) -> dict[str, str]:
        """Return Range and If-Range."""
        if not self.partial:
            return {}
        last = "" if self.stop is None else str(self.stop - 1)
        condition = {}
        if self.version is not None:
            condition["If-Range"] = self.version.removeprefix(_ETAG_MARK).removeprefix(_DATE_MARK)
        return {"Range": f"bytes={self.start}-{last}", **condition}


@dataclass(frozen=True, slots=True)
class Head:
    """An answer's status and headers, whoever received them."""

    status: int
    headers: HTTPHeaderDict

    @classmethod
    def of(cls, response: requests.Response) -> Head:
        """Return the head of an answer that was received here."""
        return cls(response.status_code, response.raw.headers)


def strong_version(headers: HTTPHeaderDict) -> str | None:
    """Return the strong validator as opaque text: an ETag that is not weak, else a Last-Modified that was at least a
    minute old when it was sent.
    """
    etag = headers.get("ETag")
    if etag is not None:
        etag = etag.strip()
        return f"{_ETAG_MARK}{etag}" if _ETAG.fullmatch(etag) else None
    modified, sent = _date(headers.get("Last-Modified")), _date(headers.get("Date"))
    if modified is None or sent is None or sent - modified < STRONG_AFTER:
        return None
    return f"{_DATE_MARK}{headers['Last-Modified'].strip()}"


def retry_after(status: int, headers: HTTPHeaderDict) -> timedelta | None:
    """Return how long a refusal (429, 503) asks to wait, a second at least; None when it does not say.
    (RFC 9110, 10.2.3)
    """
    if status not in _WAITED_FOR:
        return None
    text = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    else:
        moment = _date(text)
        if moment is None:
            return None
        seconds = (moment - (_date(headers.get("Date")) or datetime.now(UTC))).total_seconds()
    return timedelta(seconds=min(max(seconds, 1.0), WAIT_MAX.total_seconds()))


class CheckedHead:
    """The checked head of an answer to a GET. Raises (when made): DownloadFailed, TooLarge, SourceChanged."""

    def __init__(
        self,
        head: Head,
        target: Target,
        max_size: int,
        wanted: RangeRequest,
        expect_type: str | None,
        encodings: frozenset[str] | None = frozenset(),
    ) -> None:
        self._encodings = encodings
        headers = self._headers = head.headers
        self.url = public_url(target.url)
        self.etag = headers.get("ETag")
        self.last_modified = headers.get("Last-Modified")
        self.content_type = headers.get("Content-Type")
        self.filename = disposition_name(headers.get("Content-Disposition"))
        self.version = strong_version(headers)
        self._max_size = max_size
        self.start = 0
        self._announced = self._checked_head(head.status, wanted)
        self.size = self._announced
        if head.status == requests.codes.partial:
            self._take_range(headers.get("Content-Range"), wanted)
        if wanted.version is not None and self.version != wanted.version:
            raise SourceChanged(f"{self.url} is not the version any more that the download began with")
        if self.size is not None and self.size > max_size:
            raise TooLarge(f"{self.url} is {self.size} bytes, the maximum is {max_size}")
        self._check_type(expect_type)
        accepts = headers.get("Accept-Ranges", "").strip().lower() == "bytes"
        self.ranges = self.version is not None and (accepts or head.status == requests.codes.partial)

    def _checked_head(self, status: int, wanted: RangeRequest) -> int | None:
        """Return the announced length of the body in bytes, if there is one."""
        if status == requests.codes.requested_range_not_satisfiable and wanted.version is not None:
            raise SourceChanged(f"{self.url} ends before byte {wanted.start}, where the download was to resume")
        sound = (requests.codes.ok, requests.codes.partial) if wanted.partial else (requests.codes.ok,)
        if status not in sound:
            retryable = status in _RETRYABLE or status >= 500
            again = retry_after(status, self._headers)
            raise DownloadFailed(f"{self.url} answered {status}", retryable=retryable, again=again)
        if status == requests.codes.ok and "Content-Range" in self._headers:
            raise DownloadFailed(f"{self.url} sends the whole file (200) and calls it a range (Content-Range)")
        encoding = ", ".join(self._headers.getlist("Content-Encoding")).strip().lower()
        accepted = self._encodings is None or encoding in self._encodings
        if encoding not in ("", "identity") and not accepted:
            raise DownloadFailed(
                f"{self.url} sends encoded content (Content-Encoding), which was not requested; if it is stored so, "
                "give raw: true, decompress, or the checksum of the stored bytes"
            )
        framing = [value.strip().lower() for value in self._headers.getlist("Transfer-Encoding")]
        lengths = self._headers.getlist("Content-Length")
        if framing not in ([], ["chunked"]) or len(lengths) > 1 or (framing and lengths):
            raise DownloadFailed(f"{self.url} sends an ambiguous length (Transfer-Encoding, Content-Length)")
        if not lengths:
            return None
        if not _LENGTH.fullmatch(lengths[0].strip()):
            raise DownloadFailed(f"{self.url} sends an invalid Content-Length")
        return int(lengths[0])

    def _take_range(self, content_range: str | None, wanted: RangeRequest) -> None:
        """Store the whole size and the range. Raises: SourceChanged when it is not the requested one."""
        match = _CONTENT_RANGE.fullmatch((content_range or "").strip())
        if match is None or len(self._headers.getlist("Content-Range")) != 1:
            raise SourceChanged(f"{self.url} sends a range without naming it (Content-Range)")
        first, last = int(match[1]), int(match[2])
        self.size = None if match[3] == "*" else int(match[3])
        end = self.size if wanted.stop is None else wanted.stop if self.size is None else min(wanted.stop, self.size)
        count = last + 1 - first
        if first != wanted.start or count <= 0 or (end is not None and last + 1 != end):
            raise SourceChanged(f"{self.url} sends bytes {first} to {last}, requested were {wanted.start} to {end}")
        if self._announced is not None and self._announced != count:
            raise SourceChanged(f"{self.url} sends {self._announced} bytes as its range of {count}")
        self.start, self._announced = first, count

    def _check_type(self, expected: str | None) -> None:
        if expected is None:
            return
        said = (self.content_type or "").partition(";")[0].strip().lower()
        fits = said.startswith(expected[:-1]) if expected.endswith("/*") else said == expected
        if not fits:
            # any other text may be the client's login, echoed
            named = repr(said) if said in _USUAL_TYPES else "another type" if said else "no type"
            raise DownloadFailed(f"{self.url} sends {named}, expected {expected!r}")


class HttpDownload(CheckedHead):
    """The answer to a GET, its head checked. Raises (when made): DownloadFailed, TooLarge, SourceChanged."""

    def __init__(
        self,
        response: requests.Response,
        target: Target,
        max_size: int,
        wanted: RangeRequest,
        expect_type: str | None,
        encodings: frozenset[str] | None = frozenset(),
    ) -> None:
        super().__init__(Head.of(response), target, max_size, wanted, expect_type, encodings)
        self._raw: HTTPResponse = response.raw

    def blocks(self) -> Iterator[memoryview]:
        """Yield the body; see Download.blocks."""
        most = self._max_size - self.start
        return gathered(self._pieces(), self.url, most, self._max_size, self._pauses)

    def _pieces(self) -> Iterator[bytes]:
        """Yield what has arrived, at least one byte each, until the body's proper end."""
        received = 0
        while True:
            # read1 returns what one system call brings: a slow source is not waited for until a whole block is there.
            # It raises when the connection ends before Content-Length, or before the last chunk.
            with translated(self.url):
                piece = self._raw.read1(BLOCK, decode_content=False)
            if not piece:
                break
            received += len(piece)
            yield piece
        self._check_end(received)

    def _pauses(self, seconds: float) -> bool:
        answer = self._raw._original_response  # noqa: SLF001 see below
        return isinstance(answer, PinnedResponse) and answer.pauses(seconds)

    def _check_end(self, received: int) -> None:
        # urllib3 has no public way to the answer below; requests reads the same attribute.
        answer = self._raw._original_response  # noqa: SLF001
        surplus = isinstance(answer, PinnedResponse) and answer.surplus
        if surplus or (self._announced is not None and received != self._announced):
            sent = "more" if surplus else str(received)
            raise SizeMismatch(f"{self.url} announced {self._announced} bytes and sent {sent}")


HEADER_MAX = 8192
"""Longest header that is parsed, in characters."""


def disposition_name(header: str | None) -> str | None:
    """Return the name in a Content-Disposition header as it was sent: `filename*` (RFC 8187) before `filename`."""
    if not header or len(header) > HEADER_MAX:
        return None
    message = Message()
    message["Content-Disposition"] = " ".join(header.split())
    try:
        given: list[tuple[str, Any]] = message.get_params([], "content-disposition")
        named = [value for name, value in given if name.lower() == "filename"]
        extended = [collapse_rfc2231_value(value, errors="replace") for value in named if isinstance(value, tuple)]
    except ValueError:  # charsets that decode nothing, numbers without end: it names nothing
        return None
    plain = [str(value) for value in named if not isinstance(value, tuple)]
    return next(filter(None, [*extended, *plain]), None)


def _date(text: str | None) -> datetime | None:
    try:
        date = parsedate_to_datetime((text or "").strip())
    except (ValueError, TypeError, OverflowError):
        return None
    return date if date.tzinfo is not None else None
