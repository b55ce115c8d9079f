"""Bundles in the catalogue: begun by a transfer, sealed in one transaction, released member by member, removed.

    OPEN      `open_bundle`, then `note_restart`, `record_intent`, as the bytes go
    SEALED    `seal`: its objects are ARCHIVED, their places are free (or the transfer's until the sources are removed)
    UNNEEDED  `release_parts`: the last object that needed it was activated or deleted
    ABANDONED `abandon_bundles`: its transfer ended before it was sealed
    REMOVED   `note_removed`: its files are gone, and its places are free

No bundle gets members after it is sealed, and one that is to be removed has no member that anybody could be reading:
who reads one has its object alone, which needs it until then. So whoever removes it needs no lease.
Functions that take a `TransferLease` are fenced; locks are taken in the order transfer, bundle, objects, claims.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.orm import Session

from datamanager.domain import bundle_model as domain
from datamanager.domain.location import Place
from datamanager.domain.states import BundleStatus, ObjectStatus, Verified
from datamanager.errors import DestinationExists, InternalError
from datamanager.machines import Machine
from models.core.outbox import post_object_events
from models.database import affected, insert_rows, now, table_of
from models.objects.bulk_claims import claim_places, execute_in, lock_objects, rows_in
from models.objects.catalogue import told_of
from models.objects.claims import free_place_of_object
from models.tables import Bundle, BundleMember, Claim, DataObject
from models.transfers.queue import TransferLease, held

_objects = table_of(DataObject)
_ACTIVE = ObjectStatus.ACTIVE.value


def open_bundle(
    session: Session, hold: TransferLease, machine: Machine, pack: domain.Pack, level: domain.VerifyLevel
) -> Bundle:
    """Begin a bundle on an archive machine: its name is held from now on.

    Raises: LeaseLost, PathNotAllowed.
    """
    row = held(session, hold, lock=True)
    new = uuid4()
    place = domain.bundle_place(machine, f"{machine.archive_dir}/{row.created:%Y-%m}", new, pack)
    if new not in claim_places(session, [(place, new), (domain.manifest_place(new, place), new)], transfer=None):
        raise DestinationExists(f"{place} is held by another transfer or object")
    bundle = Bundle(
        id=new,
        status=BundleStatus.OPEN.value,
        machine=machine.name,
        place=place.path,
        pack=pack.value,
        level=level.value,
        transfer_id=row.id,
        created=now(session),
        notes={},
    )
    session.add(bundle)
    return bundle


def note_restart(session: Session, hold: TransferLease, bundle: UUID, restart: Mapping[str, Any]) -> None:
    """Record the restart marker before the first byte. Raises: LeaseLost."""
    row = _open(session, hold, bundle)
    row.notes = {**row.notes, "restart": dict(restart)}


def record_intent(session: Session, hold: TransferLease, bundle: UUID, intent: Mapping[str, Any]) -> None:
    """Record, before the bundle gets its name, how a later attempt recognises it. Raises: LeaseLost."""
    row = _open(session, hold, bundle)
    row.notes = {**row.notes, "intent": dict(intent)}
    held(session, hold, lock=True).past_commit_point = True


def seal(
    session: Session, hold: TransferLease, manifest: domain.Manifest, objects: Collection[UUID], *, keep_source: bool
) -> list[UUID]:
    """Make those of `objects` ARCHIVED that are in the bundle, in this transaction. It is verified and has its name.

    The caller has claimed them. Their places go to the transfer, until the sources are removed; with `keep_source` they
    are free. Left out is an object that another transfer archived meanwhile, which only readers can do to each other.
    Idempotent.

    Returns the objects that are archived in this bundle. Raises: LeaseLost.
    """
    row = _open(session, hold, manifest.bundle.uuid, sealed_too=True)
    if row.status == BundleStatus.SEALED.value:
        return list(session.scalars(select(BundleMember.object_id).where(BundleMember.bundle_id == row.id)))
    found = {obj.id: obj for obj in lock_objects(session, objects, *_LOCKED)}
    members = [one for one in manifest.members if one.uuid in found and found[one.uuid].status == _ACTIVE]
    row.size, row.sha256 = manifest.bundle.size, manifest.bundle.sha256
    row.status, row.sealed = BundleStatus.SEALED.value, now(session)
    session.flush()
    _insert_members(session, row.id, members)
    _archive_objects(session, row, members)
    archived = [one.uuid for one in members]
    freed = delete(Claim) if keep_source else update(Claim).values(transfer_id=hold.transfer)
    execute_in(session, freed.where(Claim.mode == "place", Claim.transfer_id.is_(None)), Claim.object_id, archived)
    told = [(one.uuid, {**told_of(found[one.uuid]), "bundle": _name(row), "size": one.size}) for one in members]
    post_object_events(session, "archived", told, row.sealed)
    if not members:
        row.status = BundleStatus.UNNEEDED.value
    return archived


def members_of(session: Session, objects: Collection[UUID]) -> dict[UUID, tuple[domain.SealedBundle, domain.Member]]:
    """Return for each of the objects that is archived its bundle, and its part of it."""
    query = select(BundleMember, Bundle).join(Bundle, Bundle.id == BundleMember.bundle_id)
    rows = rows_in(session, query.where(BundleMember.released.is_(None)), BundleMember.object_id, objects)
    found = {}
    for row, bundle in rows:
        source = Place(row.source_machine, row.source_place)
        member = domain.Member(row.object_id, source, row.size, row.mode, row.mtime, row.sha256, row.offset)
        found[row.object_id] = bundle_of(bundle), member
    return found


def bundle_of(row: Bundle) -> domain.SealedBundle:
    """Return a sealed bundle as the engine has it."""
    if row.size is None or row.sha256 is None:
        raise InternalError(f"bundle {row.id} was not sealed")
    return domain.SealedBundle(row.id, domain.Pack(row.pack), Place(row.machine, row.place), row.size, row.sha256)


def to_remove(session: Session, limit: int, machines: Collection[str], *, unneeded: bool) -> list[Bundle]:
    """Return up to `limit` bundles of these machines whose files are to go: any, as those on a machine that is away
    must not keep others waiting. `unneeded`: also those that were sealed once.
    """
    wanted = [BundleStatus.ABANDONED.value] + [BundleStatus.UNNEEDED.value] * unneeded
    query = select(Bundle).where(Bundle.status.in_(wanted), Bundle.machine.in_(machines))
    return list(session.scalars(query.order_by(func.random()).limit(limit)))


def note_removed(session: Session, bundle: UUID) -> None:
    """Note that a bundle's files are gone; its places are free. Idempotent."""
    gone = (BundleStatus.ABANDONED.value, BundleStatus.UNNEEDED.value)
    mine = update(Bundle).where(Bundle.id == bundle, Bundle.status.in_(gone))
    if affected(session, mine.values(status=BundleStatus.REMOVED.value, removed=now(session))):
        free_place_of_object(session, bundle)


_LOCKED = (
    *(DataObject.id, DataObject.status, DataObject.machine, DataObject.place),
    *(DataObject.size, DataObject.group, DataObject.created_by),
)


def _open(session: Session, hold: TransferLease, bundle: UUID, *, sealed_too: bool = False) -> Bundle:
    held(session, hold, lock=True)
    row = session.get_one(Bundle, bundle, with_for_update=True, populate_existing=True)
    allowed = {BundleStatus.OPEN.value} | ({BundleStatus.SEALED.value} if sealed_too else set())
    if row.transfer_id != hold.transfer or row.status not in allowed:
        raise InternalError(f"bundle {bundle} is {row.status}; nothing was changed")
    return row


def _insert_members(session: Session, bundle: UUID, members: Sequence[domain.Member]) -> None:
    rows: list[dict[str, Any]] = [
        {
            "bundle_id": bundle,
            "object_id": one.uuid,
            "offset": one.offset,
            "size": one.size,
            "sha256": one.sha256,
            "mode": one.mode,
            "mtime": one.mtime,
            "source_machine": one.source.machine,
            "source_place": one.source.path,
        }
        for one in members
    ]
    insert_rows(session, BundleMember, rows)


def _archive_objects(session: Session, row: Bundle, members: Sequence[domain.Member]) -> None:
    """Write what is true of the objects now; machine and path stay as they were."""
    if not members:
        return
    sizes_only = row.level == domain.VerifyLevel.SIZES.value
    change = (
        update(_objects)
        .where(_objects.c.id == bindparam("which"))
        .values(
            status=ObjectStatus.ARCHIVED.value,
            archived_in=_name(row),
            date_modified=row.sealed,
            verified=(Verified.SIZE if sizes_only else Verified.SHA256).value,
            size=bindparam("new_size"),
            checksum=bindparam("new_checksum"),
        )
    )
    values = [{"which": one.uuid, "new_size": one.size, "new_checksum": f"sha256:{one.sha256}"} for one in members]
    session.connection().execute(change, values)


def _name(row: Bundle) -> str:
    return f"{row.machine}:{row.place}"
