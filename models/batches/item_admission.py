"""Items of a transfer while they are judged, and how they are stored: what all kinds of batches have in common.

An item that can't be done ends in ERROR here and hinders no other. All is done for all items at once: a statement for
every item would take minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from datamanager.domain.fields import SIZE_MAX
from datamanager.domain.location import Place, normalised_prefix
from datamanager.domain.requests import ITEMS_MAX, Directory
from datamanager.domain.states import ObjectStatus, TransferStatus
from datamanager.errors import (
    CatalogueError,
    DataManagerError,
    DestinationExists,
    InvalidRequest,
    ObjectBusy,
    ObjectNotFound,
    RequestError,
)
from datamanager.machines import Machine, Machines
from models.database import insert_rows, storable
from models.objects.bulk_claims import claim_places, lock_objects
from models.objects.catalogue import require_usable
from models.tables import DataObject, Transfer, TransferItem

_SOURCE = (
    DataObject.id,
    DataObject.machine,
    DataObject.path,
    DataObject.filename,
    DataObject.place,
    DataObject.status,
    DataObject.size,
    DataObject.checksum,
    DataObject.group,
)


@dataclass(slots=True)
class JudgedItem:
    """An item while it is judged. `source` has the object's columns, or the size of what is no object yet; `origin` is
    where its bytes are, if not there.
    """

    object_id: UUID
    machine: str
    dest: str
    source: Any = None
    origin: Place | None = None
    place: Place | None = None
    result: UUID | None = None
    skipped: bool = False
    error: DataManagerError | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> TransferStatus:
        """What it is stored as."""
        if self.error is not None:
            return TransferStatus.ERROR
        return TransferStatus.COMPLETE if self.skipped else TransferStatus.QUEUED

    @property
    def read_from(self) -> Place | None:
        """Where its bytes are."""
        if self.origin is not None or self.source is None:
            return self.origin
        return Place(self.source.machine, self.source.place)


def objects_below(
    session: Session, machines: Machines, directory: Directory, status: ObjectStatus = ObjectStatus.ACTIVE
) -> list[tuple[UUID, str]]:
    """Return the objects of a status below a directory, each with its path from there on.

    Raises: UnknownMachine, PathNotAllowed, ObjectNotFound when nothing is there, InvalidRequest when too much is.
    """
    prefix = prefix_of(machines[directory.machine], directory.path)
    query = select(DataObject.id, DataObject.place).where(
        DataObject.machine == directory.machine, DataObject.status == status.value
    )
    if prefix:
        # all that begins with "prefix/": "0" is the character after "/"
        query = query.where(DataObject.place > f"{prefix}/", DataObject.place < f"{prefix}0")
    found = session.execute(query.order_by(DataObject.place).limit(ITEMS_MAX + 1)).all()
    if not found:
        raise ObjectNotFound(f"no {status} object is below {directory.machine}:{prefix or '.'}")
    if len(found) > ITEMS_MAX:
        what = f"more than {ITEMS_MAX} objects are below it; request its subdirectories one by one"
        raise InvalidRequest.of({"directory.path": what})
    cut = len(prefix) + 1 if prefix else 0
    return [(object_id, place[cut:]) for object_id, place in found]


def prefix_of(machine: Machine, path: str) -> str:
    """Normalise a directory of a request. Raises: PathNotAllowed."""
    return normalised_prefix(machine, f"{path}/" if path else "")


def find_sources(session: Session, items: list[JudgedItem], judge: Callable[[JudgedItem], None]) -> None:
    """Lock the items' objects, and judge each that exists; what `judge` raises is the item's end."""
    rows = {row.id: row for row in lock_objects(session, (item.object_id for item in items), *_SOURCE)}
    for item in items:
        item.source = rows.get(item.object_id)
        try:
            if item.source is None:
                raise ObjectNotFound(f"no object has the identifier {item.object_id}")
            judge(item)
        except (RequestError, CatalogueError) as exc:
            item.error = exc


def require_source(machines: Machines, item: JudgedItem) -> None:
    """Check that an item's object may be read where it is. Raises: what `require_usable` raises, UnknownMachine."""
    require_usable(item.source)
    machines[item.source.machine]  # raises UnknownMachine


def busy(item: JudgedItem, claimed: str | None, *, writing: bool) -> ObjectBusy | None:
    """Return why an item can't have its object, which others have claimed: readers share, a writer excludes."""
    if claimed == "write":
        return ObjectBusy(f"object {item.object_id} is being moved, archived, activated or deleted")
    if writing and claimed is not None:
        return ObjectBusy(f"object {item.object_id} is being read by another transfer")
    return None


def claim_destinations(session: Session, transfer: UUID, items: list[JudgedItem]) -> None:
    """Claim the items' places, each for what will lie there; who comes second ends in ERROR."""
    contenders = [(item, item.place, item.result) for item in open_items(items)]
    wanted = [(place, result) for _, place, result in contenders if place is not None and result is not None]
    won = claim_places(session, wanted, transfer=transfer)
    for item, place, result in contenders:
        if result not in won:
            item.error = DestinationExists(f"{place} is held by a registered object or a running transfer")


def store(session: Session, transfer: Transfer, items: list[JudgedItem]) -> None:
    """Store the items, and write into `transfer` what those that are to be done have in common."""
    insert_items(session, transfer.id, items)
    to_do = open_items(items)
    transfer.source_machine = _common(item.read_from.machine for item in to_do if item.read_from)
    transfer.destination_machine = _common(item.machine for item in to_do)
    transfer.group = _common(item.source.group for item in to_do) or ""
    sizes = [item.source.size for item in to_do]
    transfer.bytes_total = None if None in sizes else min(sum(sizes), SIZE_MAX)


def insert_items(session: Session, transfer: UUID, items: list[JudgedItem]) -> None:
    """Store the items, numbered in this order."""
    rows: list[dict[str, Any]] = []
    for number, item in enumerate(items):
        origin = item.read_from
        rows.append(
            {
                "transfer_id": transfer,
                "number": number,
                "object_id": item.object_id,
                "result_object_id": item.result,
                "source_machine": origin.machine if origin else None,
                "source_place": origin.path if origin else None,
                "destination_machine": item.machine,
                "destination_place": item.place.path if item.place else None,
                "dest": item.dest,
                "size": item.source.size if item.source else None,
                "status": item.status.value,
                "skipped": item.skipped,
                "notes": item.notes,
                "error_code": item.error.code if item.error else None,
                "error_detail": storable(item.error.detail) if item.error else None,
            }
        )
    insert_rows(session, TransferItem, rows)


def open_items(items: list[JudgedItem]) -> list[JudgedItem]:
    """Return the items that are to be done."""
    return [item for item in items if item.status is TransferStatus.QUEUED]


def _common(values: Iterable[str]) -> str | None:
    """Return what all values are, None when they differ."""
    found = set(values)
    return found.pop() if len(found) == 1 else None
