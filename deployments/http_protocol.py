"""HTTP/1.1 as uvicorn and httptools speak it, with a problem document for what is not HTTP and never reaches the
application.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.http.middleware import HEADER
from api.http.problems import http_problem_response
from api.http.security_headers import SECURITY_HEADERS

UNREAD_MAX = 2**16
"""Bytes of a request's head, of a chunk's or of what follows the last chunk; httptools itself keeps any number."""
HEAD_TOO_LONG = f"The head of a request is limited to {UNREAD_MAX} bytes."


class ProblemProtocol(HttpToolsProtocol):
    """A connection of the API."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unread = 0
        """Bytes that came since a head, a part of a body or a request was complete."""
        self._head = 0
        """Bytes of the head so far; a long one may come in one piece."""

    def data_received(self, data: bytes) -> None:
        """Read what came; answer 400 where what is no body grows without an end."""
        self._unread += len(data)
        super().data_received(data)
        if self._unread > UNREAD_MAX and not self.transport.is_closing():
            self.send_400_response(HEAD_TOO_LONG)

    def on_url(self, url: bytes) -> None:
        """Take a part of the address."""
        self._lengthen_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._lengthen_head(len(name) + len(value))
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin to serve the request."""
        self._unread = self._head = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the next head may begin."""
        self._unread = self._head = 0
        super().on_message_complete()

    def _lengthen_head(self, count: int) -> None:
        """Raises: OverflowError for a head that is too long; the parser ends, and `send_400_response` is called."""
        self._head += count
        if self._head > UNREAD_MAX:
            raise OverflowError

    def send_400_response(self, msg: str) -> None:
        """Answer what can't be read, and close the connection: where the next request begins is not known."""
        if self._head > UNREAD_MAX:
            msg = HEAD_TOO_LONG
        request_id = str(uuid4())
        problem = http_problem_response(400, msg, request_id, {HEADER: request_id, "Connection": "close"})
        cycle: Any = self.cycle  # None before the first request
        if cycle is None or cycle.response_complete or not cycle.response_started:
            headers = [*problem.raw_headers, *SECURITY_HEADERS]
            lines = [b"HTTP/1.1 400 Bad Request", *(b"%s: %s" % header for header in headers), b"", b""]
            self.transport.write(b"\r\n".join(lines) + problem.body)
        self.transport.close()
