"""The filters of lists of objects: what fits, and by which index the rows are found that may fit."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, Uuid, and_, column, func, literal, or_, select, table
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session

from datamanager.errors import InvalidRequest
from models.core.bounded_pages import Narrow
from models.database import on_postgresql
from models.tables import DataObject
from models.tables.objects import GROUP_KEY, METADATA_KEY, PLACE_INDEXED, PLACE_KEY, TEXT_INDEXED

GLOB_MAX = 1000  # characters; a name has at most 255 bytes
DIGITS_MAX = 18
"""Of a whole number that SQLite's table of members has as it is written."""

Conditions = list[ColumnElement[bool]]

# SQLite's own table (migration 0014)
_MEMBERS = table("object_metadata", column("key", Text), column("value", Text), column("object_id", Uuid))


def group_key(session: Session) -> Any:
    """Return what of a group the index of groups has."""
    return GROUP_KEY if on_postgresql(session) else DataObject.group


def narrow(condition: ColumnElement[bool]) -> Narrow:
    """Return a filter that an index of objects serves."""
    return Narrow(condition, select(DataObject.id).where(condition))


def name_fits(glob: str) -> ColumnElement[bool]:
    """Return the condition that a name fits a glob. Raises: InvalidRequest."""
    like = glob_to_like(storable_text("filename", glob, GLOB_MAX))
    return DataObject.filename.like(like, escape="\\")


def glob_to_like(glob: str) -> str:
    """Translate a shell glob (`*` and `?`) to LIKE with backslash as escape."""
    escaped = glob.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")


def glob_range(glob: str) -> Conditions:
    """Return what the beginning of a glob says of the names in the order of their bytes; nothing if it has none."""
    beginning = re.split(r"[*?]", glob, maxsplit=1)[0]
    if beginning == glob:
        # not equal: by a column of one value PostgreSQL takes a page's rows for unordered, and sorts them
        return [DataObject.filename >= glob, DataObject.filename <= glob]
    if not beginning:
        return []
    return [DataObject.filename >= beginning, *(DataObject.filename < end for end in _after_all(beginning))]


def _after_all(beginning: str) -> list[str]:
    """Return the first text after all that begin so, if there is one."""
    while beginning:
        head, last = beginning[:-1], ord(beginning[-1])
        if last < 0x10FFFF:
            following = 0xE000 if last == 0xD7FF else last + 1  # between them: no characters
            return [head + chr(following)]
        beginning = head
    return []


def name_narrows(session: Session, glob: str, fits: ColumnElement[bool]) -> list[Narrow]:
    """Return by which indexes names are found that fit a glob."""
    if ranged := glob_range(glob):
        return [narrow(and_(*ranged))]
    if not on_postgresql(session):  # the index of names has all of them, and little else
        return [Narrow(fits, select(DataObject.id).where(fits).order_by(DataObject.filename), kept=True)]
    # without three letters or digits in a row there is no trigram, and GIN would read all its entries
    trigrams = re.search(r"[^\W_]{3}", glob)
    there = trigrams and session.scalar(select(func.to_regclass("ix_objects_name"))) is not None
    return [Narrow(fits, select(DataObject.id).where(fits), at_once=True)] if there else []


def below(prefix: str) -> tuple[Conditions, Narrow]:
    """Return the condition that an object is below a directory, and the filter by which it is found.

    Raises: InvalidRequest.
    """
    storable_text("path", prefix)
    # all that begins with "prefix/": "0" is the character after "/"
    start, end = f"{prefix}/", f"{prefix}0"
    indexed = PLACE_KEY.between(start[:PLACE_INDEXED], end[:PLACE_INDEXED])
    return [DataObject.place > start, DataObject.place < end], narrow(indexed)


def member_equals(session: Session, key: str, value: str) -> ColumnElement[bool]:
    """Return the condition that a member of the metadata is, as text, `value`. Raises: InvalidRequest."""
    storable_text("metadata", key)
    storable_text(f"metadata.{key}", value)
    member: ColumnElement[str] = (
        DataObject.meta[key].as_string()
        if on_postgresql(session)
        else func.dm_json_member(DataObject.meta, key, type_=Text())
    )
    return member == value


def member_narrows(session: Session, members: dict[str, str]) -> list[Narrow]:
    """Return by which indexes objects are found that have these members, as far as an index tells."""
    if on_postgresql(session):
        held = [_holds(key, values) for key, value in members.items() if (values := _written(value))]
        return [Narrow(and_(*held), select(DataObject.id).where(*held), at_once=True)] if held else []
    entered = [_entered(key, value) for key, value in members.items() if _is_entered(value)]
    return [Narrow(DataObject.id.in_(_having_all(one, entered)), one) for one in entered]


def _holds(key: str, values: Sequence[Any]) -> ColumnElement[bool]:
    return or_(*(METADATA_KEY.contains(literal({key: value}, JSONB)) for value in values))


def _written(value: str) -> list[Any]:
    """Return what in a document may be `value` as text; nothing where the index says little."""
    parsed = _parsed(value)
    if isinstance(parsed, list | dict):
        return []
    return [value] if parsed is None or isinstance(parsed, str) else [value, parsed]


def _entered(key: str, value: str) -> Select[Any]:
    return select(_MEMBERS.c.object_id).where(_MEMBERS.c.key == key, _MEMBERS.c.value == value[:TEXT_INDEXED])


def _having_all(first: Select[Any], entered: Sequence[Select[Any]]) -> Select[Any]:
    """Return what `first` finds of that which all find; each of its rows is looked up in the others."""
    for one in entered:
        if one is not first:
            found = one.subquery()
            first = first.where(select(found).where(found.c.object_id == _MEMBERS.c.object_id).exists())
    return first


def _is_entered(value: str) -> bool:
    parsed = _parsed(value)
    if isinstance(parsed, int):
        return len(value) <= DIGITS_MAX
    return not isinstance(parsed, float | list | dict)


def _parsed(value: str) -> Any:
    """Return what JSON's text `value` says; None for null, for what is no JSON, and for numbers that JSON has not."""
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return None
    return None if isinstance(parsed, float) and not math.isfinite(parsed) else parsed


def storable_text(name: str, value: str, longest: int | None = None) -> str:
    """Refuse a text that no row can hold and that PostgreSQL doesn't take as a parameter."""
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise InvalidRequest(f"{name}: must be Unicode without NUL", {name: "Unicode without NUL"})
    if longest is not None and len(value) > longest:
        raise InvalidRequest(f"{name}: at most {longest} characters", {name: f"at most {longest} characters"})
    return value


def zoned_time(name: str, value: datetime) -> datetime:
    """Return a time in UTC. Raises: InvalidRequest for one without a zone, or out of range."""
    try:
        if value.tzinfo is not None:
            return value.astimezone(UTC)
    except OverflowError:
        pass
    raise InvalidRequest(f"{name}: must be a time with a zone", {name: "a time with a zone"})
