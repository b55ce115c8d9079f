"""When a transfer may begin and must have ended, and which goes first: what a request may say of it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, TypeAdapter, ValidationError

from datamanager.domain.forms import empty_is

WANTED = "must be RFC 3339 with a zone, such as 2026-01-31T12:00:00Z"
FURTHEST = timedelta(days=3650)
"""How far ahead a duration may point."""

_TIME = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d(?:\.\d{1,6})?)([Zz]|[+\- ]\d\d:\d\d)")
_DURATION = re.compile(r"P(?=[\dT])[\dDHMSTW.]+")
_READ_DURATION = TypeAdapter(timedelta)


class Priority(StrEnum):
    """Which transfers are taken first: all of the one before any of the next, however long those wait."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


def read_time(text: str) -> datetime:
    """Read an RFC 3339 time with a zone (section 5.6). Raises: ValueError, which says what is wanted."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(WANTED)
    day, clock, zone = match.groups()
    # a plus that was not escaped in a form or a query arrives as a blank
    zone = "+00:00" if zone in "Zz" else zone.replace(" ", "+")
    try:
        return datetime.fromisoformat(f"{day}T{clock}{zone}").astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(WANTED) from None


def _moment(value: object) -> datetime | timedelta | None:
    if value is None or value == "":
        return None
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC)
    if isinstance(value, timedelta):
        return _bounded(value)
    if not isinstance(value, str):
        raise ValueError(f"{WANTED}, or a duration from now such as PT1H")
    if not value.startswith("P"):
        return read_time(value)
    try:
        if not _DURATION.fullmatch(value):
            raise ValueError(value)
        return _bounded(_READ_DURATION.validate_python(value))
    except (ValidationError, ValueError):
        raise ValueError("must be an ISO 8601 duration of at most ten years, such as PT1H or P2D") from None


def _bounded(value: timedelta) -> timedelta:
    if not timedelta(0) <= value <= FURTHEST:
        raise ValueError(f"must be a duration of at most {FURTHEST.days} days")
    return value


Moment = Annotated[datetime | timedelta | None, BeforeValidator(_moment)]
"""A time with a zone (RFC 3339), or a duration from the request's arrival on (ISO 8601, such as PT1H)."""
Rank = Annotated[Priority, empty_is(Priority.NORMAL)]
