"""The chain of the audit trail: what is hashed of a row, and what a chain tells of rows that are not as they were.

The hash of a row is SHA-256 over the 64 hex digits of the hash before it, a line feed, and the row's record as
canonical JSON: members by name, no blanks, ASCII; those that are null are left out, so that a column that comes later
changes no old hash. Strings, whole numbers and objects of these are all there is (a subset of RFC 8785). Before the
first row there are 64 zeros.
(Haber, Stornetta, "How to time-stamp a digital document", 1991; Schneier, Kelsey, "Secure audit logs", 1999.)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

ZEROS = "0" * 64
HASHED = (
    *("number", "time", "person", "means", "credential", "origin", "request_id", "action", "object_id", "transfer_id"),
    *("subject", "outcome", "code", "acted_as", "certificate", "counts"),
)
"""The columns of a row that are hashed."""
Record = Mapping[str, Any]
"""A row as it is hashed and exported, and its `hash`."""


@dataclass(frozen=True, slots=True)
class Link:
    """A row's place in the chain, and its hash."""

    number: int = 0
    hash: str = ZEROS


class FlawKind(StrEnum):
    """What is wrong with a chain."""

    REMOVED = "removed"
    """Rows are missing: `number` to `last`."""
    CHANGED = "changed"
    """The row is not what was linked after the one before it: it was changed, or came to another place."""
    INSERTED = "inserted"
    """The row has a place that the service has given to none."""
    CUT = "cut"
    """The chain does not end as the service has noted: its newest rows, or that note, were changed."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """A flaw, and the row with it: its `number`, its `record` if there is one; of REMOVED `last` is the last one."""

    kind: FlawKind
    number: int
    last: int
    record: Record | None = None


def record_of(row: Any, number: int | None = None) -> dict[str, Any]:
    """Return the record of a row, with its hash if it has one; `number` is the place it gets, if it has none yet."""
    record = {name: _plain(getattr(row, name)) for name in HASHED}
    if number is not None:
        record["number"] = number
    return {name: value for name, value in (*record.items(), ("hash", row.hash)) if value is not None}


def hash_of(before: str, record: Record) -> str:
    """Return the hash of a record that comes after the one with the hash `before`; its own `hash` is not looked at."""
    hashed = {name: value for name, value in record.items() if name != "hash"}
    canonical = json.dumps(hashed, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(f"{before}\n{canonical}".encode("ascii")).hexdigest()


def flaws_of(records: Iterable[Record], first: Link, last: Link) -> Iterator[Flaw]:
    """Yield what is wrong with a chain, by number: its records by number, that come after `first` up to `last`.

    Each row is compared with the hash that the one before it has now, so one that was changed is named alone; if its
    hash was made anew too, the one behind it is named.
    """
    before = first
    for record in records:
        number = int(record["number"])
        if number <= first.number or number > last.number:
            yield Flaw(FlawKind.INSERTED, number, number, record)
            continue
        missing = number > before.number + 1
        if missing:
            yield Flaw(FlawKind.REMOVED, before.number + 1, number - 1)
        if not missing and record.get("hash") != hash_of(before.hash, record):
            yield Flaw(FlawKind.CHANGED, number, number, record)
        before = Link(number, str(record.get("hash", "")))
    if before.number < last.number:
        yield Flaw(FlawKind.REMOVED, before.number + 1, last.number)
    elif before != last:
        yield Flaw(FlawKind.CUT, before.number, before.number)


def _plain(value: Any) -> Any:
    """Return what JSON has for a column's value."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds")
    return value if value is None or isinstance(value, str | int | dict) else str(value)
