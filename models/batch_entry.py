"""A batch is accepted: each item is judged by the rules of a single copy or move, claims what it needs, and is stored.

An item that can't be done ends in ERROR here and hinders no other. One whose destination has already what is wanted is
COMPLETE here, so a repeated batch does only what is missing. All is done for all items at once: a statement for every
item would take minutes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast
from uuid import UUID, uuid4

from sqlalchemy import Table, insert, select
from sqlalchemy.orm import Session

from datamanager.domain.location import Place, normalised_prefix
from datamanager.domain.requests import ITEMS_MAX, BatchRequest, Directory
from datamanager.domain.states import ObjectStatus, TransferStatus
from datamanager.errors import (
    CatalogueError,
    DestinationExists,
    InvalidRequest,
    ObjectBusy,
    ObjectNotFound,
    RequestError,
)
from datamanager.machines import Machine, Machines
from models.database import storable
from models.many_claims import chunks, claim_objects, claim_places, claims_on, holders, lock_objects
from models.objects import require_usable
from models.tables import DataObject, Transfer, TransferItem

_SOURCE = (
    DataObject.id,
    DataObject.machine,
    DataObject.place,
    DataObject.status,
    DataObject.size,
    DataObject.checksum,
    DataObject.group,
)


@dataclass(slots=True)
class _Item:
    """An item while it is judged; `source` has the columns of _SOURCE."""

    object_id: UUID
    machine: str
    dest: str
    source: Any = None
    place: Place | None = None
    result: UUID | None = None
    skipped: bool = False
    error: RequestError | CatalogueError | None = None

    @property
    def status(self) -> TransferStatus:
        """What it is stored as."""
        if self.error is not None:
            return TransferStatus.ERROR
        return TransferStatus.COMPLETE if self.skipped else TransferStatus.QUEUED


def enter_items(
    session: Session, machines: Machines, transfer: Transfer, request: BatchRequest, *, moving: bool
) -> None:
    """Judge, claim for and store the items of a batch, and write into `transfer` what they have in common.

    Raises: for a directory UnknownMachine, PathNotAllowed, ObjectNotFound when nothing is below it, InvalidRequest when
    too much is. Whatever is wrong with an item is the item's.
    """
    items = _wanted(session, machines, request)
    _find_sources(session, machines, items)
    _find_destinations(machines, items)
    _skip_what_is_there(session, items, moving=moving)
    _claim(session, transfer.id, items, moving=moving)
    _store(session, transfer.id, items)
    to_do = _open(items)
    transfer.request = request.accepted(len(items)).model_dump(mode="json")
    transfer.source_machine = _common(item.source.machine for item in to_do)
    transfer.destination_machine = _common(item.machine for item in to_do)
    transfer.group = _common(item.source.group for item in to_do) or ""
    sizes = [item.source.size for item in to_do]
    transfer.bytes_total = None if None in sizes else sum(sizes)


def _wanted(session: Session, machines: Machines, request: BatchRequest) -> list[_Item]:
    if request.directory is None:
        return [_Item(item.uuid, item.machine, item.dest) for item in request.items or ()]
    target = machines[request.machine or ""]
    dest = (request.dest or "").rstrip("/")
    _prefix(target, request.dest or "")  # one refusal for a directory that can't be, not one for each item
    start = f"{dest}/" if request.dest else ""
    below = _objects_below(session, machines, request.directory)
    return [_Item(object_id, target.name, start + path) for object_id, path in below]


def _objects_below(session: Session, machines: Machines, directory: Directory) -> list[tuple[UUID, str]]:
    """Return the ACTIVE objects below a directory, each with its path from there on."""
    prefix = _prefix(machines[directory.machine], directory.path)
    query = select(DataObject.id, DataObject.place).where(
        DataObject.machine == directory.machine, DataObject.status == ObjectStatus.ACTIVE.value
    )
    if prefix:
        # all that begins with "prefix/": "0" is the character after "/"
        query = query.where(DataObject.place > f"{prefix}/", DataObject.place < f"{prefix}0")
    found = session.execute(query.order_by(DataObject.place).limit(ITEMS_MAX + 1)).all()
    if not found:
        raise ObjectNotFound(f"no ACTIVE object lies below {directory.machine}:{prefix or '.'}")
    if len(found) > ITEMS_MAX:
        what = f"more than {ITEMS_MAX} objects lie below it; give its parts one by one"
        raise InvalidRequest(f"directory.path: {what}", {"directory.path": what})
    cut = len(prefix) + 1 if prefix else 0
    return [(object_id, place[cut:]) for object_id, place in found]


def _prefix(machine: Machine, path: str) -> str:
    return normalised_prefix(machine, f"{path}/" if path else "")


def _find_sources(session: Session, machines: Machines, items: list[_Item]) -> None:
    rows = {row.id: row for row in lock_objects(session, (item.object_id for item in items), *_SOURCE)}
    for item in items:
        item.source = rows.get(item.object_id)
        try:
            if item.source is None:
                raise ObjectNotFound(f"no object has the identifier {item.object_id}")
            require_usable(item.source)
            machines[item.source.machine]  # raises UnknownMachine
        except (RequestError, CatalogueError) as exc:
            item.error = exc


def _find_destinations(machines: Machines, items: list[_Item]) -> None:
    for item in _open(items):
        try:
            item.place = Place.of(machines[item.machine], item.dest)
        except RequestError as exc:
            item.error = exc


def _skip_what_is_there(session: Session, items: list[_Item], *, moving: bool) -> None:
    """Find the items whose destination an ACTIVE object holds that is what is wanted there."""
    holding = holders(session, [item.place for item in _open(items) if item.place is not None])
    there: dict[UUID, Any] = {}
    for some in chunks(list(holding.values())):
        columns = (DataObject.id, DataObject.derived_from, DataObject.size, DataObject.checksum)
        there.update((row.id, row) for row in session.execute(select(*columns).where(DataObject.id.in_(some))))
    for item in _open(items):
        holder = there.get(holding.get(item.place)) if item.place is not None else None  # type: ignore[arg-type]
        if holder is not None and (holder.id == item.object_id if moving else _is_copy(holder, item.source)):
            item.skipped, item.result = True, holder.id


def _is_copy(holder: Any, source: Any) -> bool:
    """Say whether an object is a copy of the source as it is now; what one of them does not know is not compared."""
    return holder.derived_from == source.id and all(
        None in (theirs, ours) or theirs == ours
        for theirs, ours in ((holder.size, source.size), (holder.checksum, source.checksum))
    )


def _claim(session: Session, transfer: UUID, items: list[_Item], *, moving: bool) -> None:
    """Claim destinations and objects; who comes second ends in ERROR."""
    claimed = claims_on(session, [item.object_id for item in _open(items)])
    objects: dict[UUID, int] = {}
    places: dict[Place, int] = {}
    for number, item in enumerate(items):
        if item.status is not TransferStatus.QUEUED or item.place is None:
            continue
        mode = claimed.get(item.object_id)
        if mode == "write":
            item.error = ObjectBusy(f"object {item.object_id} is being moved or deleted")
        elif moving and mode is not None:
            item.error = ObjectBusy(f"object {item.object_id} is being read by another transfer")
        elif moving and item.object_id in objects:
            item.error = ObjectBusy(f"object {item.object_id} is moved by item {objects[item.object_id]} of this batch")
        elif item.place in places:
            item.error = DestinationExists(
                f"{item.place} is the destination of item {places[item.place]} of this batch"
            )
        else:
            objects[item.object_id] = places[item.place] = number
            item.result = item.object_id if moving else uuid4()
    contenders = [(item, item.place, item.result) for item in _open(items)]
    wanted = [(place, result) for _, place, result in contenders if place is not None and result is not None]
    won = claim_places(session, wanted, transfer=transfer)
    for item, place, result in contenders:
        if result not in won:
            item.error = DestinationExists(f"{place} is held by a registered object or by a transfer under way")
            item.result = None
    claim_objects(session, {item.object_id for item in _open(items)}, "write" if moving else "read", transfer)


def _store(session: Session, transfer: UUID, items: list[_Item]) -> None:
    rows: list[dict[str, Any]] = [
        {
            "transfer_id": transfer,
            "number": number,
            "object_id": item.object_id,
            "result_object_id": item.result,
            "source_machine": item.source.machine if item.source else None,
            "source_place": item.source.place if item.source else None,
            "destination_machine": item.machine,
            "destination_place": item.place.path if item.place else None,
            "dest": item.dest,
            "size": item.source.size if item.source else None,
            "status": item.status.value,
            "skipped": item.skipped,
            "notes": {},
            "error_code": item.error.code if item.error else None,
            "error_detail": storable(item.error.detail) if item.error else None,
        }
        for number, item in enumerate(items)
    ]
    session.execute(insert(cast(Table, TransferItem.__table__)), rows)


def _open(items: list[_Item]) -> list[_Item]:
    return [item for item in items if item.status is TransferStatus.QUEUED]


def _common(values: Iterable[str]) -> str | None:
    """Return what all values are, None when they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None
