"""What a request's fields may hold, in forms and in JSON.

A form can't leave out what it shows, so an empty field means its default. JSON values are such that every database,
every client and our own listing can read them back: PostgreSQL has no NUL and no lone surrogates in texts, JSON itself
no NaN, and readers no numbers beyond 64 bits. One such value would break listings and filters over all rows.
"""

from __future__ import annotations

import math
from typing import Any

from pydantic import BeforeValidator

DEPTH_MAX = 32
"""Levels of nested JSON."""


def empty_is(default: object, **schema: Any) -> BeforeValidator:
    """Read an empty field, and null, as `default`; `schema` is for BeforeValidator."""
    return BeforeValidator(lambda value: default if value is None or value == "" else value, **schema)


def objection(value: object, depth: int = 1) -> str | None:
    """Say why a JSON value can't be stored, None when it can."""
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
            return None if math.isfinite(value) else "NaN and Infinity are not valid JSON"
        case dict():
            parts = [*value.keys(), *value.values()]
        case list():
            parts = value
        case _:
            return "must be JSON"
    return next((wrong for part in parts if (wrong := objection(part, depth + 1)) is not None), None)


def _wrong_text(text: str) -> str | None:
    if "\0" in text:
        return "must not contain a NUL character"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "must be valid Unicode"
    return None
