"""Items of a transfer while they are judged, and how they are stored: what all kinds of batches have in common.

An item that can't be done ends in ERROR here and hinders no other. All is done for all items at once: a statement for
every item would take minutes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from datamanager.domain.fields import SIZE_MAX
from datamanager.domain.location import Place, normalised_prefix
from datamanager.domain.requests import DIRECTORY_MAX, ITEMS_MAX, Directory
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
from models.access.visibility import Visible
from models.bulk_rows import insert_columns
from models.database import on_postgresql, storable, table_of
from models.objects.bulk_claims import claim_places, lock_objects, rows_in
from models.objects.catalogue import require_usable
from models.tables import DataObject, Transfer, TransferItem
from models.tables.objects import PLACE_INDEXED, PLACE_KEY

_objects = table_of(DataObject).c
SOURCE = (
    _objects.id,
    _objects.machine,
    _objects.path,
    _objects.filename,
    _objects.place,
    _objects.status,
    _objects.size,
    _objects.checksum,
    _objects.group,
    _objects.created_by,
)
"""What is judged of an object."""
PIECE = ITEMS_MAX
"""Objects below a directory that are in memory at once."""


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
    def read_from(self) -> tuple[str | None, str | None]:
        """Where its bytes are: machine and place, None if nowhere."""
        if self.origin is not None:
            return self.origin.machine, self.origin.path
        return (None, None) if self.source is None else (self.source.machine, self.source.place)


Below = list[tuple[Any, str]]
"""Objects below a directory: the columns SOURCE of each, and its path from there on."""


def objects_below(
    session: Session,
    machines: Machines,
    directory: Directory,
    visible: Visible,
    status: ObjectStatus = ObjectStatus.ACTIVE,
) -> Below:
    """Return the objects of a status below a directory that are seen.

    Raises: UnknownMachine, PathNotAllowed, ObjectNotFound when nothing is there, InvalidRequest when too much is.
    """
    return next(pieces_below(session, machines, directory, visible, status, most=ITEMS_MAX))


def pieces_below(
    session: Session,
    machines: Machines,
    directory: Directory,
    visible: Visible,
    status: ObjectStatus = ObjectStatus.ACTIVE,
    *,
    most: int = DIRECTORY_MAX,
    lock: bool = False,
) -> Iterator[Below]:
    """Yield the objects of a status below a directory that are seen, by place, in pieces of up to PIECE. `lock`: all at
    the beginning, so that none gets another place meanwhile and comes twice.

    Raises: UnknownMachine, PathNotAllowed, ObjectNotFound when nothing is there; InvalidRequest when more than `most`
    objects are, before the last of them are yielded.
    """
    query, cut = select_below(session, machines, directory, visible, status)
    if lock and on_postgresql(session):  # SQLite's writing transaction excludes others
        locked = query.with_only_columns(_objects.id).order_by(_objects.id)
        session.execute(select(func.count()).select_from(locked.with_for_update().subquery()))
    query, left = query.order_by(_objects.place), most
    following = query
    while found := session.execute(following.limit(min(left, PIECE) + 1)).all():
        if len(found) > left:
            break
        piece = found[:PIECE]
        yield [(row, row.place[cut:]) for row in piece]
        if len(found) <= PIECE:
            return
        following, left = query.where(_objects.place > piece[-1].place), left - PIECE
    require_some(machines, directory, most - left + len(found), status, most)


def select_below(
    session: Session,
    machines: Machines,
    directory: Directory,
    visible: Visible,
    status: ObjectStatus = ObjectStatus.ACTIVE,
) -> tuple[Select[*tuple[Any, ...]], int]:
    """Return the query for the columns SOURCE of the objects of a status below a directory that are seen, and how many
    characters of their places lead to it. Raises: UnknownMachine, PathNotAllowed.
    """
    prefix = prefix_of(machines[directory.machine], directory.path)
    query = select(*SOURCE).where(_objects.machine == directory.machine, _objects.status == status.value)
    query = query.where(*visible.objects())
    if not prefix:
        return query, 0
    # all that begins with "prefix/": "0" is the character after "/"
    start, end = f"{prefix}/", f"{prefix}0"
    if on_postgresql(session):  # which finds them by an index of how their places begin, SQLite by that of places
        query = query.where(PLACE_KEY.between(start[:PLACE_INDEXED], end[:PLACE_INDEXED]))
    return query.where(_objects.place > start, _objects.place < end), len(start)


def require_some(
    machines: Machines,
    directory: Directory,
    count: int,
    status: ObjectStatus = ObjectStatus.ACTIVE,
    most: int = DIRECTORY_MAX,
) -> None:
    """Check that there are objects below a directory, and no more than `most`. Raises: ObjectNotFound,
    InvalidRequest."""
    if not count:
        where = prefix_of(machines[directory.machine], directory.path) or "."
        raise ObjectNotFound(f"no {status} object is below {directory.machine}:{where}")
    if count > most:
        what = f"more than {most} objects are below it; request its subdirectories one by one"
        raise InvalidRequest.of({"directory.path": what})


def prefix_of(machine: Machine, path: str) -> str:
    """Normalise a directory of a request. Raises: PathNotAllowed."""
    return normalised_prefix(machine, f"{path}/" if path else "")


def find_sources(
    session: Session, items: list[JudgedItem], judge: Callable[[JudgedItem], None], *, lock: bool = True
) -> None:
    """Lock the items' objects, and judge each that exists; what `judge` raises is the item's end: of one that is not
    found nothing is kept. Without `lock` those that are known already are not read again.
    """
    wanted = {item.object_id for item in items if lock or item.source is None}
    found = lock_objects(session, wanted, *SOURCE) if lock else rows_in(session, select(*SOURCE), _objects.id, wanted)
    rows = {row.id: row for row in found}
    for item in items:
        if item.object_id in wanted:
            item.source = rows.get(item.object_id)
        try:
            if item.source is None:
                raise ObjectNotFound(f"no object has the identifier {item.object_id}")
            judge(item)
        except (RequestError, CatalogueError) as exc:
            item.error = exc
            if isinstance(exc, ObjectNotFound):
                item.source = None


def sources_stand(session: Session, items: list[JudgedItem]) -> bool:
    """Lock the objects of items that were judged without, and say whether all are still what they were then."""
    known = {item.object_id: item.source for item in items}
    # in the order in which they are locked; without the identifiers, as to make these costs more than all the rest
    before = [known[object_id][1:] for object_id in sorted(known, key=attrgetter("int"))]
    return list(lock_objects(session, known, *SOURCE[1:])) == before


def require_readable(machines: Machines, item: JudgedItem) -> None:
    """Check that an item's object can be read where it is. Raises: what `require_usable` raises, UnknownMachine."""
    require_usable(item.source)
    machines[item.source.machine]  # raises UnknownMachine


def busy(item: JudgedItem, claimed: str | None, *, writing: bool) -> ObjectBusy | None:
    """Return why an item can't have its object, which others have claimed: readers share, a writer excludes."""
    if claimed == "write":
        return ObjectBusy(f"object {item.object_id} is being moved, archived, activated or deleted")
    if writing and claimed is not None:
        return ObjectBusy(f"object {item.object_id} is being read by another transfer")
    return None


def claim_destinations(session: Session, transfer: UUID, items: list[JudgedItem]) -> list[JudgedItem]:
    """Claim the items' places, each for what will lie there; who comes second ends in ERROR. Return these."""
    contenders = [(item, item.place, item.result) for item in open_items(items)]
    wanted = [(place, result) for _, place, result in contenders if place is not None and result is not None]
    won = claim_places(session, wanted, transfer=transfer)
    lost = [(item, place) for item, place, result in contenders if result not in won]
    for item, place in lost:
        item.error = DestinationExists(f"{place} is held by a registered object or a running transfer")
    return [item for item, _ in lost]


def store(session: Session, transfer: Transfer, pieces: Iterable[list[JudgedItem]]) -> int:
    """Store the items, piece by piece, and write into `transfer` what those that are to be done have in common. Return
    how many there are.
    """
    sources, destinations, groups = set[str](), set[str](), set[str]()
    count, sizes = 0, list[int | None]()
    for items in pieces:
        insert_items(session, transfer.id, items, first=count)
        count += len(items)
        to_do = open_items(items)
        sources |= {machine for machine, _ in (item.read_from for item in to_do) if machine is not None}
        destinations |= {item.machine for item in to_do}
        groups |= {item.source.group for item in items if item.source is not None}  # who sees the batch sees them all
        known = [item.source.size for item in to_do]
        sizes.append(None if None in known else sum(known))
    transfer.source_machine = _common(sources)
    transfer.destination_machine = _common(destinations)
    transfer.group = _common(groups) or ""
    transfer.bytes_total = None if None in sizes else min(sum(size or 0 for size in sizes), SIZE_MAX)
    return count


def insert_items(session: Session, transfer: UUID, items: list[JudgedItem], *, first: int = 0) -> None:
    """Store the items, numbered in this order, from `first` on."""
    if not items:
        return
    origins = [item.read_from for item in items]
    columns: dict[str, Sequence[Any]] = {
        "transfer_id": [transfer] * len(items),
        "number": range(first, first + len(items)),
        "object_id": [item.object_id for item in items],
        "result_object_id": [item.result for item in items],
        "source_machine": [machine for machine, _ in origins],
        "source_place": [path for _, path in origins],
        "destination_machine": [item.machine for item in items],
        "destination_place": [item.place.path if item.place else None for item in items],
        "dest": [item.dest for item in items],
        "size": [item.source.size if item.source else None for item in items],
        "status": [item.status.value for item in items],
        "skipped": [item.skipped for item in items],
        "notes": [item.notes for item in items],
        "error_code": [item.error.code if item.error else None for item in items],
        "error_detail": [storable(item.error.detail) if item.error else None for item in items],
    }
    insert_columns(session, TransferItem, columns)


def open_items(items: list[JudgedItem]) -> list[JudgedItem]:
    """Return the items that are to be done."""
    return [item for item in items if item.error is None and not item.skipped]


def _common(found: set[str]) -> str | None:
    """Return what all values are, None when they differ."""
    return next(iter(found)) if len(found) == 1 else None
