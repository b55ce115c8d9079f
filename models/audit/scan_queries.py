"""What audits and sweeps read of the catalogue: rows to compare, owners of partial files; what was hashed."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid5

from sqlalchemy import and_, func, or_, select, text, update
from sqlalchemy.orm import Session

from datamanager.domain.audit_rules import Expected
from datamanager.domain.bundle_model import manifest_place
from datamanager.domain.location import Place
from datamanager.domain.states import BundleStatus, ObjectStatus, TransferStatus
from models.access.visibility import ALL
from models.audit.runs import AuditLease, held
from models.database import now
from models.objects.bulk_claims import chunks, execute_in, rows_in
from models.objects.claims import place_key
from models.objects.totals import totals_by
from models.tables import Bundle, BundleMember, Claim, DataObject, Transfer, TransferItem
from models.tables.objects import PLACE_INDEXED
from models.tables.transfers import ITEMISED

AUDITED = (ObjectStatus.ACTIVE.value, ObjectStatus.UNKNOWN.value)

_COLUMNS = (
    DataObject.id,
    DataObject.place,
    DataObject.status,
    DataObject.size,
    DataObject.checksum,
    DataObject.date_modified,
)
_indexed_place = func.substr(DataObject.place, text("1"), text(str(PLACE_INDEXED)))
# words of the partial indexes: with parameters in their stead neither database would use these
_LIVE = text("objects.status IN ('ACTIVE', 'UNKNOWN')")
_ACTIVE = text("objects.status = 'ACTIVE'")

DIGITS = 8
"""Of a transfer's identifier, in the names of its partial files."""
CHUNK = 1000
OWNERS_AT_ONCE = 100
FAILED_MAX = 10_000


def objects_by_place(session: Session, machine: str, after: tuple[str, UUID] | None, limit: int) -> list[Expected]:
    """Return up to `limit` ACTIVE and UNKNOWN objects of a machine, by place (UTF-8 bytes) and identifier, beyond the
    place and identifier `after`.
    """
    query = select(*_COLUMNS).where(DataObject.machine == machine, _LIVE)
    if after is not None:
        place, last = after
        beyond = or_(DataObject.place > place, and_(DataObject.place == place, DataObject.id > last))
        query = query.where(place[:PLACE_INDEXED] <= _indexed_place, beyond)
    query = query.order_by(_indexed_place, DataObject.place, DataObject.id)
    return [_expected(row) for row in session.execute(query.limit(limit))]


def objects_at(session: Session, machine: str, objects: Collection[UUID]) -> dict[UUID, Expected]:
    """Return what the catalogue says now of objects that still are on the machine, ACTIVE or UNKNOWN."""
    query = select(*_COLUMNS).where(DataObject.machine == machine, DataObject.status.in_(AUDITED))
    return {row.id: _expected(row) for row in rows_in(session, query, DataObject.id, objects)}


def claimed_places(session: Session, machine: str, places: Collection[str]) -> set[str]:
    """Return those of the places that a transfer under way has claimed."""
    return _claims(session, machine, places, Claim.transfer_id.is_not(None))


def known_places(session: Session, machine: str, places: Collection[str]) -> set[str]:
    """Return those of the places that somebody has: an object (also by a link's canonical place), a bundle or its
    manifest, a transfer under way; or that an UNKNOWN object would have.
    """
    known = _claims(session, machine, places)
    # by place alone: that is the index which finds few rows
    of_objects = select(DataObject.place, DataObject.machine, DataObject.status)
    found = rows_in(session, of_objects, DataObject.place, sorted(set(places) - known))
    known.update(row.place for row in found if row.machine == machine and row.status in AUDITED)
    of_bundles = select(Bundle.place).where(Bundle.machine == machine, Bundle.status != BundleStatus.REMOVED.value)
    known.update(row.place for row in rows_in(session, of_bundles, Bundle.place, sorted(set(places) - known)))
    return known


def bundles_after(session: Session, machine: str, after: UUID | None, limit: int) -> list[Expected]:
    """Return up to `limit` sealed bundles of a machine beyond one, by identifier."""
    query = select(Bundle).where(Bundle.machine == machine, Bundle.status == BundleStatus.SEALED.value)
    if after is not None:
        query = query.where(Bundle.id > after)
    return _bundles(session, session.scalars(query.order_by(Bundle.id).limit(limit)).all())


def bundles_at(session: Session, machine: str, bundles: Collection[UUID]) -> dict[UUID, Expected]:
    """Return what the catalogue says now of bundles that still are sealed."""
    query = select(Bundle).where(Bundle.id.in_(bundles), Bundle.machine == machine)
    rows = session.scalars(query.where(Bundle.status == BundleStatus.SEALED.value)).all()
    return {one.object_id: one for one in _bundles(session, rows)}


def manifest_of(bundle: Expected, machine: str) -> Expected:
    """Return what is expected of a bundle's manifest: that it is there."""
    place = manifest_place(bundle.object_id, Place(machine, bundle.place)).path
    return Expected(bundle.object_id, place, bundle.status, None, None, bundle.modified, bundle.members)


def count_scrubbable(session: Session, machine: str) -> tuple[int, int]:
    """Return how many objects and how many bundles of a machine have a checksum that could be compared."""
    active = totals_by(session, ALL, machine=machine, status=ObjectStatus.ACTIVE.value)
    bundles = select(func.count()).where(Bundle.machine == machine, Bundle.status == BundleStatus.SEALED.value)
    return sum(row.hashed for row in active), session.scalar(bundles) or 0


@dataclass(frozen=True, slots=True)
class Turn:
    """A row whose turn it is to be hashed, and when it last was: where the next page begins."""

    row: Expected
    checked: datetime | None


def longest_unchecked(session: Session, machine: str, before: datetime, after: Turn | None, limit: int) -> list[Turn]:
    """Return up to `limit` objects that were not hashed since `before`: those never hashed first, then the oldest;
    beyond `after`.
    """
    query = select(*_COLUMNS, DataObject.checked).where(*_scrubbable(machine))
    rows = _in_turn(session.execute, query, DataObject.checked, DataObject.id, before, after, limit)
    return [Turn(_expected(row), row.checked) for row in rows]


def longest_unchecked_bundles(
    session: Session, machine: str, before: datetime, after: Turn | None, limit: int
) -> list[Turn]:
    """Return up to `limit` sealed bundles, as `longest_unchecked` does objects."""
    query = select(Bundle).where(Bundle.machine == machine, Bundle.status == BundleStatus.SEALED.value)
    found = _in_turn(session.scalars, query, Bundle.checked, Bundle.id, before, after, limit)
    return [Turn(row, bundle.checked) for row, bundle in zip(_bundles(session, found), found, strict=True)]


def _in_turn(
    fetch: Callable[[Any], Iterable[Any]],
    query: Any,
    checked: Any,
    key: Any,
    before: datetime,
    after: Turn | None,
    limit: int,
) -> list[Any]:
    """Fetch up to `limit` rows of a query beyond `after`: those never checked, then the oldest."""
    found = list[Any]()
    if after is None or after.checked is None:
        never = query.where(checked.is_(None))
        if after is not None:
            never = never.where(key > after.row.object_id)
        found += fetch(never.order_by(key).limit(limit))
    if len(found) < limit:
        old = query.where(checked < before)
        if after is not None and after.checked is not None:
            old = old.where(or_(checked > after.checked, and_(checked == after.checked, key > after.row.object_id)))
        found += fetch(old.order_by(checked, key).limit(limit - len(found)))
    return found


def holds_objects(session: Session, machine: str, directory: str) -> bool:
    """Say whether a directory ("" is base_dir) itself holds an ACTIVE object."""
    start = f"{directory}/" if directory else ""
    name = func.substr(DataObject.place, len(start) + 1)
    query = select(DataObject.id).where(DataObject.machine == machine, _LIVE, DataObject.status == AUDITED[0])
    query = query.where(name.not_like("%/%"))
    if directory:
        end = f"{directory}0"  # the character after "/"
        query = query.where(_indexed_place.between(start[:PLACE_INDEXED], end[:PLACE_INDEXED]))
        query = query.where(DataObject.place > start, DataObject.place < end)
    return session.scalar(query.limit(1)) is not None


def note_checked(session: Session, hold: AuditLease, rows: Sequence[Expected], size: int) -> None:
    """Note that rows were hashed, and count them. Raises: LeaseLost."""
    audit, time = held(session, hold), now(session)
    objects, bundles = ([row.object_id for row in rows if row.is_bundle is wanted] for wanted in (False, True))
    execute_in(session, update(DataObject).values(checked=time), DataObject.id, objects)
    execute_in(session, update(Bundle).values(checked=time), Bundle.id, bundles)
    audit.scrubbed_objects += len(rows)
    audit.scrubbed_bytes += size


def note_counts(session: Session, hold: AuditLease, counts: Mapping[str, int]) -> None:
    """Note what was looked at, and found. Raises: LeaseLost."""
    row = held(session, hold)
    row.counts = {**row.counts, **counts}


def note_suspicion(session: Session, hold: AuditLease) -> None:
    """Note that what was found is not believed: the report stays, no object is changed. Raises: LeaseLost."""
    held(session, hold).suspicious = True


def _scrubbable(machine: str) -> tuple[Any, ...]:
    return DataObject.machine == machine, _ACTIVE, DataObject.checksum.is_not(None)


def _expected(row: Any) -> Expected:
    checksum = row.checksum
    sha256 = checksum.removeprefix("sha256:") if checksum is not None and checksum.startswith("sha256:") else None
    return Expected(row.id, row.place, row.status, row.size, sha256, row.date_modified)


def _bundles(session: Session, rows: Sequence[Bundle]) -> list[Expected]:
    query = select(BundleMember.bundle_id, func.count()).where(BundleMember.released.is_(None))
    counted = query.group_by(BundleMember.bundle_id)
    members = dict(rows_in(session, counted, BundleMember.bundle_id, [row.id for row in rows]))
    return [
        Expected(row.id, row.place, row.status, row.size, row.sha256, row.sealed or row.created, members.get(row.id, 0))
        for row in rows
    ]


def _claims(session: Session, machine: str, places: Collection[str], *conditions: Any) -> set[str]:
    by_key = {place_key(Place(machine, place)): place for place in places}
    query = select(Claim.place_key).where(Claim.mode == "place", *conditions)
    return {by_key[row.place_key] for row in rows_in(session, query, Claim.place_key, by_key)}


def open_owners(session: Session, owners: Collection[str]) -> set[str]:
    """Return those of the owners (first hex digits of a transfer, or of an item of one) that have not ended.

    Two may share their first digits: then the file of an ended one stays until the other has ended too.
    """
    wanted, found = set(owners), set[str]()
    if not wanted:
        return found
    for some in chunks(sorted(wanted), OWNERS_AT_ONCE):
        # by the key alone: that is the index which finds few rows
        ranges = [Transfer.id.between(UUID(f"{one:0<32}"), UUID(f"{one:f<32}")) for one in some]
        rows = session.execute(select(Transfer.id, Transfer.ended).where(or_(*ranges)))
        found.update(row.id.hex[:DIGITS] for row in rows if row.ended is None)
    batches = select(Transfer.id).where(Transfer.ended.is_(None), Transfer.kind.in_(ITEMISED))
    for transfer in session.scalars(batches.order_by(Transfer.id)).all():
        if wanted <= found:
            break
        items = select(TransferItem.number).where(TransferItem.transfer_id == transfer)
        for number in session.scalars(items.execution_options(yield_per=CHUNK)):
            # what `engine.bulk.bulk_chunk.item_id` makes
            if (digits := uuid5(transfer, str(number)).hex[:DIGITS]) in wanted:
                found.add(digits)
    return found


def failed_directories(session: Session, machine: str) -> set[str]:
    """Return the directories that transfers which ended in ERROR were to write to, the newest FAILED_MAX."""
    query = select(Transfer.destination_place).where(
        Transfer.destination_machine == machine,
        Transfer.destination_place.is_not(None),
        Transfer.ended.is_not(None),
        Transfer.status == TransferStatus.ERROR.value,
    )
    places = session.scalars(query.order_by(Transfer.ended.desc()).limit(FAILED_MAX))
    return {posixpath.dirname(place) for place in places if place is not None}


def bundle_directories(session: Session, machine: str) -> set[str]:
    """Return the directories that bundles of a machine lie in, or lay in: one a month."""
    query = select(Bundle.place).where(Bundle.machine == machine, Bundle.status != BundleStatus.REMOVED.value)
    found = set[str]()
    for place in session.scalars(query.execution_options(yield_per=CHUNK)):
        found.add(posixpath.dirname(place))
    return found
