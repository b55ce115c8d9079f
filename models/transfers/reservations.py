"""Quotas: what groups and persons have, and what open tasks may add to it.

A task reserves, in the transaction that submits it, what it will add at most; its end removes the reservation in the
transaction that enters what it has made. What is made by then of a batch is counted twice until it ends.

Whoever adds something enters it, takes the holder's turn, and looks whether it is too much then; if so, the transaction
is undone. The turn ends with the transaction: of two requests that come together the second one sees what the first one
has entered, so neither exceeds a quota.

What is not known at the request is not counted before it is there: the size of a download that names none, and how many
files are in an archive that is fetched and unpacked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.orm import Session

from datamanager.domain.states import ObjectStatus, TransferKind
from datamanager.errors import QuotaExceeded
from datamanager.identity.quotas import Holder, HolderKind, Quota, Quotas
from models.access.visibility import ALL
from models.database import insert_rows, table_of, take_turns
from models.objects.totals import totals_by
from models.tables import DataObject, ObjectTotal, Reservation, Transfer, TransferItem

AGAIN_QUEUED, AGAIN_ROOM = timedelta(seconds=30), timedelta(hours=1)
"""After which wait a client may try again: tasks end by themselves, objects do not."""
_TURN = 0x646D_0000_0000_0000
"""What the numbers of our locks begin with, "dm"; the rest is the holder's."""
_RELEASED = delete(table_of(Reservation)).where(table_of(Reservation).c.transfer_id == bindparam("of"))
_items, _objects = table_of(TransferItem).c, table_of(DataObject).c


@dataclass(frozen=True, slots=True)
class Amount:
    """So many objects, of so many bytes, and tasks that have not ended."""

    objects: int = 0
    bytes: int = 0
    queued: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.objects + other.objects, self.bytes + other.bytes, self.queued + other.queued)


def reserve(session: Session, quotas: Quotas, transfer: Transfer) -> None:
    """Reserve what a new transfer, whose items are stored, may add to what its groups and its person have. To be called
    last: others may wait until the transaction ends. Raises: QuotaExceeded; the error must end the transaction.
    """
    by_group = {transfer.group: _added(transfer)}
    if transfer.kind == TransferKind.COPY_MANY.value and quotas.any_of_groups():
        by_group = _copied(session, transfer.id) or by_group
    wanted = _by_holder(quotas, transfer.created_by, by_group, queued=1)
    rows = [
        {"transfer_id": transfer.id, "holder": key_of(holder), "objects": added.objects, "bytes": added.bytes}
        for holder, added in wanted.items()
    ]
    insert_rows(session, Reservation, rows)
    _require_kept(session, quotas, wanted)


def require_room(session: Session, quotas: Quotas, person: str | None, group: str, sizes: Iterable[int | None]) -> None:
    """Check that there was room for objects of these sizes, which a person has entered into a group in this
    transaction. To be called last, as `reserve`. Raises: QuotaExceeded; the error must end the transaction.
    """
    known = [size or 0 for size in sizes]
    _require_kept(session, quotas, _by_holder(quotas, person, {group: Amount(len(known), sum(known))}, queued=0))


def release(session: Session, transfers: Iterable[UUID]) -> None:
    """Remove the reservations of transfers that have ended."""
    session.connection().execute(_RELEASED, [{"of": one} for one in transfers])


def used(session: Session, holder: Holder) -> Amount:
    """Return what a group or person has: objects that are not DELETED, their bytes, and tasks that have not ended, with
    what these may add.
    """
    column = ObjectTotal.group if holder.kind is HolderKind.GROUP else ObjectTotal.person
    totals = totals_by(session, ALL, ObjectTotal.status, **{column.key: holder.name})
    kept = [row for row in totals if row.status != ObjectStatus.DELETED]
    objects, size = (func.coalesce(func.sum(column), 0) for column in (Reservation.objects, Reservation.bytes))
    mine = select(func.count(), objects, size).where(Reservation.holder == key_of(holder))
    queued, of_tasks, bytes_of_tasks = session.execute(mine).one()
    there = Amount(sum(row.objects for row in kept), sum(row.bytes for row in kept))
    return there + Amount(int(of_tasks), int(bytes_of_tasks), queued)


def shown_quotas(
    session: Session, quotas: Quotas, person: str | None, groups: Iterable[str]
) -> list[dict[str, object]]:
    """Return what a person and groups may have, and have, of those that are limited; for `GET /DM/quota` and
    `dm whoami`.
    """
    found = list[dict[str, object]]()
    for holder, quota in quotas.limited(person, groups):
        has = used(session, holder)
        limits = {name: getattr(quota, name) for name in ("objects", "bytes", "queued")}
        found.append(
            {
                "kind": holder.kind.value,
                "name": holder.name,
                **{name: {"used": getattr(has, name), "limit": limit} for name, limit in limits.items()},
                "requests_per_second": quota.requests_per_second,
            }
        )
    return found


def key_of(holder: Holder) -> str:
    """Return the key of a holder in rows: of fixed length, as names may be longer than what an index takes."""
    return hashlib.sha256(f"{holder.kind.value}\0{holder.name}".encode()).hexdigest()


def _added(transfer: Transfer) -> Amount:
    match TransferKind(transfer.kind):
        case TransferKind.COPY | TransferKind.GETEXTERNAL:
            return Amount(1, transfer.bytes_total or 0)
        case TransferKind.GETEXTERNAL_MANY:
            return Amount(0, transfer.bytes_total or 0)
    return Amount()


def _copied(session: Session, transfer: UUID) -> dict[str, Amount]:
    """Return what the items of a batch are to copy, by group: one statement."""
    to_do = _items.transfer_id == transfer, _items.status == "QUEUED", _objects.id == _items.object_id
    query = select(_objects.group, func.count(), func.coalesce(func.sum(_items.size), 0)).where(*to_do)
    rows = session.execute(query.group_by(_objects.group))
    return {group: Amount(count, int(size)) for group, count, size in rows}


def _by_holder(
    quotas: Quotas, person: str | None, by_group: Mapping[str, Amount], *, queued: int
) -> dict[Holder, Amount]:
    """Return what is wanted of each group and person with a quota, in the order in which they have their turns."""
    all_of_it = sum(by_group.values(), Amount())
    wanted = dict[Holder, Amount]()
    for holder, _ in quotas.limited(person, by_group):
        added = by_group[holder.name] if holder.kind is HolderKind.GROUP else all_of_it
        wanted[holder] = added + Amount(queued=queued)
    return wanted


def _require_kept(session: Session, quotas: Quotas, added: Mapping[Holder, Amount]) -> None:
    for holder, amount in added.items():
        take_turns(session, _TURN | int(key_of(holder)[:12], 16))
        _compare(holder, quotas.of(holder), used(session, holder), amount)


def _compare(holder: Holder, quota: Quota, has: Amount, added: Amount) -> None:
    """Raises: QuotaExceeded where something was added and there is too much now. What adds nothing is permitted also to
    who has too much already.
    """
    for name, again in (("queued", AGAIN_QUEUED), ("objects", AGAIN_ROOM), ("bytes", AGAIN_ROOM)):
        limit, more, there = getattr(quota, name), getattr(added, name), getattr(has, name)
        if limit is not None and more and there > limit:
            what = f"{holder} has {there - more} of {limit} {_SHOWN[name]}, and this would add {more}"
            raise QuotaExceeded(f"the quota is exceeded: {what}", again=again)


_SHOWN = {"queued": "tasks that have not ended", "objects": "objects", "bytes": "bytes"}
