"""The head of an HTTP answer, parsed; its only limit is that of its bytes (`MAX_HEAD`): not of the number of headers or
the length of a line. (RFC 9112, 2 to 5)
"""

from __future__ import annotations

import re
from email.parser import Parser
from http.client import HTTPException, HTTPMessage

from urllib3.exceptions import HeaderParsingError
from urllib3.util.response import assert_header_parsing

MAX_HEAD = 2**20
"""Largest head of an answer in bytes, interim answers (1xx) included; the same for its trailers."""

_STATUS = re.compile(rb"(HTTP/[0-9](?:\.[0-9])?) ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\n")
_SWITCHING = 101


def parse_head(text: bytes) -> tuple[bytes, int, HTTPMessage]:
    """Return the version (`HTTP/1.1`), the status and the headers of a head. Raises: HTTPException when it is none;
    what stands behind a malformed line would be ignored, so there may be no such line.
    """
    status = _STATUS.match(text)
    if status is None:
        raise HTTPException("no status line")
    headers: HTTPMessage = Parser(_class=HTTPMessage).parsestr(text[status.end() :].decode("iso-8859-1"))
    try:
        assert_header_parsing(headers)
    except HeaderParsingError as exc:
        raise HTTPException("malformed headers") from exc
    return status[1], int(status[2]), headers


def interim(status: int) -> bool:
    """Say whether another answer follows this one (RFC 9110, 15.2); none does when the protocol is switched."""
    return status < 200 and status != _SWITCHING
