"""A batch is accepted: each item is judged by the rules of a single copy or move, claims what it needs, and is stored.

An item that can't be done ends in ERROR here and hinders no other. One whose destination has already what is wanted is
COMPLETE here, so a repeated batch does only what is missing. All is done for all items at once: a statement for every
item would take minutes.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select
from sqlalchemy.orm import Session

from datamanager.domain.location import Place, require_outside_archive
from datamanager.domain.requests import BatchRequest
from datamanager.domain.states import TransferStatus
from datamanager.errors import DestinationExists, ObjectBusy, RequestError
from datamanager.machines import Machines
from models.batches.item_admission import (
    JudgedItem,
    busy,
    claim_destinations,
    find_sources,
    objects_below,
    open_items,
    prefix_of,
    require_source,
    store,
)
from models.objects.bulk_claims import claim_objects, claims_on, holders, rows_in
from models.tables import DataObject, Transfer
from models.transfers.items import known_note


def enter_items(
    session: Session, machines: Machines, transfer: Transfer, request: BatchRequest, *, moving: bool
) -> None:
    """Judge, claim for and store the items of a batch, and write into `transfer` what they have in common.

    Raises: for a directory UnknownMachine, PathNotAllowed, ObjectNotFound when nothing is below it, InvalidRequest when
    too much is. Whatever is wrong with an item is the item's.
    """
    items = _wanted(session, machines, request)
    find_sources(session, items, lambda item: require_source(machines, item))
    _find_destinations(machines, items)
    _skip_what_is_there(session, items, moving=moving)
    _claim(session, transfer.id, items, moving=moving)
    store(session, transfer, items)
    transfer.request = request.accepted(len(items)).model_dump(mode="json")


def _wanted(session: Session, machines: Machines, request: BatchRequest) -> list[JudgedItem]:
    if request.directory is None:
        return [JudgedItem(item.uuid, item.machine, item.dest) for item in request.items or ()]
    target = machines[request.machine or ""]
    dest = (request.dest or "").rstrip("/")
    prefix_of(target, request.dest or "")  # one refusal for a directory that can't be, not one for each item
    start = f"{dest}/" if request.dest else ""
    below = objects_below(session, machines, request.directory)
    return [JudgedItem(object_id, target.name, start + path) for object_id, path in below]


def _find_destinations(machines: Machines, items: list[JudgedItem]) -> None:
    for item in open_items(items):
        try:
            place = Place.of(machines[item.machine], item.dest)
            require_outside_archive(machines[item.machine], place.path)
            item.place = place
        except RequestError as exc:
            item.error = exc


def _skip_what_is_there(session: Session, items: list[JudgedItem], *, moving: bool) -> None:
    """Find the items whose destination an ACTIVE object holds that is what is wanted there."""
    holding = holders(session, [item.place for item in open_items(items) if item.place is not None])
    query = select(DataObject.id, DataObject.derived_from, DataObject.size, DataObject.checksum)
    there = {row.id: row for row in rows_in(session, query, DataObject.id, holding.values())}
    for item in open_items(items):
        holder = there.get(holding.get(item.place)) if item.place is not None else None
        if holder is not None and (holder.id == item.object_id if moving else _is_copy(holder, item.source)):
            item.skipped, item.result = True, holder.id


def _is_copy(holder: Any, source: Any) -> bool:
    """Say whether an object is a copy of the source as it is now; what one of them does not know is not compared."""
    return holder.derived_from == source.id and all(
        None in (theirs, ours) or theirs == ours
        for theirs, ours in ((holder.size, source.size), (holder.checksum, source.checksum))
    )


def _claim(session: Session, transfer: UUID, items: list[JudgedItem], *, moving: bool) -> None:
    """Claim destinations and objects; who comes second ends in ERROR."""
    claimed = claims_on(session, [item.object_id for item in open_items(items)])
    objects: dict[UUID, int] = {}
    places: dict[Place, int] = {}
    for number, item in enumerate(items):
        if item.status is not TransferStatus.QUEUED or item.place is None:
            continue
        item.error = busy(item, claimed.get(item.object_id), writing=moving)
        if item.error is not None:
            continue
        if moving and item.object_id in objects:
            item.error = ObjectBusy(f"object {item.object_id} is moved by item {objects[item.object_id]} of this batch")
        elif item.place in places:
            item.error = DestinationExists(
                f"{item.place} is the destination of item {places[item.place]} of this batch"
            )
        else:
            objects[item.object_id] = places[item.place] = number
            item.result = item.object_id if moving else uuid4()
            if moving:
                item.notes = known_note(item.source.size, item.source.checksum)
    claim_destinations(session, transfer, items)
    for item in items:
        if isinstance(item.error, DestinationExists):
            item.result = None
    claim_objects(session, {item.object_id for item in open_items(items)}, "write" if moving else "read", transfer)
