"""Batches, as the mover that performs one tells the catalogue of it: intents, ends of items, the end of the whole.

Every function is fenced: a runner that lost its lease gets LeaseLost and changes nothing. Those that take many items
are one transaction for all of them, best at most CHUNK at once; they take the transfer row first and object rows by
their identifier, so that they never wait in a circle. They are idempotent: an item that has ended already is left as it
is, so a transaction whose commit was in doubt may be repeated.

A copy's way:  `record_intents` → file gets its name → `complete_copies`.
A move's way:  `record_intents` → file gets its name → `commit_moves` → source removed → `end_committed`.
An item that an attempt before this one left between two steps is found by its `notes`: `intent` was recorded (the file
may have its name already), `committed` (the object is at its new place; only the source has to go).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session

from datamanager.domain.location import Place
from datamanager.domain.states import TransferKind, TransferStatus
from datamanager.errors import (
    DataManagerError,
    DestinationExists,
    InternalError,
    ItemsFailed,
    PathReplaced,
    SourceMissing,
)
from models.audit.missing_objects import note_missing
from models.batches.copies import enter_copies
from models.bulk_rows import among
from models.core.outbox import post_object_events, post_path_replaced
from models.database import now, storable, table_of
from models.many_rows import columns_of, given_rows, update_many, with_member
from models.objects.bulk_claims import claim_places, free_claims_on, give_places_to_objects, lock_objects
from models.objects.catalogue import Facts, NewRow, add_objects, relocate
from models.tables import DataObject, Transfer, TransferItem
from models.transfers import outcomes
from models.transfers.items import count_items, rows_of_items, select_items
from models.transfers.queue import DETAIL_MAX, TransferLease, held

CHUNK = 1000
"""Items in one transaction: what others wait for at most."""
COPIES = 2000
"""Copies, or intents, in one transaction, which cost half as much."""

_ONCE = "objects_once"
"""The note of whether no two items are of one object."""
_items = table_of(TransferItem)
DONE = {"status": TransferStatus.COMPLETE.value}
"""What ends an item well."""


def items_to_do(session: Session, hold: TransferLease, after: int, limit: int) -> Sequence[Any]:
    """Return up to `limit` QUEUED items with a `number` above `after` (-1 at the start), by number: rows with the
    columns TO_DO of `models.transfers.items`.

    Raises: LeaseLost.
    """
    held(session, hold)
    return rows_of_items(session, hold.transfer, status=TransferStatus.QUEUED, after=after, limit=limit)


def range_to_do(session: Session, hold: TransferLease, after: int, limit: int) -> tuple[int, int] | None:
    """Return the first and the last number of up to `limit` QUEUED items with a `number` above `after`; None when there
    is none. Raises: LeaseLost.
    """
    held(session, hold)
    queued = _items.c.transfer_id == hold.transfer, _items.c.status == TransferStatus.QUEUED.value
    some = select(_items.c.number).where(*queued, _items.c.number > after).order_by(_items.c.number).limit(limit)
    found = some.subquery()
    first, last = session.execute(select(func.min(found.c.number), func.max(found.c.number))).one()
    return None if first is None else (first, last)


def claim_canonicals(session: Session, hold: TransferLease, canonicals: Mapping[int, str]) -> list[int]:
    """Hold the destinations' canonical places too, where links lead to them (number → path below base_dir).

    An item whose canonical place is held by another object or transfer, or by another item, ends in ERROR
    `destination_exists` at once. Returns the numbers of those. Raises: LeaseLost.
    """
    row, items = open_items(session, hold, canonicals)
    new = [
        (item, Place(item.destination_machine, canonicals[item.number]))
        for item in items
        if canonicals[item.number] not in (item.destination_place, item.notes.get("canonical"))
    ]
    won = claim_places(session, [(place, _result(item)) for item, place in new], transfer=row.id)
    noted, lost = [], []
    for item, place in new:
        if item.result_object_id in won:
            noted.append(noting(item, canonical=place.path))
        else:
            taken = f"{place} is held by a registered object, another item or a running transfer"
            lost.append((item, DestinationExists(taken)))
    update_items(session, row, noted)
    _fail(session, row, lost)
    return [item.number for item, _ in lost]


def record_intents(session: Session, hold: TransferLease, intents: Mapping[int, Mapping[str, Any]]) -> None:
    """Record, before files get their names, how a later attempt recognises them (number → `intent` in the item's
    notes: size, sha256, mtime). Raises: LeaseLost.
    """
    row = held(session, hold, lock=True)
    columns, same = (_items.c.number, _items.c.notes), {_items.c.transfer_id: row.id}
    given = given_rows(session, columns, list(intents.items()), same)
    mine = _items.c.transfer_id == given.c.transfer_id, _items.c.number == given.c.number, _queued()
    noted = with_member(session, _items.c.notes, "intent", given.c.notes)
    session.execute(update(_items).where(*mine).values(notes=noted))
    row.past_commit_point = True


def complete_copies(session: Session, hold: TransferLease, results: Sequence[tuple[int, Facts]]) -> None:
    """End items of COPY_MANY: for each a new object with the source's originator, group and lineage.

    Its identifier is the item's `result_object_id`. Raises: LeaseLost.
    """
    row = _held_of_kind(session, hold, TransferKind.COPY_MANY)
    enter_copies(session, row, results, objects_once=_once(session, row))


def commit_moves(session: Session, hold: TransferLease, results: Sequence[tuple[int, Facts]]) -> None:
    """Give objects of MOVE_MANY their new places; the old ones stay with the transfer until `end_committed`.

    The items stay QUEUED, with `committed` in their notes. Raises: LeaseLost.
    """
    facts = dict(results)
    row, items = open_items(session, hold, facts, TransferKind.MOVE_MANY)
    items = [item for item in items if not item.notes.get("committed")]
    objects: dict[UUID, DataObject] = {
        moved.id: moved for moved in lock_objects(session, (item.object_id for item in items))
    }
    give_places_to_objects(session, list(objects), row.id)
    time = now(session)
    told, noted = [], []
    for item in items:
        moved = objects[item.object_id]
        data = relocate(moved, destination(item), item.dest, time, facts[item.number])
        noted.append({**noting(item, committed=True), "size": moved.size})
        told.append((moved.id, {**data, "from": {"machine": item.source_machine, "place": item.source_place}}))
    update_items(session, row, noted)
    post_object_events(session, "moved", told, time)


def end_committed(session: Session, hold: TransferLease, numbers: Sequence[int]) -> None:
    """End items that were committed and whose sources are gone. Raises: LeaseLost."""
    row, items = open_items(session, hold, numbers)
    for item in items:
        if not item.notes.get("committed"):
            raise InternalError(f"item {item.number} of {row.id} was not committed")
    complete_items(session, row, items)


def fail_items(session: Session, hold: TransferLease, failures: Sequence[tuple[int, DataManagerError]]) -> None:
    """End items in ERROR; what they claimed is free at once.

    The object is as it was, or (a move that was committed: SourceNotRemoved) at its new place. Raises: LeaseLost.
    """
    errors = dict(failures)
    row, items = open_items(session, hold, errors)
    _fail(session, row, [(item, errors[item.number]) for item in items])


def finish_batch(session: Session, hold: TransferLease) -> str | ItemsFailed:
    """End a batch that has nothing left to do: COMPLETE, and return its result; or ERROR `items_failed` when items
    failed, and return that error (returned, not raised: it must not take the transaction back).

    Raises: LeaseLost; InternalError while items are QUEUED.
    """
    row = held(session, hold, lock=True)
    counts = count_items(session, row.id)
    if counts.queued:
        raise InternalError(f"{counts.queued} items of {row.id} are not done")
    if counts.error:
        first = select_items(session, row.id, status=TransferStatus.ERROR, limit=1)[0]
        what = f"{counts.error} of {counts.total} items failed, first: {first.error_code}: {first.error_detail}"
        error = ItemsFailed(what)
        outcomes.fail(session, hold, error)
        return error
    result = f"{counts.total} items done"
    if counts.skipped:
        result += f" ({counts.skipped} already present)"
    done = select(func.sum(TransferItem.size)).where(TransferItem.transfer_id == row.id, ~TransferItem.skipped)
    outcomes.complete(session, row, result, Facts(int(session.scalar(done) or 0)))
    return result


def destination(item: TransferItem) -> Place:
    """Return where the item's file is to be."""
    if item.destination_place is None:
        raise InternalError(f"item {item.number} has no destination")
    return Place(item.destination_machine, item.destination_place)


def source(item: TransferItem) -> Place:
    """Return where the item's file was when it was requested."""
    if item.source_machine is None or item.source_place is None:
        raise InternalError(f"item {item.number} has no source")
    return Place(item.source_machine, item.source_place)


def open_items(
    session: Session,
    hold: TransferLease,
    numbers: Iterable[int],
    kind: TransferKind | None = None,
) -> tuple[Transfer, Sequence[Any]]:
    """Lock the transfer and return it with those of the items that are QUEUED, by number: rows of plain columns, which
    cost less than objects of the session do; `update_items` changes them.
    """
    row = held(session, hold, lock=True) if kind is None else _held_of_kind(session, hold, kind)
    query = select(*_items.c).where(
        _items.c.transfer_id == row.id,
        among(session, _items.c.number, list(numbers)),
        _queued(),
    )
    return row, session.execute(query.order_by(_items.c.number)).all()


def _held_of_kind(session: Session, hold: TransferLease, kind: TransferKind) -> Transfer:
    row = held(session, hold, lock=True)
    if row.kind != kind.value:
        raise InternalError(f"transfer {row.id} is a {row.kind}, not a {kind}")
    return row


def update_items(session: Session, row: Transfer, changes: Sequence[Mapping[str, Any]]) -> None:
    """Write columns of items; each change has the item's `number` and the same columns as the others."""
    if changes:
        names = [name for name in changes[0] if name != "number"]
        rows = [(row.id, *values) for values in columns_of(changes, ["number", *names])]
        update_many(session, TransferItem, ("transfer_id", "number"), names, rows)


def _queued() -> ColumnElement[bool]:
    return _items.c.status == TransferStatus.QUEUED.value


def noting(item: Any, **notes: Any) -> dict[str, Any]:
    """Return the change that adds to an item's notes."""
    return {"number": item.number, "notes": {**item.notes, **notes}}


def complete_items(
    session: Session, row: Transfer, items: Sequence[Any], facts: Mapping[int, Facts] | None = None
) -> None:
    """End items well, with the sizes that `facts` tell; what they held is free."""
    ends = [{"number": item.number, **DONE} | ({"size": facts[item.number].size} if facts else {}) for item in items]
    update_items(session, row, ends)
    free_items(session, row, items)


def enter_results(session: Session, row: Transfer, items: Sequence[Any], rows: Sequence[NewRow], event: str) -> None:
    """End items that become new objects, whose places the transfer holds for them."""
    add_objects(session, rows, event)
    give_places_to_objects(session, [new.id for new in rows], row.id)
    sizes = {item.number: new.facts for item, new in zip(items, rows, strict=True)}
    complete_items(session, row, items, sizes)


def _fail(session: Session, row: Transfer, failed: Sequence[tuple[Any, DataManagerError]]) -> None:
    ends = [
        {
            "number": item.number,
            "status": TransferStatus.ERROR.value,
            "error_code": error.code,
            "error_detail": storable(error.detail)[:DETAIL_MAX],
        }
        for item, error in failed
    ]
    update_items(session, row, ends)
    free_items(session, row, [item for item, _ in failed])
    for item, error in failed:
        if isinstance(error, PathReplaced):
            post_path_replaced(session, row, storable(error.detail), item.number)
    note_missing(session, {item.object_id for item, error in failed if isinstance(error, SourceMissing)})


def free_items(session: Session, row: Transfer, ended: Sequence[Any]) -> None:
    """Free what the ended items held: places, and objects that no other item still reads."""
    objects = {item.object_id for item in ended}
    if not _once(session, row):
        needed = select(TransferItem.object_id).where(
            TransferItem.transfer_id == row.id,
            TransferItem.status == TransferStatus.QUEUED.value,
            among(session, TransferItem.object_id, objects),
        )
        objects -= set(session.scalars(needed))
    free_claims_on(session, [*objects, *map(_result, ended)], row.id)


def _once(session: Session, row: Transfer) -> bool:
    """Say whether no two items are of one object. Looked at once for a transfer: else all items that are left would be
    read for each chunk."""
    if _ONCE not in row.notes:
        counts = select(func.count(), func.count(_items.c.object_id.distinct())).where(_items.c.transfer_id == row.id)
        items, objects = session.execute(counts).one()
        row.notes = {**row.notes, _ONCE: items == objects}
    return bool(row.notes[_ONCE])


def _result(item: Any) -> UUID:
    if item.result_object_id is None:
        raise InternalError(f"item {item.number} lacks an identifier that it must have")
    result: UUID = item.result_object_id
    return result
