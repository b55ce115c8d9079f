"""Recurring downloads: when, from where to where as templates of the time, and how many versions are kept.

A template holds the scheduled time in UTC: `{date:%Y%m%d}`, `{date:%H}`, or a time before or after it:
`{date-6h:%Y%m%d%H}`, `{date+1d:%j}`.
"""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from datamanager.domain.fields import (
    TIME_WANTED,
    JsonObject,
    Name,
    Priority,
    Protocol,
    Rank,
    Text,
    Verify,
    Whole,
    empty_is,
    read_time,
)
from datamanager.domain.requests import GetExternalRequest, Request

KEEP_MAX = 10_000
SHORTEST, LONGEST = timedelta(minutes=1), timedelta(days=366)
OFFSET_MAX = timedelta(days=3660)

_DATE = re.compile(r"\{date(?:(?P<sign>[+-])(?P<count>[0-9]{1,6})(?P<unit>[mhdw]))?:(?P<format>[^{}]*)\}")
_DIRECTIVE = re.compile(r"%(.)", re.DOTALL)
_KNOWN = frozenset("YmdHMSjyGVu%")
"""Directives of strftime that stand for digits alone, whatever the locale."""
_INTERVAL = re.compile(r"([0-9]{1,6})\s*([mhdw])")
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}
_CRON = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))
_DAYS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)
_CRON_PART = re.compile(r"(?:\*|([0-9]{1,2})(?:-([0-9]{1,2}))?)(?:/([0-9]{1,2}))?")

TEMPLATE_WANTED = "a time must be like {date:%Y%m%d} or {date-6h:%H}; directives: " + " ".join(
    f"%{one}" for one in sorted(_KNOWN)
)
INTERVAL_WANTED = "must be a number and m, h, d or w, such as 6h; at least 1m, at most 366d"
CRON_WANTED = (
    "must be five fields of numbers, such as 0 */6 * * *: minute, hour, day, month, weekday; UTC; "
    "a day that its months have"
)


def filled(template: str, moment: datetime) -> str:
    """Return a template with the times of `moment` (aware, UTC) in it. Raises: ValueError for a bad template."""

    def fill(match: re.Match[str]) -> str:
        time = moment
        if match["count"]:
            offset = int(match["count"]) * _UNITS[match["unit"]]
            if offset > OFFSET_MAX:
                raise ValueError(TEMPLATE_WANTED)
            try:
                time = moment + offset if match["sign"] == "+" else moment - offset
            except OverflowError:
                raise ValueError(f"{match[0]} of {moment:%Y-%m-%d} is not a valid time") from None
        form = match["format"]
        if not form or set(_DIRECTIVE.findall(form)) - _KNOWN or "%" in _DIRECTIVE.sub("", form):
            raise ValueError(TEMPLATE_WANTED)
        return time.strftime(form)

    if set(_DATE.sub("", template)) & set("{}"):
        raise ValueError(TEMPLATE_WANTED)
    return _DATE.sub(fill, template)


def has_date(template: str) -> bool:
    """Say whether a template has a time in it."""
    return _DATE.search(template) is not None


def read_interval(text: str) -> timedelta:
    """Read an interval. Raises: ValueError."""
    match = _INTERVAL.fullmatch(text.strip())
    found = int(match[1]) * _UNITS[match[2]] if match is not None else timedelta(0)
    if not SHORTEST <= found <= LONGEST:
        raise ValueError(INTERVAL_WANTED)
    return found


def checked_cron(text: str) -> str:
    """Return a cron line of five numeric fields, its blanks made one. Raises: ValueError.

    A day that none of its months has is refused too: Prefect would make no runs then, for any schedule.
    """
    fields = text.split()
    if len(fields) != len(_CRON):
        raise ValueError(CRON_WANTED)
    values: list[set[int]] = []
    for field, (lowest, highest) in zip(fields, _CRON, strict=True):
        values.append(set())
        for part in field.split(","):
            match = _CRON_PART.fullmatch(part)
            if match is None:
                raise ValueError(CRON_WANTED)
            first, last, step = (None if number is None else int(number) for number in match.groups())
            numbers = [number for number in (first, last) if number is not None]
            if any(not lowest <= number <= highest for number in numbers) or step == 0 or numbers != sorted(numbers):
                raise ValueError(CRON_WANTED)
            first = lowest if first is None else first
            last = last if last is not None else highest if "*" in part or step else first
            values[-1].update(range(first, last + 1, step or 1))
    if not any(min(values[2]) <= _DAYS[month - 1] for month in values[3]):
        raise ValueError(CRON_WANTED)
    return " ".join(fields)


def _time_or_none(value: object) -> datetime | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise ValueError(TIME_WANTED)
    return read_time(value).replace(microsecond=0)


Optional = Annotated[Text | None, empty_is(None)]


class ScheduleRequest(Request):
    """Fetch a URL repeatedly. `url`, `path` and `filename` are templates."""

    url: Name
    protocol: Protocol = ""
    machine: Name
    path: Text = ""
    filename: Name
    interval: Annotated[Optional, Field(validate_default=True)] = None
    """Such as 6h: at 00, 06, 12 and 18 o'clock UTC."""
    cron: Optional = None
    """Instead of `interval`; UTC."""
    options: JsonObject = Field(default_factory=dict)
    """As of getexternal. Secrets only as `credential`."""
    keep: Annotated[Annotated[Whole, Field(ge=1, le=KEEP_MAX)] | None, empty_is(None)] = None
    """How many versions stay; older ones are deleted. Null: all."""
    skip_unchanged: Annotated[bool, empty_is(True)] = True
    """Fetch nothing while the source still has what the version before has."""
    description: Text = ""
    originator: Text = ""
    group: Text = ""
    metadata: JsonObject = Field(default_factory=dict)
    verify: Verify = None
    priority: Rank = Priority.NORMAL

    @field_validator("url", "path", "filename")
    @classmethod
    def _templates_can_be_filled(cls, value: str) -> str:
        filled(value, EXAMPLE)
        return value

    @field_validator("filename")
    @classmethod
    def _each_version_has_a_name(cls, value: str, others: ValidationInfo) -> str:
        if "/" in filled(value, EXAMPLE):
            raise ValueError("must be a file name without '/'; the directory belongs in path")
        if not has_date(value) and not has_date(others.data.get("path", "")):
            raise ValueError(
                "needs a time, such as {date:%Y%m%d%H}, here or in path: each version is a file of its own"
            )
        return value

    @field_validator("interval")
    @classmethod
    def _interval_can_be_read(cls, value: str | None) -> str | None:
        if value is not None:
            read_interval(value)
        return None if value is None else value.strip()

    @field_validator("cron")
    @classmethod
    def _cron_can_be_read(cls, value: str | None) -> str | None:
        return None if value is None else checked_cron(value)

    @field_validator("options")
    @classmethod
    def _versions_are_ours_to_name(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "if_newer_than" in value:
            raise ValueError("if_newer_than is set by the schedule itself; see skip_unchanged")
        if value.get("extract"):
            raise ValueError("extract creates many objects, but a schedule keeps versions of one; omit it")
        return value

    @model_validator(mode="after")
    def _one_rhythm(self) -> ScheduleRequest:
        if (self.interval is None) == (self.cron is None):
            raise ValueError("either interval or cron must be given")
        return self

    def at(self, moment: datetime, newer_than: str | None = None) -> GetExternalRequest:
        """Return the download of a moment. Raises: pydantic.ValidationError when the templates make no valid one."""
        options = {**self.options, **({"if_newer_than": newer_than} if newer_than else {})}
        shared = ("protocol", "machine", "description", "originator", "group", "metadata", "verify", "priority")
        return GetExternalRequest(
            url=filled(self.url, moment),
            path=filled(self.path, moment),
            filename=filled(self.filename, moment),
            options=options,
            **{name: getattr(self, name) for name in shared},
        )


class ScheduleRunRequest(Request):
    """Run a schedule outside its times: for a moment in the past, or now."""

    moment: Annotated[datetime | None, BeforeValidator(_time_or_none)] = None
    """The scheduled time that the templates are filled in with, RFC 3339 with a zone; null: now."""


EXAMPLE = datetime.fromisoformat("2026-01-31T18:00:00+00:00")
"""A moment to try templates with."""
