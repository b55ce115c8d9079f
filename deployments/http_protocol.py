"""HTTP/1.1 as uvicorn and httptools speak it, with a problem document for what is not HTTP and never reaches the
application.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from api.http.middleware import HEADER
from api.http.problems import http_problem_response

UNREAD_MAX = 2**16
"""Bytes of a request's head, of a chunk's or of what follows the last chunk; httptools itself keeps any number."""


class ProblemProtocol(HttpToolsProtocol):
    """A connection of the API."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._unread = 0
        """Bytes that came since a head, a part of a body or a request was complete."""

    def data_received(self, data: bytes) -> None:
        """Read what came; answer 400 where what is no body grows without an end."""
        self._unread += len(data)
        super().data_received(data)
        if self._unread > UNREAD_MAX and not self.transport.is_closing():
            self.send_400_response(f"The head of a request is limited to {UNREAD_MAX} bytes.")

    def on_headers_complete(self) -> None:
        """Begin to serve the request."""
        self._unread = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._unread = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that the next head may begin."""
        self._unread = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answer what can't be read, and close the connection: where the next request begins is not known."""
        request_id = str(uuid4())
        problem = http_problem_response(400, msg, request_id, {HEADER: request_id, "Connection": "close"})
        cycle: Any = self.cycle  # None before the first request
        if cycle is None or cycle.response_complete or not cycle.response_started:
            lines = [b"HTTP/1.1 400 Bad Request", *(b"%s: %s" % header for header in problem.raw_headers), b"", b""]
            self.transport.write(b"\r\n".join(lines) + problem.body)
        self.transport.close()
