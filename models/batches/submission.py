"""A batch is accepted: each item is judged by the rules of a single copy or move, claims what it needs, and is stored.

An item that can't be done ends in ERROR here and hinders no other. One whose destination has already what is wanted is
COMPLETE here, so a repeated batch does only what is missing. All is done for all items at once: a statement for every
item would take minutes.

Items are judged before the transaction that accepts them (`judge_items`), as that one has SQLite's writers wait. It
looks again whether the objects that are to be read or moved are still what they were; if not, all is judged anew in it.
A directory whose objects are likely to be ordinary needs no judging before: `whole_directories`.
Places are never judged before: who claims one has it. An item that is skipped is not looked at again: its object lay at
its destination after the request came.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from datamanager.domain.location import Place, require_outside_archive
from datamanager.domain.requests import BatchRequest
from datamanager.domain.states import TransferKind
from datamanager.errors import DestinationExists, ObjectBusy, RequestError
from datamanager.identity.grant import Grant
from datamanager.machines import Machines
from models.access.permission import require_destination, require_source, sources_of
from models.batches.item_admission import (
    JudgedItem,
    busy,
    claim_destinations,
    find_sources,
    open_items,
    pieces_below,
    prefix_of,
    require_readable,
    sources_stand,
    store,
)
from models.batches.whole_directories import enter_whole, first_place_is_free
from models.core.identifiers import new_ids
from models.database import table_of
from models.objects.bulk_claims import claim_objects_of_items, claims_on, holders
from models.tables import DataObject, Transfer
from models.transfers.items import known_note

_objects = table_of(DataObject).c
_HOLDER = _objects.id, _objects.derived_from, _objects.size, _objects.checksum
"""What an object is known by as what is wanted at its place."""


def judge_items(
    session: Session, machines: Machines, request: BatchRequest, grant: Grant | None, *, moving: bool
) -> list[JudgedItem] | None:
    """Judge the items of a batch by what the catalogue says now; only reads. None: they need not be judged before, or a
    directory has more than are to be in memory at once.

    Raises: for a directory UnknownMachine, PathNotAllowed, ObjectNotFound when nothing is below it, InvalidRequest when
    too much is. Whatever is wrong with an item is the item's.
    """
    if request.directory is not None and first_place_is_free(
        session, machines, request, request.directory, sources_of(grant, _kind(moving))
    ):
        return None
    pieces = _wanted(session, machines, request, grant, moving=moving)
    items = next(pieces)
    if next(pieces, None) is not None:
        return None
    _judge(session, machines, items, grant, moving=moving, lock=False)
    return items


def _judge(
    session: Session, machines: Machines, items: list[JudgedItem], grant: Grant | None, *, moving: bool, lock: bool
) -> None:
    def judge(item: JudgedItem) -> None:
        require_source(grant, _kind(moving), item.source)
        require_readable(machines, item)

    find_sources(session, items, judge, lock=lock)
    _find_destinations(machines, items, grant, moving=moving)
    _skip_what_is_there(session, open_items(items), moving=moving)


def enter_items(
    session: Session,
    machines: Machines,
    transfer: Transfer,
    request: BatchRequest,
    judged: list[JudgedItem] | None,
    grant: Grant | None,
    *,
    moving: bool,
) -> None:
    """Claim for and store the items of a batch, and write into `transfer` what they have in common. `judged`: as they
    were judged before this transaction, if they were. Raises: what `judge_items` raises.
    """
    if judged is None and request.directory is not None:
        whole = enter_whole(session, machines, transfer, request, request.directory, grant, moving=moving)
        if whole is not None:
            transfer.request = request.accepted(whole).model_dump(mode="json")
            return
    known = judged is not None and sources_stand(session, open_items(judged))

    def claimed() -> Iterator[list[JudgedItem]]:
        wanted = _wanted(session, machines, request, grant, moving=moving, lock=True)
        for items in [judged] if known and judged is not None else wanted:
            if not known:
                _judge(session, machines, items, grant, moving=moving, lock=True)
            _claim(session, transfer.id, items, moving=moving)
            yield items

    count = store(session, transfer, claimed())
    claim_objects_of_items(session, transfer.id, "write" if moving else "read")
    transfer.request = request.accepted(count).model_dump(mode="json")


def _kind(moving: bool) -> TransferKind:
    return TransferKind.MOVE_MANY if moving else TransferKind.COPY_MANY


def _wanted(
    session: Session,
    machines: Machines,
    request: BatchRequest,
    grant: Grant | None,
    *,
    moving: bool,
    lock: bool = False,
) -> Iterator[list[JudgedItem]]:
    """Yield the items in pieces; those of a directory are all different objects, so no piece meets another's."""
    if request.directory is None:
        yield [JudgedItem(item.uuid, item.machine, item.dest) for item in request.items or ()]
        return
    target = machines[request.machine or ""]
    dest = (request.dest or "").rstrip("/")
    prefix_of(target, request.dest or "")  # one refusal for a directory that can't be, not one for each item
    start = f"{dest}/" if request.dest else ""
    for below in pieces_below(session, machines, request.directory, sources_of(grant, _kind(moving)), lock=lock):
        yield [JudgedItem(row.id, target.name, start + path, row) for row, path in below]


def _find_destinations(machines: Machines, items: list[JudgedItem], grant: Grant | None, *, moving: bool) -> None:
    """Find where each item's object is to be, and its identifier there."""
    waiting = open_items(items)
    for item, new in zip(waiting, new_ids(len(waiting)), strict=True):
        try:
            place = Place.of(machines[item.machine], item.dest)
            require_destination(grant, _kind(moving), place, item.source.group, item.source.created_by)
            require_outside_archive(machines[item.machine], place.path)
            item.place, item.result = place, item.object_id if moving else new
        except RequestError as exc:
            item.error = exc


def _skip_what_is_there(session: Session, items: list[JudgedItem], *, moving: bool) -> None:
    """Find those of the items whose destination an ACTIVE object holds that is what is wanted there."""
    there = holders(session, [item.place for item in items if item.place is not None], *_HOLDER)
    for item in items if there else ():
        holder = there.get(item.place) if item.place is not None else None
        if holder is not None and (holder.id == item.object_id if moving else _is_copy(holder, item.source)):
            item.skipped, item.result, item.error = True, holder.id, None


def _is_copy(holder: Any, source: Any) -> bool:
    """Say whether an object is a copy of the source as it is now; what one of them does not know is not compared."""
    return holder.derived_from == source.id and all(
        None in (theirs, ours) or theirs == ours
        for theirs, ours in ((holder.size, source.size), (holder.checksum, source.checksum))
    )


def _claim(session: Session, transfer: UUID, items: list[JudgedItem], *, moving: bool) -> None:
    """Claim destinations, and see who may have the objects; who comes second ends in ERROR."""
    to_do = open_items(items)
    claimed = claims_on(session, [item.object_id for item in to_do], only_writers=not moving)
    objects: dict[UUID, int] = {}
    places: dict[Place, int] = {}
    for number, item in enumerate(items):
        if item.skipped or item.error is not None or item.place is None:
            continue
        if claimed:
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
            if moving:
                item.notes = known_note(item.source.size, item.source.checksum)
    lost = claim_destinations(session, transfer, items)
    for item in to_do:
        if item.error is not None:
            item.result = None
    _skip_what_is_there(session, lost, moving=moving)  # it may have come there since they were judged
