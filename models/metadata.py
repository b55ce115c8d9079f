"""An object's metadata: JSON that every database, every client and our own listing can read back."""

from __future__ import annotations

import math
from typing import Any

from datamanager.errors import InvalidRequest

DEPTH_MAX = 32


def require_storable(metadata: dict[str, Any]) -> None:
    """Check that the metadata can be stored and read again.

    JSON that Python reads may hold what others can't: PostgreSQL has no NUL and no lone surrogates in texts, JSON
    itself no NaN, and readers no numbers beyond 64 bits. One such row would break listings and filters over all rows.

    Raises: InvalidRequest.
    """
    wrong = _wrong(metadata, 1)
    if wrong is not None:
        raise InvalidRequest(f"metadata: {wrong}", {"metadata": wrong})


def _wrong(value: object, depth: int) -> str | None:
    if depth > DEPTH_MAX:
        return f"must not be nested deeper than {DEPTH_MAX}"
    match value:
        case str():
            return _wrong_text(value)
        case bool() | None:
            return None
        case int():
            return None if -(2**63) <= value < 2**63 else "integers must fit into 64 bits"
        case float():
            return None if math.isfinite(value) else "NaN and Infinity are no JSON"
        case dict():
            parts = [*value.keys(), *value.values()]
        case list():
            parts = value
        case _:
            return "must be JSON"
    return next((wrong for part in parts if (wrong := _wrong(part, depth + 1)) is not None), None)


def _wrong_text(text: str) -> str | None:
    if "\0" in text:
        return "must not hold a NUL character"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "must be valid Unicode"
    return None
