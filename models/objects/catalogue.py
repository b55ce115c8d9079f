"""The catalogue's objects: enter, look up, move; and their origins, as the sources described themselves then.

Functions take the caller's session; those that change something want a writing one (`Database.write`). Pages of objects
are in `models.objects.listing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from datamanager.domain.location import Place, split_dest
from datamanager.domain.requests import NewObject, RegisterRequest, TreeRequest
from datamanager.domain.states import BundleStatus, ObjectStatus, Verified
from datamanager.errors import ObjectArchived, ObjectDeleted, ObjectNotFound, ObjectUnknown
from datamanager.identity.grant import Grant
from models.access.permission import WRITE, maker, require_place
from models.access.visibility import ALL, Visible, find_seen
from models.core.identifiers import new_ids
from models.core.outbox import post_object_events
from models.database import now, storable
from models.many_rows import insert_many
from models.objects.bulk_claims import claim_places
from models.objects.claims import claim_place
from models.tables import Bundle, DataObject, Origin


class Facts(NamedTuple):
    """What is known of a file's bytes: size in bytes, `sha256:…` or None, and what was proved; `not_kept`: what of
    `mode`, `mtime` and `fsync` its machine does not keep; `acted_as`: whose login it was written with, a person's or
    `shared`; None: it was not written, or that is not known.
    """

    size: int | None
    checksum: str | None = None
    verified: Verified = Verified.NONE
    not_kept: tuple[str, ...] = ()
    acted_as: str | None = None


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
    provisional: bool = False
    created_by: str | None = field(kw_only=True)
    """The person whose request makes it."""

    @classmethod
    def of_request(
        cls,
        new: UUID,
        place: Place,
        facts: Facts,
        request: NewObject,
        created_by: str | None,
        *,
        path: str | None = None,
        originator: str = "",
    ) -> NewRow:
        """Make the row of a file that a request describes; `originator` where it names none."""
        path, originator = request.path if path is None else path, request.originator or originator
        described = request.description, originator, request.group, request.metadata
        return cls(new, place, facts, path, *described, created_by=created_by)

    @classmethod
    def of_copy(cls, new: UUID, place: Place, facts: Facts, dest: str, source: Any, created_by: str | None) -> NewRow:
        """Make the row of a copy, with what it has from `source`, a row with the columns CARRIED; `dest` as the client
        gave it.
        """
        carried = source.description, source.originator, source.group, source.meta, source.id
        return cls(new, place, facts, split_dest(dest)[0], *carried, created_by=created_by)


_WRITTEN = (
    *("id", "machine", "path", "filename", "place", "description", "size", "metadata", "originator", "group"),
    *("checksum", "verified", "not_kept", "derived_from", "expires_at", "provisional", "created_by", "acted_as"),
)
"""Columns in which new objects differ."""
CARRIED = (DataObject.id, DataObject.description, DataObject.originator, DataObject.group, DataObject.meta)
"""What a copy has from its source."""


def get_object(session: Session, object_id: UUID, visible: Visible, *, lock: bool = False) -> DataObject:
    """Return an object. Raises: ObjectNotFound, also when it is not seen; NotAllowed when it may not be acted on."""
    if visible is ALL:
        found = session.get(DataObject, object_id, with_for_update=lock or None, populate_existing=lock)
    else:
        found = find_seen(session, DataObject, DataObject.id == object_id, visible, Visible.objects, lock=lock)
    if found is None:
        raise ObjectNotFound(f"no object has the identifier {object_id}")
    return found


def lock_object(session: Session, object_id: UUID, visible: Visible) -> DataObject:
    """Return an object and keep others from claiming it until the transaction ends. Raises: what `get_object` raises.

    On SQLite the writing transaction itself excludes others.
    """
    return get_object(session, object_id, visible, lock=True)


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
    by: Grant | None,
    object_id: UUID | None = None,
    canonical: Place | None = None,
    provisional: bool = False,
) -> UUID:
    """Enter a file and claim its place; return the identifier.

    `canonical` is claimed too when it differs: one file has one object, whatever links lead to it. `provisional`: it
    could not be looked up whether the file is another object's (`models.transfers.settlement`).

    Raises: DestinationExists; NotAllowed when `by` may not write there.
    """
    for one in {place, canonical or place}:
        require_place(by, one, request.group, WRITE)
    new = object_id or uuid4()
    claim_place(session, place, object_id=new, by=by)
    if canonical is not None and canonical != place:
        claim_place(session, canonical, object_id=new, by=by)
    expires_at = request.ends(now(session)) if isinstance(request, RegisterRequest) else None
    row = NewRow.of_request(new, place, facts, request, maker(by))
    add_objects(session, [replace(row, expires_at=expires_at, provisional=provisional)], "registered")
    return new


def add_objects(session: Session, rows: Sequence[NewRow], event: str) -> None:
    """Insert ACTIVE objects whose places are already claimed, and post the events (`dm.object.{event}`)."""
    if not rows:
        return
    time = now(session)
    values = [
        (
            row.id,
            row.place.machine,
            row.path,
            row.place.name,
            row.place.path,
            row.description,
            row.facts.size,
            row.metadata,
            row.originator,
            row.group,
            row.facts.checksum,
            row.facts.verified.value,
            list(row.facts.not_kept) or None,
            row.derived_from,
            row.expires_at,
            row.provisional,
            row.created_by,
            row.facts.acted_as,
        )
        for row in rows
    ]
    dates = {"date_registered": time, "date_modified": time}
    insert_many(session, DataObject, _WRITTEN, values, **dates, status=ObjectStatus.ACTIVE.value)
    told = (
        (
            row.id,
            {
                "machine": row.place.machine,
                "place": row.place.path,
                "size": row.facts.size,
                "checksum": row.facts.checksum,
                "group": row.group,
                "created_by": row.created_by,
            },
        )
        for row in rows
    )
    post_object_events(session, event, told, time)


def relocate(obj: DataObject, place: Place, dest: str, time: datetime, facts: Facts) -> dict[str, Any]:
    """Give an object its new place after a move or a recall, which count as uses; `dest` as the client gave it. Return
    what events say of it.
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
        obj.not_kept = list(facts.not_kept) or None
    if facts.acted_as is not None:
        obj.acted_as = facts.acted_as
    return told_of(obj)


def told_of(obj: DataObject) -> dict[str, Any]:
    """Return what events say of an object."""
    names = ("machine", "place", "size", "group", "created_by")
    return {name: getattr(obj, name) for name in names}


def given_path(obj: Any) -> str:
    """Return an object's directory and name as the client gave them; `obj` has its columns."""
    return f"{obj.path.rstrip('/')}/{obj.filename}" if obj.path else str(obj.filename)


def has_objects(session: Session, machine: str) -> bool:
    """Say whether the catalogue has objects on a machine whose files may be there (ACTIVE or UNKNOWN), or in bundles
    there.
    """
    there = (ObjectStatus.ACTIVE.value, ObjectStatus.UNKNOWN.value)
    query = select(DataObject.id).where(DataObject.machine == machine, DataObject.status.in_(there)).limit(1)
    bundle = select(Bundle.id).where(Bundle.machine == machine, Bundle.status == BundleStatus.SEALED.value).limit(1)
    return session.scalar(query) is not None or session.scalar(bundle) is not None


class FoundFile(NamedTuple):
    """A file of a tree: its place, its directory as the client would give it, what is known of its bytes, and its
    canonical place (another one than `place` where links lead to it).
    """

    place: Place
    path: str
    facts: Facts
    canonical: Place


def register_files(
    session: Session, files: Sequence[FoundFile], request: TreeRequest, by: Grant | None
) -> list[NewRow]:
    """Enter the files whose places are free, as `request` describes them, and return them, in the order of `files`.

    Left out are those that a registered object or a transfer under way has already. Raises: NotAllowed when `by` may
    not write one of them.
    """
    for place in {place for file in files for place in (file.place, file.canonical)} if by is not None else ():
        require_place(by, place, request.group, WRITE)
    described = request.description, request.originator, request.group, request.metadata
    rows = [
        NewRow(new, file.place, file.facts, file.path, *described, created_by=maker(by))
        for new, file in zip(new_ids(len(files)), files, strict=True)
    ]
    wanted = [(row.place, row.id) for row in rows]
    wanted += [(file.canonical, row.id) for file, row in zip(files, rows, strict=True) if file.canonical != file.place]
    won = claim_places(session, wanted, transfer=None)
    entered = [row for row in rows if row.id in won]
    add_objects(session, entered, "registered")
    return entered


def keep_origin(session: Session, object_id: UUID, note: Mapping[str, Any]) -> None:
    """Keep what a source said of a new object's bytes."""
    texts = {name: None if note[name] is None else storable(note[name]) for name in note}
    session.add(Origin(object_id=object_id, **texts))


def comparable(session: Session, object_id: UUID, where: tuple[str, str | None]) -> tuple[Origin, DataObject] | None:
    """Return an object that is ACTIVE and came from there, with its origin; None for any other."""
    obj, origin = session.get(DataObject, object_id), session.get(Origin, object_id)
    if obj is None or origin is None or obj.status != ObjectStatus.ACTIVE.value:
        return None
    url, mark = where
    return (origin, obj) if (origin.url, origin.url_mark) == (storable(url), mark) else None
