"""Items that go into archives and come back, as the mover that carries them records it (see `models.batches.results`).

To archive:   `begin_bundle` → bytes → `record_intent` → bundle has its name → `commit_archive` → sources removed →
              `batches.end_committed`. An item's `bundle` in its notes is the one that it is to be in.
To activate:  `batches.record_intents` → file has its name → `commit_recalls`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from datamanager.domain import bundle_model as domain
from datamanager.domain.states import ObjectStatus, TransferKind, TransferStatus
from datamanager.errors import DataManagerError, InternalError, ObjectArchived, by_code
from datamanager.machines import Machine
from models.access.visibility import ALL
from models.archive.bundles import open_bundle, seal
from models.batches.results import (
    DONE,
    complete_items,
    destination,
    fail_items,
    finish_batch,
    free_items,
    noting,
    open_items,
    update_items,
)
from models.core.outbox import post_object_events
from models.database import now
from models.objects.bulk_claims import give_places_to_objects, lock_objects, rows_in
from models.objects.catalogue import Facts, get_object, relocate
from models.objects.claims import abandon_bundles, release_parts
from models.tables import Bundle, DataObject, TransferItem
from models.transfers import outcomes
from models.transfers.items import count_items, select_items
from models.transfers.queue import TransferLease, held

DONE_WELL = {TransferKind.ARCHIVE: "Archive successful", TransferKind.ACTIVATE: "Activate successful"}
"""The result of a single object, for its client."""


def items_among(session: Session, hold: TransferLease, numbers: Sequence[int]) -> list[TransferItem]:
    """Return those of the items that are QUEUED, in the order of `numbers`. Raises: LeaseLost."""
    held(session, hold)
    queued = TransferItem.transfer_id == hold.transfer, TransferItem.status == TransferStatus.QUEUED.value
    rows = rows_in(session, select(TransferItem).where(*queued), TransferItem.number, numbers)
    found = {item.number: item for (item,) in rows}
    return [found[number] for number in numbers if number in found]


def begin_bundle(
    session: Session,
    hold: TransferLease,
    numbers: Sequence[int],
    machine: Machine,
    pack: domain.Pack,
    level: domain.VerifyLevel,
) -> Bundle:
    """Let items become a new bundle on an archive machine. Raises: LeaseLost, PathNotAllowed."""
    row, items = open_items(session, hold, numbers)
    bundle = open_bundle(session, hold, machine, pack, level)
    update_items(session, row, [{**noting(item, bundle=str(bundle.id)), "dest": bundle.place} for item in items])
    return bundle


def abandon_bundle(session: Session, hold: TransferLease, bundle: UUID) -> None:
    """Give up a bundle that is not sealed; its items may become another one. Raises: LeaseLost."""
    abandon_bundles(session, held(session, hold, lock=True).id, bundle)


def commit_archive(session: Session, hold: TransferLease, manifest: domain.Manifest, *, keep_source: bool) -> None:
    """Seal a bundle: its objects are ARCHIVED. The items stay QUEUED, with `committed` in their notes, until their
    sources are removed; with `keep_source` they are done. One transaction, idempotent. Raises: LeaseLost.
    """
    members = {one.uuid: one for one in manifest.members}
    mine = select(TransferItem.number).where(TransferItem.transfer_id == hold.transfer)
    numbers = [number for (number,) in rows_in(session, mine, TransferItem.object_id, members)]
    row, items = open_items(session, hold, numbers)
    archived = set(seal(session, hold, manifest, {item.object_id for item in items}, keep_source=keep_source))
    done = [item for item in items if item.object_id in archived and not item.notes.get("committed")]
    end: dict[str, Any] = DONE if keep_source else {}
    changes = [{**noting(item, committed=True), "size": members[item.object_id].size, **end} for item in done]
    update_items(session, row, changes)
    if keep_source:
        free_items(session, row, done)
    others = [item for item in items if item.object_id not in archived]
    late = [(item.number, ObjectArchived(f"object {item.object_id} was archived meanwhile")) for item in others]
    fail_items(session, hold, late)


def note_restart(session: Session, hold: TransferLease, number: int, restart: Mapping[str, Any]) -> None:
    """Record an item's restart marker before its first byte. Raises: LeaseLost."""
    row, items = open_items(session, hold, [number])
    update_items(session, row, [noting(item, restart=dict(restart)) for item in items])


def commit_recalls(session: Session, hold: TransferLease, results: Sequence[tuple[int, Facts]]) -> None:
    """End items whose files are back: the objects are ACTIVE at their destinations, and need their parts of bundles no
    longer. Raises: LeaseLost.
    """
    facts = dict(results)
    row, items = open_items(session, hold, facts)
    release_parts(session, [item.object_id for item in items])
    objects: dict[UUID, DataObject] = {obj.id: obj for obj in lock_objects(session, (item.object_id for item in items))}
    give_places_to_objects(session, list(objects), row.id)
    time = now(session)
    told = []
    for item in items:
        obj = objects[item.object_id]
        data = {**relocate(obj, destination(item), item.dest, time, facts[item.number]), "bundle": obj.archived_in}
        obj.status, obj.archived_in = ObjectStatus.ACTIVE.value, None
        told.append((obj.id, data))
    complete_items(session, row, items, facts)
    post_object_events(session, "activated", told, time)


def finish(session: Session, hold: TransferLease) -> str | DataManagerError:
    """End a transfer to or from an archive that has nothing left to do: COMPLETE, and return its result; or ERROR, and
    return that error (returned, not raised: it must not take the transaction back).

    Raises: LeaseLost; InternalError while items are QUEUED.
    """
    row = held(session, hold, lock=True)
    kind = TransferKind(row.kind)
    if kind.many:
        return finish_batch(session, hold)
    if count_items(session, row.id).queued:
        raise InternalError(f"{row.id} is not done")
    (only,) = select_items(session, row.id, limit=1)
    if only.status == TransferStatus.ERROR.value:
        error = by_code(only.error_code or InternalError.code, only.error_detail or "")
        outcomes.fail(session, hold, error)
        return error
    obj = get_object(session, only.object_id, ALL)
    outcomes.complete(session, row, DONE_WELL[kind], Facts(obj.size))
    return DONE_WELL[kind]


def bundle_in(item: TransferItem) -> UUID | None:
    """Return the bundle that an item is in, or is to be in."""
    found = item.notes.get("bundle")
    return UUID(found) if found else None
