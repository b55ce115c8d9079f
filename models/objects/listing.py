"""Objects, listed: a page of a selection, or all of them, page by page."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, and_, func, select
from sqlalchemy.orm import Session
from sqlalchemy.sql.functions import FunctionElement

from datamanager.domain.states import ObjectStatus
from datamanager.errors import InvalidRequest
from models.access.visibility import ALL, Visible
from models.core.bounded_pages import Narrow, Search, bounded_page, by_indexes, merged_page
from models.core.cursors import ROWS, Order, Rendering, ordered_page
from models.database import Database
from models.objects.filters import (
    below,
    glob_range,
    group_key,
    member_equals,
    member_narrows,
    name_fits,
    name_narrows,
    narrow,
    storable_text,
    zoned_time,
)
from models.tables import DataObject
from models.tables.objects import ORIGINATOR_KEY, SIZE_KEY, TEXT_INDEXED

STREAM_CHUNK = 500
MERGED_MAX = 50
"""Groups whose lists are merged; of more a list looks at all objects."""
LIMIT_MAX = 100_000
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


def every_page(database: Database, visible: Visible, rendering: Rendering) -> Iterator[list[Any]]:
    """Yield all objects that are seen and registered at the first page, oldest first, in pages; none for an empty
    catalogue.

    Each page is read in a transaction of its own, as it is at that moment: whoever takes the pages slowly keeps neither
    a connection nor a snapshot of the catalogue. An object comes once. A page may be empty. Raises:
    CatalogueUnavailable.
    """
    with database.read() as session:
        last = session.scalar(select(func.max(DataObject.date_registered)))
    if last is None:
        return
    # not by the clock: that of the host may have been set back since
    selection = Selection(until=last + timedelta(microseconds=1), limit=STREAM_CHUNK)
    while True:
        with database.read() as session:
            rows, cursor = select_objects(session, selection, visible, rendering)
        yield rows
        if cursor is None:
            return
        selection = replace(selection, cursor=cursor)


def select_objects(
    session: Session, selection: Selection, visible: Visible, rendering: Rendering = ROWS
) -> tuple[list[Any], str | None]:
    """Return one page of objects, shown as `rendering` says, and the cursor of the next one (None at the end).

    With filters a page may be short, or empty, although there is a next one (`models.core.bounded_pages`).

    Raises: InvalidRequest for a bad cursor, limit, sort key or value.
    """
    name = selection.sort.removeprefix("-")
    if name not in SORTABLE:
        wanted = f"one of {', '.join(SORTABLE)}"
        raise InvalidRequest(f"sort: {name!r} is not {wanted}", {"sort": wanted})
    if not 1 <= selection.limit <= LIMIT_MAX:
        raise InvalidRequest(f"limit: must be 1 to {LIMIT_MAX}", {"limit": f"1 to {LIMIT_MAX}"})
    if visible.nothing:
        return [], None
    groups = visible.groups
    if groups is not None and selection.group is None and len(groups) <= MERGED_MAX:
        searches = [search_of(session, replace(selection, group=group)) for group in sorted(groups)]
        if len(searches) > 1 and not any(one.fits for one in searches):
            return merged_page(session, searches, selection.limit, selection.cursor, rendering)
    search = search_of(session, selection, visible)
    if search.fits:
        return bounded_page(session, search, selection.limit, selection.cursor, rendering)
    by_indexes(session)
    query = select(DataObject).where(*search.within)
    return ordered_page(session, query, search.order, selection.limit, selection.cursor, rendering)


_ORDERS: dict[str, tuple[Any, ...]] = {
    "date_registered": (DataObject.date_registered,),
    "date_modified": (DataObject.date_modified,),
    "filename": (DataObject.filename,),
    "size": (SIZE_KEY,),
    # many objects have one value of these: they come in the order of the index that serves the filter too
    "machine": (DataObject.machine, DataObject.date_registered),
    "group": (DataObject.group, DataObject.date_registered),
    "status": (DataObject.status, DataObject.date_registered),
}
_INDEXED = (("group",), ("originator",), ("machine", "status"), ("machine",), ("status",))
"""The filters whose values indexes begin with that go on by date of registration."""


def search_of(session: Session, selection: Selection, visible: Visible = ALL) -> Search:
    """Return what a selection looks for, of what is seen. Raises: InvalidRequest for a value that no row can have."""
    groups = visible.groups or ()
    if selection.group in groups:
        visible = ALL
    elif selection.group is None and len(groups) == 1:  # as a filter for it: found by the same index
        selection, visible = replace(selection, group=next(iter(groups))), ALL
    sort = selection.sort.removeprefix("-")
    equal, dates = _equal(session, selection), _dates(selection)
    indexes = [names for names in _INDEXED if equal.keys() >= set(names)]
    # what few objects have of one, fewer have of both
    indexes = [names for names in indexes if not any(set(names) < set(more) for more in indexes)]
    begun: tuple[str, ...] = (sort,) if sort in equal else ()
    if sort == "date_registered":
        begun = next(iter(indexes), ())
    within = [equal[name][1] for name in begun]
    fits = [exact for name, (exact, indexed) in equal.items() if name not in begun or exact is not indexed]
    narrows = list[Narrow]()
    if selection.metadata:
        fits += [member_equals(session, key, value) for key, value in selection.metadata.items()]
        narrows += member_narrows(session, selection.metadata)
    if selection.filename is not None:
        named = name_fits(selection.filename)
        fits.append(named)
        within += glob_range(selection.filename) if sort == "filename" else []
        narrows += name_narrows(session, selection.filename, named)
    if selection.path_prefix:
        exact, below_it = below(selection.path_prefix)
        fits += exact
        narrows.append(below_it)
    fits += visible.objects()
    narrows += _seen_by_indexes(visible)
    narrows += [narrow(and_(*(equal[name][1] for name in names), *dates)) for names in indexes if names != begun]
    if sort == "date_registered":
        within += dates
    elif dates:
        fits += dates
        narrows.append(narrow(and_(*dates)))
    columns = _ORDERS[sort]
    if sort == "group":
        columns = group_key(session), *columns[1:]
    if begun == (sort,):  # of one value: what comes after it is the order
        columns = columns[1:]
    return Search(DataObject, Order(selection.sort, (*columns, DataObject.id)), within, fits, narrows)


def _equal(session: Session, selection: Selection) -> dict[str, tuple[ColumnElement[bool], ColumnElement[bool]]]:
    """Return the filters for one value, by name: the condition, and what an index knows of it (itself, if that is
    all).
    """
    found = {}
    keys = {"machine": DataObject.machine, "group": group_key(session), "originator": ORIGINATOR_KEY}
    for name, key in keys.items():
        value = getattr(selection, name)
        if value is not None:
            exact = getattr(DataObject, name) == storable_text(name, value)
            # of a longer text the index has the beginning
            indexed = key == value[:TEXT_INDEXED] if isinstance(key, FunctionElement) else exact
            found[name] = (indexed if len(value) < TEXT_INDEXED else exact), indexed
    if selection.status is not None:
        found["status"] = (DataObject.status == selection.status.value,) * 2
    return found


def _seen_by_indexes(visible: Visible) -> list[Narrow]:
    """Return by which indexes objects are found that may be seen."""
    if visible.own:
        return [narrow(DataObject.created_by == visible.person)]
    if visible.groups is not None:
        return [narrow(DataObject.group.in_(sorted(visible.groups)))]
    return []


def _dates(selection: Selection) -> list[ColumnElement[bool]]:
    registered = DataObject.date_registered
    since = [] if selection.since is None else [registered >= zoned_time("since", selection.since)]
    return since if selection.until is None else [*since, registered < zoned_time("until", selection.until)]
