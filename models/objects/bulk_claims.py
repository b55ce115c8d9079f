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

from sqlalchemy import ColumnElement, Delete, Select, Update, delete, func, null, select, update
from sqlalchemy.orm import Session

from datamanager.domain.location import Place
from datamanager.errors import InternalError
from models.bulk_rows import among
from models.database import insert_free, insert_rows, table_of
from models.objects.claims import place_key
from models.tables import Claim, DataObject

IN_MAX = 500
"""Values in one IN (…)."""

T = TypeVar("T")
_claims = table_of(Claim)


def chunks(values: Sequence[T], size: int = IN_MAX) -> Iterator[Sequence[T]]:
    """Yield `values` in pieces of at most `size`."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def rows_in(session: Session, query: Select[*tuple[Any, ...]], column: Any, values: Collection[Any]) -> Iterator[Any]:
    """Yield the rows of a query whose `column` has one of the values."""
    for some in chunks(list(values)):
        yield from session.execute(query.where(column.in_(some))).all()


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
    rows = [
        {
            "mode": "place",
            "machine": place.machine,
            "place": place.path,
            "place_key": key,
            "object_id": object_id,
            "transfer_id": transfer,
        }
        for key, place, object_id in pairs
    ]
    made = insert_free(session, Claim, rows, "id", "object_id")
    missing = Counter(object_id for _, _, object_id in pairs)
    missing.subtract(object_id for _, object_id in made)
    losers = {object_id for object_id, places in missing.items() if places}
    execute_in(session, delete(Claim), Claim.id, [claim for claim, object_id in made if object_id in losers])
    return missing.keys() - losers


def claims_on(session: Session, objects: Sequence[UUID]) -> dict[UUID, str]:
    """Return which of the objects are claimed, and how: `read` or `write`. The caller has locked their rows."""
    query = select(Claim.object_id, Claim.mode).where(Claim.mode != "place").distinct()
    return dict(rows_in(session, query, Claim.object_id, objects))


def claim_objects(session: Session, objects: Iterable[UUID], mode: str, transfer: UUID) -> None:
    """Claim objects for reading or writing. The caller has locked their rows and seen that `claims_on` allows it."""
    rows = [{"mode": mode, "object_id": object_id, "transfer_id": transfer} for object_id in objects]
    insert_rows(session, Claim, rows)


def holders(session: Session, places: Sequence[Place]) -> dict[Place, UUID]:
    """Return the ACTIVE objects that hold some of the places."""
    by_key = {place_key(place): place for place in places}
    query = select(Claim.place_key, Claim.object_id).where(Claim.mode == "place", Claim.transfer_id.is_(None))
    rows = rows_in(session, query, Claim.place_key, by_key)
    return {by_key[key]: object_id for key, object_id in rows if object_id is not None}


def give_places_to_objects(session: Session, objects: Sequence[UUID], transfer: UUID) -> None:
    """Hand the places that a transfer holds for objects to these objects, which live there now.

    Places that they held before are the transfer's then (`free_claims_on` frees them).
    """
    places = _claims.c.mode == "place", among(session, _claims.c.object_id, objects)
    before = list(session.scalars(select(_claims.c.id).where(*places, _holder().is_(None))))
    mine = *places, _holder() == transfer
    held = session.scalar(select(func.count(_claims.c.object_id.distinct())).where(*mine))
    if held != len(set(objects)):
        raise InternalError(f"transfer {transfer} does not hold the expected places; nothing was changed")
    session.execute(update(_claims).where(*mine).values(transfer_id=None))
    execute_in(session, update(Claim).values(transfer_id=transfer), Claim.id, before)


def free_claims_on(session: Session, objects: Sequence[UUID], transfer: UUID) -> None:
    """Free all that a transfer holds on objects, and the places that it holds for them."""
    session.execute(delete(_claims).where(among(session, _claims.c.object_id, objects), _holder() == transfer))


def _holder() -> ColumnElement[UUID | None]:
    """Return the transfer that holds a claim, so written that SQLite finds claims by their objects: by the index of
    transfers it would read all that a batch holds, or all places of objects, for each chunk."""
    return func.coalesce(_claims.c.transfer_id, null())


def lock_objects(session: Session, objects: Iterable[UUID], *columns: Any) -> Iterator[Any]:
    """Yield the rows that exist (or `columns` of them), locked until the transaction ends, by identifier: always in
    one order.
    """
    for some in chunks(sorted(set(objects), key=attrgetter("int"))):
        query = select(*(columns or (DataObject,))).where(among(session, DataObject.id, some)).order_by(DataObject.id)
        query = query.with_for_update().execution_options(populate_existing=True)
        yield from session.execute(query).all() if columns else session.scalars(query).all()
