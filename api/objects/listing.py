"""The query of `GET /DM/info`: filters, sorting and pages, strict about every name and value."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from datamanager.domain.location import normalised_prefix
from datamanager.domain.states import ObjectStatus
from datamanager.domain.timing import read_time
from datamanager.errors import InvalidRequest, PathNotAllowed
from datamanager.machines import Machines
from models.objects.catalogue import SORTABLE, Selection

LIMIT_DEFAULT = 1000
LIMIT_MAX = 10_000
METADATA = "metadata."

PARAMETERS: dict[str, str] = {
    "machine": "Objects on this machine.",
    "group": "Objects of this group.",
    "status": f"One of {', '.join(ObjectStatus)}.",
    "originator": "Objects that came from here.",
    "filename": "A glob over the file's name: `*` any text, `?` any one character.",
    "path": "Objects in this directory or below, relative to its machine's base_dir or (with `machine`) absolute.",
    "since": "Registered at this time or later; RFC 3339 with a zone, such as 2026-01-31T12:00:00Z.",
    "until": "Registered before this time; RFC 3339 with a zone.",
    "metadata.KEY": "Objects whose metadata has this text under KEY; may be given several times.",
    "sort": f"One of {', '.join(SORTABLE)}; descending with `-` in front. Default date_registered.",
    "limit": f"Objects in a page, 1 to {LIMIT_MAX}; default {LIMIT_DEFAULT}.",
    "cursor": "Where the page before ended; taken from its `Link` header.",
}

_METADATA_KEY = re.compile(r'[^"\\\x00-\x1f]{1,255}')


def selection_of(items: Iterable[tuple[str, str]], machines: Machines) -> Selection:
    """Read query parameters. Raises: InvalidRequest, which names each one that is unknown or wrong."""
    given: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    wrong: dict[str, str] = {}
    for name, value in items:
        if "\0" in value:
            wrong[name] = "must not hold a NUL character"
        elif name.startswith(METADATA):
            key = name.removeprefix(METADATA)
            if _METADATA_KEY.fullmatch(key):
                metadata[key] = value
            else:
                wrong[name] = "a key has 1 to 255 characters without quotes, backslashes and control characters"
        elif name not in PARAMETERS:
            wrong[name] = f"unknown; known: {', '.join(PARAMETERS)}"
        elif name in given:
            wrong[name] = "may be given once"
        else:
            given[name] = value
    for name, read in READERS.items():
        if name in given:
            try:
                given[name] = read(given[name])
            except ValueError as exc:
                wrong[name] = str(exc)
    prefix = None
    if "path" in given:
        name = given.get("machine", "")
        # an unknown machine is no error: its objects are still listed
        machine = machines[name] if name in machines else None  # noqa: SIM401 - get raises UnknownMachine
        try:
            prefix = normalised_prefix(machine, given.pop("path"))
        except PathNotAllowed as exc:
            wrong["path"] = exc.detail
    if wrong:
        raise InvalidRequest("; ".join(f"{name}: {what}" for name, what in wrong.items()), wrong)
    return Selection(path_prefix=prefix, metadata=metadata, **given)


def _status(value: str) -> ObjectStatus:
    try:
        return ObjectStatus(value.upper())
    except ValueError:
        raise ValueError(f"must be one of {', '.join(ObjectStatus)}") from None


def _limit(value: str) -> int:
    if not (value.isascii() and value.isdecimal() and len(value) <= 9 and 1 <= int(value) <= LIMIT_MAX):
        raise ValueError(f"must be a number from 1 to {LIMIT_MAX}")
    return int(value)


def _sort(value: str) -> str:
    if value.removeprefix("-") not in SORTABLE:
        raise ValueError(f"must be one of {', '.join(SORTABLE)}, with '-' in front for descending")
    return value


READERS: dict[str, Callable[[str], object]] = {
    "status": _status,
    "since": read_time,
    "until": read_time,
    "limit": _limit,
    "sort": _sort,
}
"""How a parameter's text becomes its value; raises ValueError. The others are texts."""
