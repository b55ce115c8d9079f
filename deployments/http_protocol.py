"""HTTP/1.1 as uvicorn speaks it, with a problem document for what is not HTTP and never reaches the application."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from uvicorn.protocols.http.h11_impl import H11Protocol

from api.http.middleware import HEADER
from api.http.problems import http_problem_response


class ProblemProtocol(H11Protocol):
    """A connection of the API."""

    def send_400_response(self, msg: str) -> None:
        """Answer what h11 could not read, and close the connection: where the next request begins is not known."""
        request_id = str(uuid4())
        problem = http_problem_response(400, msg, request_id, {HEADER: request_id, "Connection": "close"})
        cycle: Any = self.cycle  # None before the first request
        if cycle is None or cycle.response_complete or not cycle.response_started:
            lines = [b"HTTP/1.1 400 Bad Request", *(b"%s: %s" % header for header in problem.raw_headers), b"", b""]
            self.transport.write(b"\r\n".join(lines) + problem.body)
        self.transport.close()
