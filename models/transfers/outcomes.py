"""How transfers end: object row, transfer row, claims and events in one transaction.

Every function is fenced: a runner that lost its lease gets LeaseLost and changes nothing.
"""

from __future__ import annotations

from dataclasses import asdict
from uuid import UUID

from sqlalchemy.orm import Session

from datamanager.domain.location import Place
from datamanager.domain.requests import CopyRequest, GetExternalRequest, MoveRequest
from datamanager.domain.states import ObjectStatus, Phase, TransferKind, TransferStatus
from datamanager.errors import DataManagerError, InternalError, SourceMissing
from models.access.trail import TrailOutcome, note_end
from models.access.visibility import ALL
from models.audit.missing_objects import note_missing
from models.core.outbox import post_object_event, post_transfer_event
from models.database import now, storable, wake
from models.objects.catalogue import (
    Facts,
    NewRow,
    add_objects,
    given_path,
    keep_origin,
    lock_object,
    relocate,
    told_of,
)
from models.objects.claims import (
    abandon_bundles,
    claim_place,
    free_claims_of_transfer,
    free_place_of_object,
    give_place_to_object,
    give_places_to_transfer,
    release_parts,
)
from models.tables import Transfer
from models.transfers.items import count_items, give_up_items
from models.transfers.lookup import forget_secrets, request_as
from models.transfers.queue import TransferLease, advance, append_fault, held
from models.transfers.reservations import release

MOVED = "Move successful"
UNCHANGED = "unchanged"
"""The note of a download that found nothing new."""


def complete_copy(session: Session, hold: TransferLease, facts: Facts) -> UUID:
    """End a copy: the new object with the source's originator, group and lineage. Returns its identifier."""
    row = held(session, hold, lock=True)
    request = request_as(row, CopyRequest, "copy")
    source, new = lock_object(session, _known(row.object_id), ALL), _known(row.result_object_id)
    add_objects(session, [NewRow.of_copy(new, destination(row), facts, request.dest, source, row.created_by)], "copied")
    source.last_used = now(session)
    _give_places_to_object(session, row, new)
    complete(session, row, str(new), facts)
    return new


def complete_getexternal(session: Session, hold: TransferLease, facts: Facts, originator: str) -> UUID:
    """End a download: the new object. Returns its identifier."""
    row = held(session, hold, lock=True)
    request = request_as(row, GetExternalRequest, "download")
    new = _known(row.result_object_id)
    entered = NewRow.of_request(new, destination(row), facts, request, row.created_by, originator=originator)
    add_objects(session, [entered], "registered")
    if (origin := row.notes.get("origin")) is not None:
        keep_origin(session, new, origin)
    _give_places_to_object(session, row, new)
    complete(session, row, str(new), facts)
    return new


def complete_unchanged(session: Session, hold: TransferLease, known: UUID) -> bool:
    """End a download whose source still has what object `known` has: that one is the result, and the place is free.

    Says whether it did: the object must be ACTIVE still.
    """
    row = held(session, hold, lock=True)
    obj = lock_object(session, known, ALL)
    if obj.status != ObjectStatus.ACTIVE:
        return False
    row.result_object_id = known
    row.notes = {**row.notes, UNCHANGED: True}
    row.bytes_total = row.bytes_done
    complete(session, row, str(known), Facts(None))
    return True


def claim_also(session: Session, hold: TransferLease, canonical: str) -> None:
    """Hold the destination's canonical place too, where links lead to it. Idempotent.

    Raises: LeaseLost; DestinationExists when a live object or another transfer is there.
    """
    row = held(session, hold, lock=True)
    if row.notes.get("canonical") == canonical:
        return
    claim_place(session, Place(destination(row).machine, canonical), transfer=row.id)
    row.notes = {**row.notes, "canonical": canonical}


def commit_move(session: Session, hold: TransferLease, facts: Facts) -> None:
    """Give the object its new place; the old one stays with the transfer until the source is removed (`finish_move`).

    Idempotent: an attempt after the one that did it finds it done.
    """
    row = held(session, hold, lock=True)
    request = request_as(row, MoveRequest, "move")
    if row.notes.get("committed"):
        return
    if row.status != TransferStatus.RUNNING.value:
        raise InternalError(f"transfer {row.id} has not started")
    obj = lock_object(session, _known(row.object_id), ALL)
    give_places_to_transfer(session, obj.id, row.id)
    _give_places_to_object(session, row, obj.id)
    data = relocate(obj, destination(row), request.dest, now(session), facts)
    row.notes = {**row.notes, "committed": True}
    row.phase = Phase.CLEANUP.value
    row.bytes_total = row.bytes_done = facts.size or 0
    left = {"machine": row.source_machine, "place": row.source_place}
    post_object_event(session, obj.id, "moved", {**data, "from": left})


def finish_move(session: Session, hold: TransferLease) -> None:
    """End a move whose source is gone."""
    row = held(session, hold, lock=True)
    if not row.notes.get("committed"):
        raise InternalError(f"transfer {row.id} has not given its object the new place")
    obj = lock_object(session, _known(row.object_id), ALL)
    complete(session, row, MOVED, Facts(obj.size))


def complete_delete(session: Session, hold: TransferLease) -> str:
    """End a delete: DELETED, the place is free, or its part of a bundle. Returns the message for the client."""
    row = held(session, hold, lock=True)
    obj = lock_object(session, _known(row.object_id), ALL)
    if obj.status == ObjectStatus.ARCHIVED:
        release_parts(session, [obj.id])
    obj.status = ObjectStatus.DELETED.value
    obj.archived_in = None
    obj.date_modified = now(session)
    free_place_of_object(session, obj.id)
    message = f"{obj.machine}:{given_path(obj)} deleted"
    told = {name: value for name, value in told_of(obj).items() if name != "size"}
    post_object_event(session, obj.id, "deleted", told)
    complete(session, row, message, Facts(obj.size))
    return message


def fail(session: Session, hold: TransferLease, error: DataManagerError, *, leaves_partial: bool | None = None) -> None:
    """End a transfer in ERROR; its claims are freed. The object is as it was, or where the error code says.

    What a batch has not done ends in ERROR too, with the same code. `leaves_partial`: whether its partial file may be
    left behind, or its source aside; None: the caller does not know, so it may if the transfer was begun.
    """
    fail_row(session, held(session, hold, lock=True), error, leaves_partial=leaves_partial)


def fail_row(session: Session, row: Transfer, error: DataManagerError, *, leaves_partial: bool | None = None) -> None:
    """End a locked transfer in ERROR that is held by the caller, or by nobody; see `fail`."""
    last = row.faults[-1] if row.faults else {}
    if (last.get("code"), last.get("attempt")) != (error.code, row.attempts):  # the attempt's fault may stand there
        append_fault(session, row, error.code, error.detail)
    kind = TransferKind(row.kind)
    if kind.itemised:
        give_up_items(session, row, error)
        abandon_bundles(session, row.id)
    if isinstance(error, SourceMissing) and row.object_id is not None:
        note_missing(session, [row.object_id])
    row.error_code = error.code
    row.error_detail = row.result = detail = storable(error.detail)
    begun = row.started is not None if leaves_partial is None else leaves_partial
    row.leaves_partial = row.leaves_partial or begun  # one that lost it before may have left something
    _end(session, row, TransferStatus.ERROR, "error", {"code": error.code, "detail": detail})


def destination(row: Transfer) -> Place:
    """Return where the transfer's file is to be."""
    if row.destination_machine is None or row.destination_place is None:
        raise InternalError(f"transfer {row.id} has no destination")
    return Place(row.destination_machine, row.destination_place)


def source(row: Transfer) -> Place:
    """Return where the transfer's file was when it was requested."""
    if row.source_machine is None or row.source_place is None:
        raise InternalError(f"transfer {row.id} has no source")
    return Place(row.source_machine, row.source_place)


def _give_places_to_object(session: Session, row: Transfer, object_id: UUID) -> None:
    place = destination(row)
    give_place_to_object(session, place, row.id, object_id)
    if "canonical" in row.notes:
        give_place_to_object(session, Place(place.machine, row.notes["canonical"]), row.id, object_id)


def complete(session: Session, row: Transfer, result: str, facts: Facts) -> None:
    """End a held and locked transfer, COMPLETE."""
    row.result = result
    if facts.size is not None and row.kind != TransferKind.DELETE.value:
        row.bytes_done = row.bytes_total = facts.size
    data: dict[str, object] = {"result": result, "size": facts.size}
    if row.notes.get(UNCHANGED):
        data[UNCHANGED] = True
    _end(session, row, TransferStatus.COMPLETE, "complete", data)


def _end(session: Session, row: Transfer, status: TransferStatus, event: str, data: dict[str, object]) -> None:
    advance(row, status)
    row.phase = Phase.DONE.value
    row.ended = now(session)
    row.owner = None
    row.lease_until = None
    row.bytes_per_second = None
    row.paused, row.stop_requested = False, None
    free_claims_of_transfer(session, row.id)
    forget_secrets(session, row.id)
    release(session, [row.id])
    post_transfer_event(session, row, event, data)
    counts = asdict(count_items(session, row.id)) if TransferKind(row.kind).many else None
    note_end(session, row, TrailOutcome.DONE if status is TransferStatus.COMPLETE else TrailOutcome.FAILED, counts)
    wake(session, f"ended:{row.id}")


def _known(value: UUID | None) -> UUID:
    if value is None:
        raise InternalError("the transfer's row lacks an identifier that its kind must have")
    return value
