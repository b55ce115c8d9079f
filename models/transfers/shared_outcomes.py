"""What a mover tells the catalogue of transfers that share a run: begun, intents, ends; many in one transaction.

Every function is fenced for each transfer alone: one whose lease is lost is left as it is, and is missing in what is
returned. Locks are taken in the order transfers, objects, claims, each by identifier, so that two transactions never
wait in a circle. What an error of one of them takes back for all is done one by one by `models.transfers.outcomes`,
which does the same to one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import bindparam, delete, func, or_, select, update
from sqlalchemy.orm import Session

from datamanager.domain.location import Place
from datamanager.domain.states import Phase, TransferStatus
from datamanager.errors import Cancelled, DataManagerError, DestinationExists, InternalError
from models.access.trail import TrailOutcome, note_ends
from models.core.outbox import post_object_events, post_transfer_events
from models.database import now, table_of, wake
from models.objects.bulk_claims import lock_objects
from models.objects.catalogue import CARRIED, Facts, NewRow, add_objects, relocate
from models.objects.claims import place_key
from models.tables import Claim, DataObject, Transfer
from models.transfers.cancel_pause import stop_reason_of
from models.transfers.outcomes import MOVED, claim_also, destination
from models.transfers.queue import TransferLease, still_held
from models.transfers.reservations import release

_transfers, _claims = table_of(Transfer), table_of(Claim)
_RUNNING = TransferStatus.RUNNING.value

Held = dict[TransferLease, Any]


def begin(session: Session, holds: Sequence[TransferLease], flow_run: UUID) -> set[TransferLease]:
    """Note that the flow run of these transfers has begun: RUNNING, and events. Return those that are held still."""
    rows = _held(session, holds)
    queued = {hold: row for hold, row in rows.items() if row.status == TransferStatus.QUEUED.value}
    time = now(session)
    begun = update(Transfer).where(Transfer.id.in_([row.id for row in queued.values()]))
    values = {
        "flow_run_id": flow_run,
        "status": _RUNNING,
        "phase": Phase.TRANSFER.value,
        "started": func.coalesce(Transfer.started, bindparam("time", time, type_=_transfers.c.started.type)),
        "retry_at": None,
        "sequence": Transfer.sequence + 1,
    }
    session.execute(begun.values(values).execution_options(synchronize_session=False))
    told = [(_next(row, _RUNNING), {"attempt": row.attempts}) for row in queued.values()]
    post_transfer_events(session, "running", told, time)
    return set(rows)


def record_intents(session: Session, intents: Mapping[TransferLease, Mapping[str, Any]]) -> set[TransferLease]:
    """Record, before files get their names, how a later attempt recognises them (see `queue.remember`). Return the
    transfers that are held still: only those may be published.
    """
    rows = _held(session, list(intents))
    _change(
        session,
        [
            {"id": row.id, "notes": {**row.notes, "intent": dict(intents[hold])}, "no_return": True}
            for hold, row in rows.items()
        ],
    )
    return set(rows)


def claim_canonicals(
    session: Session, canonicals: Mapping[TransferLease, str]
) -> dict[TransferLease, DataManagerError]:
    """Hold the destinations' canonical places too, where links lead to them; return which can't have theirs."""
    refused = dict[TransferLease, DataManagerError]()
    for hold in still_held(session, list(canonicals)):
        try:
            claim_also(session, hold, canonicals[hold])
        except DestinationExists as error:  # nothing was changed for this one
            refused[hold] = error
    return refused


def complete_copies(session: Session, results: Mapping[TransferLease, Facts]) -> set[TransferLease]:
    """End copies: for each a new object with the source's originator, group and lineage. Return those that are held
    still, and ended by this.

    Raises: InternalError when one of them lacks something that it must have; nothing is changed then.
    """
    rows = _held(session, list(results))
    sources = {row.id: row for row in lock_objects(session, (row.object_id for row in rows.values()), *CARRIED)}
    new = [
        NewRow.of_copy(
            row.result_object_id,
            destination(row),
            results[hold],
            row.request["dest"],
            sources[row.object_id],
            row.created_by,
        )
        for hold, row in rows.items()
    ]
    add_objects(session, new, "copied")
    used = update(DataObject).where(DataObject.id.in_(list(sources))).values(last_used=now(session))
    session.execute(used.execution_options(synchronize_session=False))
    _give_places(session, [(row, row.result_object_id) for row in rows.values()])
    _complete(session, [(row, str(row.result_object_id), results[hold].size) for hold, row in rows.items()])
    return set(rows)


def commit_moves(session: Session, results: Mapping[TransferLease, Facts]) -> set[TransferLease]:
    """Give objects their new places; the old ones stay with the transfers until `finish_moves`. Return those that are
    held still.

    Raises: as `complete_copies`.
    """
    rows = _held(session, list(results))
    objects = {moved.id: moved for moved in lock_objects(session, (row.object_id for row in rows.values()))}
    held = select(Claim.object_id).where(
        Claim.mode == "place", Claim.object_id.in_(list(objects)), Claim.transfer_id.is_(None)
    )
    if set(session.scalars(held)) != objects.keys():
        raise InternalError("an object that is moved holds no place; nothing was changed")
    theirs = update(_claims).where(
        _claims.c.mode == "place", _claims.c.object_id == bindparam("of"), _claims.c.transfer_id.is_(None)
    )
    theirs = theirs.values(transfer_id=bindparam("transfer"), object_id=None)
    _each(session, theirs, [{"of": row.object_id, "transfer": row.id} for row in rows.values()])
    _give_places(session, [(row, row.object_id) for row in rows.values()])
    time, told, changes = now(session), [], []
    for hold, row in rows.items():
        facts = results[hold]
        data = relocate(objects[row.object_id], destination(row), row.request["dest"], time, facts)
        left = {"machine": row.source_machine, "place": row.source_place}
        told.append((row.object_id, {**data, "from": left}))
        size = facts.size or 0
        notes = {**row.notes, "committed": True}
        changes.append(
            {"id": row.id, "notes": notes, "phase": Phase.CLEANUP.value, "bytes_done": size, "bytes_total": size}
        )
    _change(session, changes)
    post_object_events(session, "moved", told, time)
    return set(rows)


def finish_moves(session: Session, holds: Sequence[TransferLease]) -> set[TransferLease]:
    """End moves that were committed and whose sources are gone. Return those that are held still, and ended by this."""
    rows = _held(session, holds)
    if any(not row.notes.get("committed") for row in rows.values()):
        raise InternalError("a move has not given its object the new place")
    _complete(session, [(row, MOVED, row.bytes_done) for row in rows.values()])
    return set(rows)


def stops(session: Session, holds: Sequence[TransferLease]) -> dict[TransferLease, DataManagerError]:
    """Return which of the transfers users, or their deadlines, want to stop, and why. Only reads."""
    by_id, time = {hold.transfer: hold for hold in holds}, now(session)
    asked = or_(Transfer.stop_requested.is_not(None), Transfer.deadline <= time)
    rows = session.scalars(select(Transfer).where(Transfer.id.in_(by_id), Transfer.ended.is_(None), asked))
    reasons = {by_id[row.id]: stop_reason_of(row, time) for row in rows}
    return {hold: reason for hold, reason in reasons.items() if reason is not None}


@dataclass(frozen=True, slots=True)
class SharedCounts:
    """How the transfers ended that were done in one run; `held` are under way still."""

    held: int = 0
    complete: int = 0
    cancelled: int = 0
    error: int = 0

    def __str__(self) -> str:
        ends = {"complete": self.complete, "failed": self.error, "cancelled": self.cancelled}
        return ", ".join(f"{count} {how}" for how, count in ends.items() if count) or "none ended"


def count_shared(session: Session, flow_runs: Collection[UUID]) -> dict[UUID, SharedCounts]:
    """Count the transfers that share these flow runs, by flow run; those that went back to the queue have left it."""
    how = Transfer.flow_run_id, Transfer.status, Transfer.error_code
    query = select(*how, func.count()).where(Transfer.flow_run_id.in_(flow_runs), Transfer.shared_run.is_not(None))
    counted: dict[UUID, Counter[str]] = {}
    for run, status, code, count in session.execute(query.group_by(*how)):
        if run is None:
            continue
        what = "complete" if status == TransferStatus.COMPLETE.value else "cancelled"
        if status == TransferStatus.ERROR.value and code != Cancelled.code:
            what = "error"
        elif status not in (TransferStatus.COMPLETE.value, TransferStatus.ERROR.value):
            what = "held"
        counted.setdefault(run, Counter())[what] += count
    return {run: SharedCounts(**counts) for run, counts in counted.items()}


# --- rows ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Change:
    """What an event says of a transfer."""

    id: UUID
    kind: str
    status: str
    sequence: int
    created_by: str | None


def _next(row: Any, status: str) -> _Change:
    return _Change(row.id, row.kind, status, row.sequence + 1, row.created_by)


def _held(session: Session, holds: Sequence[TransferLease]) -> Held:
    return still_held(
        session,
        holds,
        *(Transfer.kind, Transfer.status, Transfer.sequence, Transfer.attempts, Transfer.notes, Transfer.request),
        *(Transfer.object_id, Transfer.result_object_id, Transfer.source_machine, Transfer.source_place),
        *(Transfer.destination_machine, Transfer.destination_place, Transfer.bytes_done, Transfer.created_by),
    )


def _change(session: Session, changes: Sequence[Mapping[str, Any]]) -> None:
    """Write columns of transfers that are locked; each change has the row's `id` and the same columns as the others."""
    if not changes:
        return
    columns = {name: bindparam(f"new_{name}", type_=_transfers.c[name].type) for name in changes[0] if name != "id"}
    mine = update(_transfers).where(_transfers.c.id == bindparam("new_id")).values(columns)
    _each(session, mine, [{f"new_{name}": value for name, value in change.items()} for change in changes])


def _each(session: Session, statement: Any, values: Sequence[Mapping[str, Any]]) -> int:
    """Execute a statement once for each of the values; return how many rows were touched in all."""
    return int(session.connection().execute(statement, values).rowcount) if values else 0


def _give_places(session: Session, rows: Iterable[tuple[Any, UUID]]) -> None:
    """Hand the places of transfers to the objects that live there now."""
    values = [
        {"key": place_key(Place(row.destination_machine, path)), "transfer": row.id, "to": object_id}
        for row, object_id in rows
        for path in {row.destination_place, row.notes.get("canonical", row.destination_place)}
    ]
    held = update(_claims).where(
        _claims.c.mode == "place",
        _claims.c.place_key == bindparam("key"),
        _claims.c.transfer_id == bindparam("transfer"),
    )
    if _each(session, held.values(transfer_id=None, object_id=bindparam("to")), values) != len(values):
        raise InternalError("a place is not held by the expected owner; nothing was changed")


def _complete(session: Session, ends: Sequence[tuple[Any, str, int | None]]) -> None:
    """End locked transfers, COMPLETE, with their results and sizes; what they held is free."""
    if any(row.status != _RUNNING for row, _, _ in ends):
        raise InternalError("a transfer can't end that has not begun")
    time, status = now(session), TransferStatus.COMPLETE.value
    _change(
        session,
        [
            {
                "id": row.id,
                "status": status,
                "phase": Phase.DONE.value,
                "ended": time,
                "owner": None,
                "lease_until": None,
                "bytes_per_second": None,
                "bytes_done": size or 0,
                "bytes_total": size,
                "paused": False,
                "stop_requested": None,
                "result": result,
                "sequence": row.sequence + 1,
            }
            for row, result, size in ends
        ],
    )
    ids = [row.id for row, _, _ in ends]
    session.execute(delete(_claims).where(_claims.c.transfer_id.in_(ids)))
    release(session, ids)
    told = [(_next(row, status), {"result": result, "size": size}) for row, result, size in ends]
    post_transfer_events(session, "complete", told, time)
    note_ends(session, [row for row, _, _ in ends], TrailOutcome.DONE, time)
    wake(session, *(f"ended:{one}" for one in ids))
