"""Requests to archive and to activate are accepted: of one object, or of many, each judged alone (see
`models.batches.submission`). What is done already is COMPLETE here, so a repeated batch does only what is missing.

To archive takes the object alone, as its file will be removed; with `keep_source` it is only read. To activate takes
it alone, and the place where its file is to be.
"""

from __future__ import annotations

from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from datamanager.domain.archive_requests import (
    ActivateManyRequest,
    ActivateRequest,
    ActivateTerms,
    ArchiveManyRequest,
    ArchiveRequest,
    ArchiveTerms,
)
from datamanager.domain.location import Place, require_outside_archive
from datamanager.domain.requests import Directory
from datamanager.domain.states import ObjectStatus, TransferKind, TransferStatus
from datamanager.errors import (
    DestinationExists,
    InternalError,
    ObjectActive,
    ObjectBusy,
    ObjectUnknown,
    UnknownMachine,
)
from datamanager.identity.grant import Grant
from datamanager.machines import Machines
from models.access.permission import require_destination, require_source, sources_of
from models.access.visibility import Visible
from models.batches.item_admission import (
    JudgedItem,
    busy,
    claim_destinations,
    find_sources,
    objects_below,
    open_items,
    require_readable,
    store,
)
from models.objects.bulk_claims import claim_objects, claims_on, free_claims_on, rows_in
from models.objects.catalogue import given_path, require_usable
from models.tables import Bundle, BundleMember, Transfer


def enter_archive(
    session: Session,
    machines: Machines,
    transfer: Transfer,
    request: ArchiveTerms,
    object_id: UUID | None,
    grant: Grant | None,
) -> None:
    """Judge, claim for and store what is to be archived.

    Raises: InvalidRequest when it is not decided which archive is meant, UnknownMachine; for a directory and for a
    single object what is wrong with it. Whatever is wrong with an item of a batch is the item's.
    """
    many = isinstance(request, ArchiveManyRequest)
    if request.archive_to is not None:
        machines.archive_for("", request.archive_to)  # one refusal, not one for each item
    visible = sources_of(grant, TransferKind.ARCHIVE)
    items = _wanted(session, machines, request, object_id, visible, ObjectStatus.ACTIVE)

    def judge(item: JudgedItem) -> None:
        require_source(grant, TransferKind.ARCHIVE, item.source)
        item.result = item.object_id
        if many and item.source.status == ObjectStatus.ARCHIVED:
            item.skipped = True
            return
        require_readable(machines, item)

    find_sources(session, items, judge)
    for item in open_items(items):
        item.machine = machines.archive_for(item.source.group, request.archive_to).name
    _claim(session, transfer, items, "read" if request.keep_source else "write", "archived")
    _store(session, transfer, items, object_id)
    kept = request.accepted(len(items)) if isinstance(request, ArchiveManyRequest) else request
    transfer.request = kept.model_dump(mode="json")


def enter_activate(
    session: Session,
    machines: Machines,
    transfer: Transfer,
    request: ActivateTerms,
    object_id: UUID | None,
    grant: Grant | None,
) -> None:
    """Judge, claim for and store what is to come back. One that is ACTIVE where it is wanted is done.

    Raises: for a directory and for a single object what is wrong with it. Whatever is wrong with an item of a batch is
    the item's.
    """
    visible = sources_of(grant, TransferKind.ACTIVATE)
    items = _wanted(session, machines, request, object_id, visible, ObjectStatus.ARCHIVED)
    find_sources(session, items, lambda item: _judge_recall(machines, item, grant))
    _find_bundles(session, machines, items)
    _claim(session, transfer, items, "write", "activated")
    claim_destinations(session, transfer.id, items)
    losers = [item.object_id for item in items if isinstance(item.error, DestinationExists)]
    free_claims_on(session, losers, transfer.id)
    _store(session, transfer, items, object_id)
    kept = request.accepted(len(items)) if isinstance(request, ActivateManyRequest) else request
    transfer.request = kept.model_dump(mode="json")


def _wanted(
    session: Session,
    machines: Machines,
    request: ArchiveTerms | ActivateTerms,
    object_id: UUID | None,
    visible: Visible,
    status: ObjectStatus,
) -> list[JudgedItem]:
    match request:
        case ArchiveManyRequest(items=items) if items is not None:
            return [JudgedItem(item.uuid, request.archive_to or "", "") for item in items]
        case ActivateManyRequest(items=items) if items is not None:
            return [JudgedItem(item.uuid, item.machine or "", item.dest or "") for item in items]
        case ArchiveManyRequest(directory=Directory() as directory):
            return [
                JudgedItem(row.id, "", "") for row, _ in objects_below(session, machines, directory, visible, status)
            ]
        case ActivateManyRequest(directory=Directory() as directory):
            below = objects_below(session, machines, directory, visible, status)
            return [JudgedItem(row.id, request.machine or "", "") for row, _ in below]
        case ArchiveRequest() if object_id is not None:
            return [JudgedItem(object_id, "", "")]
        case ActivateRequest() if object_id is not None:
            return [JudgedItem(object_id, request.machine or "", request.dest or "")]
    raise InternalError("archive and activate need objects")


def _judge_recall(machines: Machines, item: JudgedItem, grant: Grant | None) -> None:
    source = item.source
    require_source(grant, TransferKind.ACTIVATE, source)
    elsewhere = bool(item.machine or item.dest)
    if not item.dest:
        # as it was given where it was; another machine has another base_dir
        item.dest = given_path(source) if item.machine in ("", source.machine) else source.place
    item.machine = item.machine or source.machine
    item.result = item.object_id
    if source.status == ObjectStatus.ACTIVE:
        if elsewhere and Place.of(machines[item.machine], item.dest) != Place(source.machine, source.place):
            raise ObjectActive(f"object {source.id} is ACTIVE at {source.machine}:{source.place}; move or copy it")
        item.skipped = True
        return
    if source.status != ObjectStatus.ARCHIVED:
        require_usable(source)
    place = Place.of(machines[item.machine], item.dest)
    require_destination(grant, TransferKind.ACTIVATE, place, source.group, source.created_by)
    require_outside_archive(machines[item.machine], place.path)
    item.place = place


def _find_bundles(session: Session, machines: Machines, items: list[JudgedItem]) -> None:
    """Note for each item the bundle that has its bytes, and the place in it: what recalls are grouped by."""
    columns = (BundleMember.object_id, BundleMember.bundle_id, BundleMember.offset, Bundle.machine, Bundle.place)
    query = select(*columns).join(Bundle, Bundle.id == BundleMember.bundle_id).where(BundleMember.released.is_(None))
    to_do = open_items(items)
    rows = rows_in(session, query, BundleMember.object_id, [item.object_id for item in to_do])
    found = {row.object_id: row for row in rows}
    for item in to_do:
        row = found.get(item.object_id)
        if row is None:
            item.error = ObjectUnknown(f"the catalogue has no bundle with object {item.object_id}")
            continue
        if row.machine not in machines:
            item.error = UnknownMachine(row.machine, list(machines))
            continue
        item.origin = Place(row.machine, row.place)
        item.notes = {"bundle": str(row.bundle_id), "offset": row.offset}


def _claim(session: Session, transfer: Transfer, items: list[JudgedItem], mode: str, done: str) -> None:
    """Claim the objects; who comes second ends in ERROR."""
    claimed = claims_on(session, [item.object_id for item in open_items(items)])
    first: dict[UUID, int] = {}
    for number, item in enumerate(items):
        if item.status is not TransferStatus.QUEUED:
            continue
        item.error = busy(item, claimed.get(item.object_id), writing=mode == "write")
        if item.error is not None:
            continue
        if item.object_id in first:
            item.error = ObjectBusy(f"object {item.object_id} is {done} by item {first[item.object_id]} of this batch")
        else:
            first[item.object_id] = number
    claim_objects(session, first, mode, transfer.id)


def _store(session: Session, transfer: Transfer, items: list[JudgedItem], object_id: UUID | None) -> None:
    """Store the items; a single one that can't be done is refused instead, with its own error."""
    if object_id is not None:
        (only,) = items
        if only.error is not None:
            raise only.error
        transfer.object_id = transfer.result_object_id = object_id
        _, transfer.source_place = only.read_from
        transfer.destination_place = only.place.path if only.place else None
    store(session, transfer, [items])
    if object_id is not None and only.skipped:
        transfer.group = only.source.group
