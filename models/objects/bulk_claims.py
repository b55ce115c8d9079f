"""Claims of many objects and places at once, by the same rules as one by one (`models.objects.claims`).

A place claim made here names the object for which it is held (`Claim.object_id`) beside the transfer: the claims of one
item of a batch are then found by the item's object. Rows are inserted in one order, by place, so that two transactions
never wait for each other in a circle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import attrgetter, itemgetter
from typing import Any, TypeVar
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Delete,
    Select,
    Update,
    delete,
    func,
    insert,
    literal,
    literal_column,
    null,
    select,
    update,
)
from sqlalchemy.orm import Session

from datamanager.domain.location import Place
from datamanager.domain.states import TransferStatus
from datamanager.errors import InternalError
from models.bulk_rows import among, insert_columns
from models.database import table_of
from models.objects.claims import place_key
from models.tables import Claim, DataObject, TransferItem

IN_MAX = 500
"""Values in one IN (…)."""
AT_ONCE = 10_000
"""Values that are looked for by one statement."""
_PLACE: ColumnElement[str] = literal_column("'place'")
_WRITE: ColumnElement[str] = literal_column("'write'")
"""Modes, written out: SQLite plans a statement once, and with a parameter it plans without the partial indexes."""

T = TypeVar("T")
_claims = table_of(Claim)


def chunks(values: Sequence[T], size: int = IN_MAX) -> Iterator[Sequence[T]]:
    """Yield `values` in pieces of at most `size`."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def rows_in(session: Session, query: Select[*tuple[Any, ...]], column: Any, values: Collection[Any]) -> Iterator[Any]:
    """Yield the rows of a query whose `column` has one of the values."""
    for some in chunks(list(values), AT_ONCE):
        yield from session.execute(query.where(among(session, column, some))).all()


def execute_in(session: Session, statement: Update | Delete, column: Any, values: Collection[Any]) -> None:
    """Update or delete the rows whose `column` has one of the values."""
    for some in chunks(list(values)):
        session.execute(statement.where(column.in_(some)))


def claim_places(session: Session, wanted: Iterable[tuple[Place, UUID]], *, transfer: UUID | None) -> set[UUID]:
    """Hold places, each for the object that lies or will lie there; for `transfer`, or (None) for the objects.

    Returns the objects that got all their places; those that missed one got none.
    """
    pairs = sorted(((place_key(place), place, object_id) for place, object_id in wanted), key=itemgetter(0))
    if not pairs:
        return set()
    before = session.scalar(select(func.max(Claim.id))) or 0
    keys, places, objects = zip(*pairs, strict=True)
    columns: dict[str, Sequence[Any]] = {
        "mode": ["place"] * len(pairs),
        "machine": [place.machine for place in places],
        "place": [place.path for place in places],
        "place_key": keys,
        "object_id": objects,
        "transfer_id": [transfer] * len(pairs),
    }
    missing = Counter(objects)
    if insert_columns(session, Claim, columns, free_only=True) == len(pairs):
        return set(missing)
    # somebody holds one: which are ours is told by their number, as the same holder may have had one before
    ours = select(Claim.id, Claim.object_id).where(Claim.mode == _PLACE, Claim.id > before)
    ours = ours.where(Claim.transfer_id == transfer if transfer is not None else Claim.transfer_id.is_(None))
    made = [row for row in rows_in(session, ours, Claim.place_key, keys) if row[1] in missing]
    missing.subtract(object_id for _, object_id in made)
    losers = {object_id for object_id, places in missing.items() if places}
    execute_in(session, delete(Claim), Claim.id, [claim for claim, object_id in made if object_id in losers])
    return missing.keys() - losers


def claims_on(session: Session, objects: Sequence[UUID], *, only_writers: bool = False) -> dict[UUID, str]:
    """Return which of the objects are claimed, and how: `read` or `write`; `only_writers`: just those by `write`. The
    caller has locked their rows.
    """
    mode = Claim.mode == _WRITE if only_writers else Claim.mode != _PLACE
    query = select(Claim.object_id, Claim.mode).where(mode).distinct()
    return dict(rows_in(session, query, Claim.object_id, objects))


def claim_objects(session: Session, objects: Collection[UUID], mode: str, transfer: UUID) -> None:
    """Claim objects for reading or writing. The caller has locked their rows and seen that `claims_on` allows it."""
    count = len(objects)
    if count:
        held: dict[str, Sequence[Any]] = {"mode": [mode] * count, "object_id": list(objects)}
        insert_columns(session, Claim, held | {"transfer_id": [transfer] * count})


def claim_objects_of_items(session: Session, transfer: UUID, mode: str) -> None:
    """Claim the objects of a batch's QUEUED items, as `claim_objects` does; the items are stored."""
    queued = TransferItem.transfer_id == transfer, TransferItem.status == TransferStatus.QUEUED.value
    objects = select(literal(mode), TransferItem.object_id, TransferItem.transfer_id).where(*queued).distinct()
    columns = ["mode", "object_id", "transfer_id"]
    session.execute(insert(table_of(Claim)).from_select(columns, objects))


def holders(session: Session, places: Collection[Place], *columns: Any) -> dict[Place, Any]:
    """Return the objects that hold some of the places (ACTIVE ones do), each as a row with these columns."""
    by_key = {place_key(place): place for place in places}
    claims, objects = table_of(Claim), table_of(DataObject)
    query = select(claims.c.place_key, *columns).join_from(claims, objects, objects.c.id == claims.c.object_id)
    query = query.where(claims.c.mode == _PLACE, claims.c.transfer_id.is_(None))
    return {by_key[row.place_key]: row for row in rows_in(session, query, claims.c.place_key, by_key)}


def give_places_to_objects(session: Session, objects: Sequence[UUID], transfer: UUID) -> None:
    """Hand the places that a transfer holds for objects to these objects, which live there now.

    Places that they held before are the transfer's then (`free_claims_on` frees them).
    """
    places = _claims.c.mode == "place", among(session, _claims.c.object_id, objects)
    before = list(session.scalars(select(_claims.c.id).where(*places, _holder().is_(None))))
    mine = *places, held_by(transfer)
    held = session.scalar(select(func.count(_claims.c.object_id.distinct())).where(*mine))
    if held != len(set(objects)):
        raise InternalError(f"transfer {transfer} does not hold the expected places; nothing was changed")
    session.execute(update(_claims).where(*mine).values(transfer_id=None))
    execute_in(session, update(Claim).values(transfer_id=transfer), Claim.id, before)


def free_claims_on(session: Session, objects: Sequence[UUID], transfer: UUID) -> None:
    """Free all that a transfer holds on objects, and the places that it holds for them."""
    session.execute(delete(_claims).where(among(session, _claims.c.object_id, objects), held_by(transfer)))


def held_by(transfer: UUID) -> ColumnElement[bool]:
    """Return the condition that a transfer holds a claim, for statements that find claims by their objects."""
    return _holder() == transfer


def _holder() -> ColumnElement[UUID | None]:
    """Return the transfer that holds a claim, so written that SQLite finds claims by their objects: by the index of
    transfers it would read all that a batch holds, or all places of objects, for each chunk."""
    return func.coalesce(_claims.c.transfer_id, null())


def lock_objects(session: Session, objects: Iterable[UUID], *columns: Any) -> Iterator[Any]:
    """Yield the rows that exist (or `columns` of them), locked until the transaction ends, by identifier: always in
    one order.
    """
    key = table_of(DataObject).c.id  # with columns of the table only, rows are no work for SQLAlchemy's ORM
    for some in chunks(sorted(set(objects), key=attrgetter("int")), AT_ONCE):
        query = select(*(columns or (DataObject,))).where(among(session, key, some)).order_by(key)
        query = query.with_for_update().execution_options(populate_existing=True)
        yield from session.execute(query).all() if columns else session.scalars(query).all()
