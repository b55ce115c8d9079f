"""The catalogue's objects: enter, look up, select.

Functions take the caller's session; those that change something want a writing one (`Database.write`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, Text, func, select
from sqlalchemy.orm import Session

from datamanager.domain.location import Place, split_dest
from datamanager.domain.requests import NewObject, RegisterRequest
from datamanager.domain.states import BundleStatus, ObjectStatus, Verified
from datamanager.errors import InvalidRequest, ObjectArchived, ObjectDeleted, ObjectNotFound, ObjectUnknown
from models.core.cursors import page_of
from models.core.outbox import post_object_events
from models.database import insert_rows, now, on_postgresql
from models.objects.claims import claim_place
from models.tables import Bundle, DataObject

STREAM_CHUNK = 500
LIMIT_MAX = 100_000
GLOB_MAX = 1000  # characters; a name has at most 255 bytes
SORTABLE = ("date_registered", "date_modified", "filename", "size", "machine", "group", "status")


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known of a file's bytes: size in bytes, `sha256:…` or None, and what was proved."""

    size: int | None
    checksum: str | None = None
    verified: Verified = Verified.NONE


@dataclass(frozen=True, slots=True)
class NewRow:
    """An object that is to be entered; `path` is its directory as the client gave it."""

    id: UUID
    place: Place
    facts: Facts
    path: str
    description: str
    originator: str
    group: str
    metadata: dict[str, Any]
    derived_from: UUID | None = None
    expires_at: datetime | None = None

    @classmethod
    def of_request(
        cls, new: UUID, place: Place, facts: Facts, request: NewObject, *, path: str | None = None, originator: str = ""
    ) -> NewRow:
        """Make the row of a file that a request describes; `originator` where it names none."""
        path, originator = request.path if path is None else path, request.originator or originator
        return cls(new, place, facts, path, request.description, originator, request.group, request.metadata)

    @classmethod
    def of_copy(cls, new: UUID, place: Place, facts: Facts, dest: str, source: Any) -> NewRow:
        """Make the row of a copy, with what it has from `source`, a row with the columns CARRIED; `dest` as the client
        gave it.
        """
        path = split_dest(dest)[0]
        return cls(new, place, facts, path, source.description, source.originator, source.group, source.meta, source.id)


CARRIED = (DataObject.id, DataObject.description, DataObject.originator, DataObject.group, DataObject.meta)
"""What a copy has from its source."""


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


def get_object(session: Session, object_id: UUID, *, lock: bool = False) -> DataObject:
    """Return an object. Raises: ObjectNotFound."""
    found = session.get(DataObject, object_id, with_for_update=lock or None, populate_existing=lock)
    if found is None:
        raise ObjectNotFound(f"no object has the identifier {object_id}")
    return found


def lock_object(session: Session, object_id: UUID) -> DataObject:
    """Return an object and keep others from claiming it until the transaction ends. Raises: ObjectNotFound.

    On SQLite the writing transaction itself excludes others.
    """
    return get_object(session, object_id, lock=True)


def require_usable(obj: DataObject, *, removing: bool = False) -> None:
    """Check that the object's file may be used; `removing`: or that there may be something of it to remove.

    Raises: ObjectDeleted, ObjectArchived, ObjectUnknown.
    """
    if obj.status == ObjectStatus.DELETED:
        raise ObjectDeleted(f"object {obj.id} was deleted")
    if obj.status == ObjectStatus.ARCHIVED and not removing:
        raise ObjectArchived(f"object {obj.id} is archived; activate it first")
    if obj.status == ObjectStatus.UNKNOWN and not removing:
        raise ObjectUnknown(f"the file of object {obj.id} was not found at its place")


def register_object(
    session: Session,
    request: NewObject,
    place: Place,
    facts: Facts,
    *,
    object_id: UUID | None = None,
    canonical: Place | None = None,
) -> UUID:
    """Enter a file and claim its place; return the identifier.

    `canonical` is claimed too when it differs: one file has one object, whatever links lead to it.

    Raises: DestinationExists.
    """
    new = object_id or uuid4()
    claim_place(session, place, object_id=new)
    if canonical is not None and canonical != place:
        claim_place(session, canonical, object_id=new)
    expires_at = request.ends(now(session)) if isinstance(request, RegisterRequest) else None
    row = NewRow.of_request(new, place, facts, request)
    add_objects(session, [replace(row, expires_at=expires_at)], "registered")
    return new


def add_objects(session: Session, rows: Sequence[NewRow], event: str) -> None:
    """Insert ACTIVE objects whose places are already claimed, and tell of them (`dm.object.{event}`)."""
    if not rows:
        return
    time = now(session)
    values = [
        {
            "id": row.id,
            "machine": row.place.machine,
            "path": row.path,
            "filename": row.place.name,
            "place": row.place.path,
            "description": row.description,
            "size": row.facts.size,
            "metadata": row.metadata,
            "date_registered": time,
            "date_modified": time,
            "status": ObjectStatus.ACTIVE.value,
            "originator": row.originator,
            "group": row.group,
            "checksum": row.facts.checksum,
            "verified": row.facts.verified.value,
            "derived_from": row.derived_from,
            "expires_at": row.expires_at,
        }
        for row in rows
    ]
    insert_rows(session, DataObject, values)
    told = (
        (
            row.id,
            {
                "machine": row.place.machine,
                "place": row.place.path,
                "size": row.facts.size,
                "checksum": row.facts.checksum,
                "group": row.group,
            },
        )
        for row in rows
    )
    post_object_events(session, event, told, time)


def relocate(obj: DataObject, place: Place, dest: str, time: datetime, facts: Facts) -> dict[str, Any]:
    """Give an object its new place after a move or a recall, which count as uses; `dest` as the client gave it. Return
    what events tell of it.
    """
    obj.machine = place.machine
    obj.path = split_dest(dest)[0]
    obj.filename = place.name
    obj.place = place.path
    obj.date_modified = obj.last_used = time
    obj.size = facts.size
    if facts.checksum is not None:  # a rename proves nothing new, and loses nothing either
        obj.checksum = facts.checksum
    if facts.verified is not Verified.NONE:
        obj.verified = facts.verified.value
    return told_of(obj)


def told_of(obj: DataObject) -> dict[str, Any]:
    """Return what events tell of an object."""
    return {"machine": obj.machine, "place": obj.place, "size": obj.size, "group": obj.group}


def given_path(obj: Any) -> str:
    """Return an object's directory and name as the client gave them; `obj` has its columns."""
    return f"{obj.path.rstrip('/')}/{obj.filename}" if obj.path else str(obj.filename)


def stream_all(session: Session) -> Generator[DataObject, None, None]:
    """Yield every object, oldest first, as the catalogue was at the first one, never holding more than a chunk.

    One statement in one transaction: a server-side cursor on PostgreSQL, a WAL snapshot on SQLite. Close it when you
    stop early.
    """
    query = select(DataObject).order_by(DataObject.date_registered, DataObject.id)
    with session.execute(query.execution_options(yield_per=STREAM_CHUNK)) as result:
        for obj in result.scalars():
            yield obj
            session.expunge(obj)


def select_objects(session: Session, selection: Selection) -> tuple[list[DataObject], str | None]:
    """Return one page and the cursor of the next one (None at the end).

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
    return page_of(session, query, column, selection.sort, selection.limit, selection.cursor)


def has_objects(session: Session, machine: str) -> bool:
    """Say whether the catalogue has objects on a machine whose files may be there (ACTIVE or UNKNOWN), or in bundles
    there.
    """
    there = (ObjectStatus.ACTIVE.value, ObjectStatus.UNKNOWN.value)
    query = select(DataObject.id).where(DataObject.machine == machine, DataObject.status.in_(there)).limit(1)
    bundle = select(Bundle.id).where(Bundle.machine == machine, Bundle.status == BundleStatus.SEALED.value).limit(1)
    return session.scalar(query) is not None or session.scalar(bundle) is not None


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
