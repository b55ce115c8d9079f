"""What the fields of a request may hold: texts and JSON, times, durations, sizes and rates.

A form can't leave out what it shows, so an empty field means its default. A number in a form is written as JSON writes
it: in digits, without blanks, underscores and a plus; a boolean is no number, 5.0 no whole one. JSON values are such
that every database, every client and our own listing can read them back: PostgreSQL has no NUL and no lone surrogates
in texts, JSON itself no NaN, and readers no numbers beyond 64 bits. One such value would break listings and filters
over all rows.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter

from datamanager.errors import InvalidRequest
from datamanager.machines import BYTE_UNITS, Rate, VerifyPolicy

SIZE_MAX = 2**63 - 1
TEXT_MAX = 65_536
DEPTH_MAX = 32
"""Levels of nested JSON."""
NAME_SHOWN = 100
"""Characters of an unknown name that are shown."""

TIME_WANTED = "must be RFC 3339 with a zone, such as 2026-01-31T12:00:00Z"
FURTHEST = timedelta(days=3650)
"""How far ahead a moment may be that is given as a duration."""
LONGEST = timedelta(days=365 * 100)
DURATION_WANTED = 'must be a duration such as "30d", "12h", "2w" or "P1Y" of at most 100 years'
SIZE_WANTED = 'must be bytes, as a number or like "1MiB"'

WHOLE_WANTED = "must be a whole number, in digits"
DECIMAL_WANTED = "must be a number, such as 0.5"

_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d(?:\.\d{1,6})?)([Zz]|[+\- ]\d\d:\d\d)", re.ASCII)
_SHORT = re.compile(r"(\d{1,9})\s*(s|m|min|h|d|w|y)", re.ASCII)
_WHOLE = re.compile(r"-?[0-9]{1,20}")
_DECIMAL = re.compile(r"-?[0-9]{1,20}(?:\.[0-9]{1,20})?(?:[eE][+-]?[0-9]{1,3})?")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_ISO = re.compile(r"P(?=[\dT])[\dYMWDTHS.]+")
_READ_ISO = TypeAdapter(timedelta)
_SIZE = re.compile(r"([0-9]{1,19})(?:\s*B)?|([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([kKMGTP]i?)B?")


class Priority(StrEnum):
    """Which transfers are taken first: all of the one before any of the next, however long those wait."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


def empty_is(default: object, **schema: Any) -> BeforeValidator:
    """Read an empty field, and null, as `default`; `schema` is for BeforeValidator."""
    return BeforeValidator(lambda value: default if value is None or value == "" else value, **schema)


def read_whole(value: object) -> int:
    """Read a whole number, of its digits where a form brings it. Raises: ValueError."""
    if isinstance(value, str) and _WHOLE.fullmatch(value):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(WHOLE_WANTED)
    return value


def read_positive(value: object) -> int | None:
    """Read a whole number of which none, an empty one and 0 mean that it is not known. Raises: ValueError."""
    return None if value is None or value == "" else read_whole(value) or None


def read_decimal(value: object) -> float:
    """Read a number, of its text (as JSON writes it) where a form brings it. Raises: ValueError."""
    if isinstance(value, str) and _DECIMAL.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not -SIZE_MAX <= value <= SIZE_MAX:
        raise ValueError(DECIMAL_WANTED)
    return float(value)


def unknown_name(name: str, known: Iterable[str]) -> str:
    """Say that a field, parameter or option is unknown, and which known one is nearest to it, or which there are."""
    names = sorted(known)
    near = difflib.get_close_matches(name[:NAME_SHOWN].lower(), names, n=1)
    if near:
        return f"unknown; did you mean {near[0]}?"
    return f"unknown; known: {', '.join(names)}" if names else "unknown; there are no fields here"


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


def require_metadata_fits(metadata: dict[str, Any], most: int) -> None:
    """Refuse metadata of more than `most` bytes of JSON: each listing repeats it. Raises: InvalidRequest."""
    size = len(json.dumps(metadata, ensure_ascii=False, separators=(",", ":")).encode())
    if size > most:
        raise InvalidRequest.of({"metadata": f"has {size} bytes of JSON; at most {most} are kept (DM_MAX_METADATA)"})


def read_json_object(value: object) -> object:
    """Read a JSON object, of its text where a form brings it; null or empty: {}. Raises: ValueError."""
    if value is None or value == "":
        return {}
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise ValueError('must be a JSON object such as {"key": "value"}')
    return value


def read_time(text: str) -> datetime:
    """Read an RFC 3339 time with a zone (section 5.6). Raises: ValueError, which says what is required."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(TIME_WANTED)
    day, clock, zone = match.groups()
    # a plus that was not escaped in a form or a query arrives as a blank
    zone = "+00:00" if zone in "Zz" else zone.replace(" ", "+")
    try:
        return datetime.fromisoformat(f"{day}T{clock}{zone}").astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(TIME_WANTED) from None


def read_duration(value: object) -> timedelta:
    """Read a duration: a number with a unit (s, min or m, h, d, w, y of 365 days) or ISO 8601. Raises: ValueError."""
    if isinstance(value, str):
        text = value.strip()
        if (match := _SHORT.fullmatch(text)) is None:
            value = _iso_duration(text)
        elif (seconds := int(match[1]) * _SECONDS[match[2]]) <= LONGEST.total_seconds():
            value = timedelta(seconds=seconds)
    return _bounded(value, LONGEST, DURATION_WANTED)


def read_size(value: object) -> int:
    """Read a size in bytes: a whole number, or text with a unit. Raises: ValueError."""
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)) is not None:
        value = int(match[1]) if match[1] else int(Decimal(match[2]) * BYTE_UNITS[match[3]])
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= SIZE_MAX:
        raise ValueError(SIZE_WANTED)
    return value


def duration_text(value: timedelta) -> str:
    """Say a duration in the largest unit that it is a whole number of."""
    seconds = int(value.total_seconds())
    for unit, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if seconds and seconds % size == 0:
            count = seconds // size
            return f"{count:,} {unit}{'' if count == 1 else 's'}"
    return f"{seconds:,} second{'' if seconds == 1 else 's'}"


def size_text(value: int) -> str:
    """Say a size in the largest binary unit that it is a whole number of."""
    for unit, size in (("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if value and value % size == 0:
            return f"{value // size:,} {unit}"
    return f"{value:,} bytes"


def _wrong_text(text: str) -> str | None:
    if "\0" in text:
        return "must not contain a NUL character"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return "must be valid Unicode"
    return None


def _moment(value: object) -> datetime | timedelta | None:
    if value is None or value == "":
        return None
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    if isinstance(value, timedelta):
        return _bounded(value, FURTHEST, f"must be a duration of at most {FURTHEST.days} days")
    if not isinstance(value, str):
        raise ValueError(f"{TIME_WANTED}, or a duration from now such as PT1H")
    if not value.startswith("P"):
        return read_time(value)
    found = None if "Y" in value else _iso_duration(value)
    return _bounded(found, FURTHEST, "must be an ISO 8601 duration of at most ten years, such as PT1H or P2D")


def _iso_duration(text: str) -> timedelta | None:
    try:
        return _READ_ISO.validate_python(text) if _ISO.fullmatch(text) else None
    except (ValueError, OverflowError):
        return None


def _bounded(value: object, longest: timedelta, wanted: str) -> timedelta:
    if not isinstance(value, timedelta) or not timedelta(0) <= value <= longest:
        raise ValueError(wanted)
    return value


Text = Annotated[str, Field(max_length=TEXT_MAX)]
Name = Annotated[str, Field(min_length=1)]
OptionalName = Annotated[Name | None, empty_is(None)]
Protocol = Annotated[Text, empty_is("")]
"""Of a download; empty: its URL's scheme."""
JsonObject = Annotated[dict[str, Any], BeforeValidator(read_json_object)]
Whole = Annotated[int, BeforeValidator(read_whole)]
Real = Annotated[float, BeforeValidator(read_decimal)]
Size = Annotated[Annotated[int, Field(ge=0, le=SIZE_MAX)] | None, BeforeValidator(read_positive)]
"""Bytes; absent, empty or 0 means unknown (what the seed's clients send)."""
Bytes = Annotated[int, BeforeValidator(read_size, json_schema_input_type=int | str)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]
Verify = Annotated[VerifyPolicy | None, empty_is(None)]
Bandwidth = Annotated[Rate | None, empty_is(None)]
"""Bytes per second, also as text with a unit; null or empty: no limit of its own."""
Rank = Annotated[Priority, empty_is(Priority.NORMAL)]
Moment = Annotated[datetime | timedelta | None, BeforeValidator(_moment)]
"""A time with a zone (RFC 3339), or a duration from the request's arrival on (ISO 8601, such as PT1H)."""
Duration = Annotated[timedelta, BeforeValidator(read_duration, json_schema_input_type=str)]
Expiry = Annotated[
    datetime | None, BeforeValidator(lambda v: read_time(v) if isinstance(v, str) else v), empty_is(None)
]
"""A time with a zone (RFC 3339); null or empty: never."""
Lifetime = Annotated[Duration | None, empty_is(None, json_schema_input_type=str | None)]
"""A duration from the request's arrival on, such as 30d or P30D; null or empty: for ever."""
