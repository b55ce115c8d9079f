"""File names that a server suggests: read by RFC 6266, never used as they are."""

from __future__ import annotations

from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import Any

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
