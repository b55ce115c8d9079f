"""Objects, listed: a page of a selection, or all of them, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Text, func, select
from sqlalchemy.orm import Session

from datamanager.domain.states import ObjectStatus
from datamanager.errors import InvalidRequest
from models.core.cursors import ROWS, Rendering, page_of
from models.database import Database, on_postgresql
from models.tables import DataObject

STREAM_CHUNK = 500
LIMIT_MAX = 100_000
GLOB_MAX = 1000  # characters; a name has at most 255 bytes
SORTABLE = ("date_registered", "date_modified", "filename", "size", "machine", "group", "status")


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects to list.

    `filename` is a glob (`*`, `?`); `path_prefix` a directory, normalised below base_dir; `metadata` compares members
    as text (5 is "5", true is "true"); `sort` is a key of SORTABLE, with `-` in front for descending, texts by their
    UTF-8 bytes and unknown sizes before all others; `cursor` is what the page before returned.
    """

    machine: str | None = None
    group: str | None = None
    status: ObjectStatus | None = None
    originator: str | None = None
    filename: str | None = None
    path_prefix: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    sort: str = "date_registered"
    limit: int = 1000
    cursor: str | None = None


def every_page(database: Database, rendering: Rendering) -> Iterator[list[Any]]:
    """Yield all objects that are registered at the first page, oldest first, in pages; none for an empty catalogue.

    Each page is read in a transaction of its own, as it is at that moment: whoever takes the pages slowly keeps neither
    a connection nor a snapshot of the catalogue. An object comes once. Raises: CatalogueUnavailable.
    """
    with database.read() as session:
        last = session.scalar(select(func.max(DataObject.date_registered)))
    if last is None:
        return
    # not by the clock: that of the host may have been set back since
    selection = Selection(until=last + timedelta(microseconds=1), limit=STREAM_CHUNK)
    while True:
        with database.read() as session:
            rows, cursor = select_objects(session, selection, rendering)
        yield rows
        if cursor is None:
            return
        selection = replace(selection, cursor=cursor)


def select_objects(session: Session, selection: Selection, rendering: Rendering = ROWS) -> tuple[list[Any], str | None]:
    """Return one page of objects, shown as `rendering` says, and the cursor of the next one (None at the end).

    Raises: InvalidRequest for a bad cursor, limit, sort key or value.
    """
    name = selection.sort.removeprefix("-")
    if name not in SORTABLE:
        wanted = f"one of {', '.join(SORTABLE)}"
        raise InvalidRequest(f"sort: {name!r} is not {wanted}", {"sort": wanted})
    if not 1 <= selection.limit <= LIMIT_MAX:
        raise InvalidRequest(f"limit: must be 1 to {LIMIT_MAX}", {"limit": f"1 to {LIMIT_MAX}"})
    column: ColumnElement[Any] = getattr(DataObject, name)
    if name == "size":
        column = func.coalesce(column, -1)  # a keyset has no place for NULL
    query = select(DataObject).where(*_conditions(session, selection))
    return page_of(session, query, column, selection.sort, selection.limit, selection.cursor, rendering)


def glob_to_like(glob: str) -> str:
    """Translate a shell glob (`*` and `?`) to LIKE with backslash as escape."""
    escaped = glob.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")


def _conditions(session: Session, selection: Selection) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    for name in ("machine", "group", "originator"):
        wanted = getattr(selection, name)
        if wanted is not None:
            conditions.append(getattr(DataObject, name) == _text(name, wanted))
    if selection.status is not None:
        conditions.append(DataObject.status == selection.status.value)
    if selection.filename is not None:
        pattern = glob_to_like(_text("filename", selection.filename, GLOB_MAX))
        conditions.append(DataObject.filename.like(pattern, escape="\\"))
    if selection.path_prefix:
        prefix = _text("path", selection.path_prefix)
        # all that begins with "prefix/": "0" is the character after "/"
        conditions += [DataObject.place > f"{prefix}/", DataObject.place < f"{prefix}0"]
    if selection.since is not None:
        conditions.append(DataObject.date_registered >= _time("since", selection.since))
    if selection.until is not None:
        conditions.append(DataObject.date_registered < _time("until", selection.until))
    for key, text in selection.metadata.items():
        member = _member(session, _text("metadata", key))
        conditions.append(member == _text(f"metadata.{key}", text))
    return conditions


def _member(session: Session, key: str) -> ColumnElement[str]:
    """Return a member of the metadata as text."""
    member: ColumnElement[str] = (
        DataObject.meta[key].as_string()
        if on_postgresql(session)
        else func.dm_json_member(DataObject.meta, key, type_=Text())
    )
    return member


def _text(name: str, value: str, longest: int | None = None) -> str:
    """Refuse a text that no row can hold and that PostgreSQL doesn't take as a parameter."""
    if "\0" in value or any("\ud800" <= char <= "\udfff" for char in value):
        raise InvalidRequest(f"{name}: must be Unicode without NUL", {name: "Unicode without NUL"})
    if longest is not None and len(value) > longest:
        raise InvalidRequest(f"{name}: at most {longest} characters", {name: f"at most {longest} characters"})
    return value


def _time(name: str, value: datetime) -> datetime:
    try:
        if value.tzinfo is not None:
            return value.astimezone(UTC)
    except OverflowError:
        pass
    raise InvalidRequest(f"{name}: must be a time with a zone", {name: "a time with a zone"})
