"""Durations and sizes as people write them in rules and lifetimes: `30d`, `P30D`, `1MiB`, 1048576."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Annotated

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError

from datamanager.domain.forms import empty_is
from datamanager.domain.timing import read_time

LONGEST = timedelta(days=365 * 100)
DURATION_WANTED = 'must be a duration such as "30d", "12h", "2w" or "P1Y" of at most 100 years'
SIZE_WANTED = 'must be bytes, as a number or like "1MiB"'

_SHORT = re.compile(r"(\d{1,9})\s*(s|m|min|h|d|w|y)")
_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
_ISO = re.compile(r"P(?=[\dT])[\dYMWDTHS.]+")
_READ_ISO = TypeAdapter(timedelta)
_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,9})?)\s*([kKMGTP]?i?)B?")
_UNITS = {"": 1} | {
    f"{letter}{i}": (1024 if i else 1000) ** power
    for power, letters in enumerate(("kK", "M", "G", "T", "P"), 1)
    for letter in letters
    for i in ("", "i")
}


def read_duration(value: object) -> timedelta:
    """Read a duration: a number with a unit (s, min or m, h, d, w, y of 365 days) or ISO 8601. Raises: ValueError."""
    if isinstance(value, timedelta):
        return _bounded(value)
    if not isinstance(value, str):
        raise ValueError(DURATION_WANTED)
    text = value.strip()
    match = _SHORT.fullmatch(text)
    if match is not None:
        seconds = int(match[1]) * _SECONDS[match[2]]
        if seconds > LONGEST.total_seconds():
            raise ValueError(DURATION_WANTED)
        return timedelta(seconds=seconds)
    if not _ISO.fullmatch(text):
        raise ValueError(DURATION_WANTED)
    try:
        return _bounded(_READ_ISO.validate_python(text))
    except (ValidationError, ValueError, OverflowError):
        raise ValueError(DURATION_WANTED) from None


def read_size(value: object) -> int:
    """Read a size in bytes: a whole number, or text with a unit. Raises: ValueError."""
    if isinstance(value, bool):
        raise ValueError(SIZE_WANTED)
    if isinstance(value, str):
        match = _SIZE.fullmatch(value.strip())
        if match is None or match[2] == "i":
            raise ValueError(SIZE_WANTED)
        value = int(Decimal(match[1]) * _UNITS[match[2]])
    if not isinstance(value, int) or not 0 <= value < 2**63:
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


def _bounded(value: timedelta) -> timedelta:
    if not timedelta(0) <= value <= LONGEST:
        raise ValueError(DURATION_WANTED)
    return value


def _time(value: object) -> object:
    return read_time(value) if isinstance(value, str) else value


Duration = Annotated[timedelta, BeforeValidator(read_duration, json_schema_input_type=str)]
Bytes = Annotated[int, BeforeValidator(read_size, json_schema_input_type=int | str)]
Count = Annotated[int, Field(ge=0, le=2**31 - 1, strict=True)]
Expiry = Annotated[datetime | None, BeforeValidator(_time), empty_is(None)]
"""A time with a zone (RFC 3339); null or empty: never."""
Lifetime = Annotated[Duration | None, empty_is(None, json_schema_input_type=str | None)]
"""A duration from the request's arrival on, such as 30d or P30D; null or empty: for ever."""
