"""Submission of a request: the one way by which transfers enter the catalogue. Above all rooms that a request needs.

Every request comes in by the same three steps, whoever makes it (HTTP, AMQP, Prefect, a schedule, retention): `prepare`
checks its source and seals its secrets, `submit` writes claims, transfer row and outbox rows in one transaction, and
that notifies the movers. Between them `judged` may look at the items of a batch: then that transaction is short.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from typing import Any, cast
from uuid import UUID, uuid4

from sqlalchemy import bindparam, inspect, select
from sqlalchemy.orm import Session

from datamanager.domain.archive_requests import ActivateTerms, ArchiveTerms
from datamanager.domain.fields import require_metadata_fits
from datamanager.domain.location import Place, require_outside_archive
from datamanager.domain.requests import (
    BatchRequest,
    CopyRequest,
    DeleteRequest,
    GetExternalRequest,
    MoveRequest,
    TransferTerms,
)
from datamanager.domain.states import ObjectStatus, TransferKind, TransferStatus
from datamanager.errors import InternalError, InvalidRequest, ObjectHeld, ObjectNotFound
from datamanager.identity.grant import Grant
from datamanager.identity.quotas import NO_QUOTAS, Quotas
from datamanager.machines import Machines
from datamanager.sealing import Sealer
from datamanager.settings import Settings
from datamanager.sources.download_terms import parse_terms
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.network.source_context import SourceContext
from datamanager.sources.terms.request_secrets import parted, sealed
from datamanager.sources.terms.source_validators import OPTION as IF_NEWER_THAN
from models.access.permission import READ, kept, maker, require_destination, require_source
from models.access.requester import requester_for
from models.access.trail import TrailOutcome, note
from models.access.visibility import seen
from models.archive.submission import enter_activate, enter_archive
from models.batches.item_admission import JudgedItem
from models.batches.submission import enter_items, judge_items
from models.core.outbox import post_submitted
from models.database import insert_rows, now, table_of, wake
from models.objects.catalogue import get_object, require_usable
from models.objects.claims import claim_place, claim_reading, claim_writing
from models.tables import DataObject, Transfer
from models.transfers.items import known_note
from models.transfers.lookup import destination_of, keep_secrets
from models.transfers.reservations import reserve

SourceCheck = Callable[[GetExternalRequest], None]
"""Refuses at once what would be refused before a byte is fetched, such as the address of a URL. May block."""


def source_check(guard: EgressGuard, settings: Settings) -> SourceCheck:
    """Return the check of downloads' sources that is made for clients, by HTTP and by AMQP alike."""

    def check(request: GetExternalRequest) -> None:
        require_metadata_fits(request.metadata, settings.max_metadata)
        parse_terms(request).check(SourceContext.of(guard, settings))

    return check


@dataclass(frozen=True, slots=True)
class TransferRequest:
    """What is to be done, with which validated fields, on which object. May hold plain secrets: it is never stored.

    `fail_fast`: a client waits for the end, so it must not wait for a machine.
    `flow_run_id`: the Prefect run that performs it (begun in its UI), which is then the transfer's key there.
    `reason`: why it is done, when no client asks for it.
    """

    kind: TransferKind
    fields: TransferTerms
    object_id: UUID | None = None
    fail_fast: bool = False
    flow_run_id: UUID | None = None
    reason: str | None = None
    grant: Grant | None = field(kw_only=True)
    """What whoever asks is permitted; None: it is the service's own, and nothing is asked."""


@dataclass(frozen=True, slots=True)
class SealedRequest(TransferRequest):
    """A request that can be stored: `sealed` holds its secrets, encrypted, and `fields` holds none. `items`: those of a
    batch, if they were judged before (`judged`), for one call of `submit`.

    Raises: InternalError when it is made with plain secrets.
    """

    sealed: str | None = None
    items: list[JudgedItem] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if isinstance(self.fields, GetExternalRequest) and parted(self.fields)[0] != self.fields:
            raise InternalError("the request's secrets were not sealed")


def prepare(request: TransferRequest, check: SourceCheck | None = None, sealer: Sealer | None = None) -> SealedRequest:
    """Check the source of a download and seal its secrets; what has no source is taken as it is. With a check it
    blocks, and with secrets it reads the key's file.

    Raises: what `check` raises (UrlNotAllowed, NotSupported, InvalidRequest), SecretsUnreadable.
    """
    fields, blob = request.fields, None
    if isinstance(fields, GetExternalRequest):
        if check is not None:
            check(fields)
        if sealer is not None:
            fields, blob = sealed(fields, sealer)
    return SealedRequest(
        request.kind,
        fields,
        request.object_id,
        request.fail_fast,
        request.flow_run_id,
        request.reason,
        blob,
        grant=request.grant,
    )


def judged(session: Session, machines: Machines, request: SealedRequest) -> SealedRequest:
    """Return a batch's request with its items, judged by what the catalogue says now; any other request as it is. Only
    reads. Raises: what `submit` raises for the whole of a batch.
    """
    if not isinstance(request.fields, BatchRequest):
        return request
    return replace(
        request, items=judge_items(session, machines, request.fields, request.grant, moving=_moving(request))
    )


def submit(session: Session, machines: Machines, request: SealedRequest, quotas: Quotas = NO_QUOTAS) -> Transfer:
    """Check a request against the catalogue, claim what it needs, store it QUEUED and post it to the movers. Return it;
    its row is written already, and what is returned does not belong to the session.

    Raises: ObjectNotFound, ObjectDeleted, ObjectArchived, ObjectActive, ObjectUnknown, ObjectBusy, DestinationExists,
    ObjectHeld (a delete), UnknownMachine, PathNotAllowed, InvalidRequest, NotAllowed. Nothing is changed then, provided
    that the error ends the transaction. What is wrong with an item of a batch is the item's, and the batch is accepted.
    QuotaExceeded when it would add more to a group or a person than `quotas` allow; a batch is counted as a whole.
    """
    transfer = Transfer(
        id=uuid4(),
        kind=_kind(request).value,
        request={},
        fail_fast=request.fail_fast,
        bandwidth=getattr(request.fields, "bandwidth", None),
        priority=request.fields.priority.value,
        flow_run_id=request.flow_run_id,
        reason=request.reason,
        status=TransferStatus.QUEUED.value,
        sequence=0,
        created_by=maker(request.grant),
        grant=kept(request.grant),
        created=now(session),
    )
    _schedule(transfer, request.fields)
    match request.fields:
        case BatchRequest() as fields:
            enter_items(session, machines, transfer, fields, request.items, request.grant, moving=_moving(request))
        case ArchiveTerms() as fields:
            enter_archive(session, machines, transfer, fields, request.object_id, request.grant)
        case ActivateTerms() as fields:
            enter_activate(session, machines, transfer, fields, request.object_id, request.grant)
        case _:
            _enter_one(session, machines, transfer, request)
    post_submitted(session, transfer)
    insert_rows(session, Transfer, [_row(transfer)])  # once: it has the number of the event already
    note(
        session,
        transfer.kind,
        TrailOutcome.ALLOWED,
        object_id=transfer.object_id,
        transfer_id=transfer.id,
        by=requester_for(request.grant),
        time=transfer.created,
    )
    if request.sealed is not None:
        keep_secrets(session, transfer.id, request.sealed)
    wake(session, "queued")
    reserve(session, quotas, transfer)
    return transfer


def _row(transfer: Transfer) -> dict[str, Any]:
    """Return what was set of a new transfer, by the names of columns: the session's objects would take much longer
    to write it."""
    return {name: vars(transfer)[key] for key, name in _columns() if key in vars(transfer)}


@cache
def _columns() -> list[tuple[str, str]]:
    return [(one.key, one.columns[0].name) for one in inspect(Transfer).column_attrs]


def _moving(request: TransferRequest) -> bool:
    return request.kind is TransferKind.MOVE_MANY


def _kind(request: TransferRequest) -> TransferKind:
    """Return what is to be done: a download whose files are wanted has the same request as any other."""
    if not isinstance(request.fields, GetExternalRequest):
        return request.kind
    return TransferKind.GETEXTERNAL_MANY if request.fields.extract else TransferKind.GETEXTERNAL


def _schedule(transfer: Transfer, fields: TransferTerms) -> None:
    """Note when the transfer may begin and must have ended. Raises: InvalidRequest when there is no time for it."""
    transfer.not_before = _moment(fields.not_before, transfer.created)
    transfer.deadline = _moment(fields.deadline, transfer.created)
    if transfer.deadline is None:
        return
    if transfer.deadline <= transfer.created:
        raise InvalidRequest.of({"deadline": "must be in the future"})
    if transfer.not_before is not None and transfer.not_before >= transfer.deadline:
        raise InvalidRequest.of({"not_before": "must be before deadline"})


def _moment(given: datetime | timedelta | None, created: datetime) -> datetime | None:
    return created + given if isinstance(given, timedelta) else given


def _enter_one(session: Session, machines: Machines, transfer: Transfer, request: SealedRequest) -> None:
    transfer.request = request.fields.model_dump(mode="json")
    obj = _usable_source(session, machines, request)
    if obj is not None:
        transfer.object_id = obj.id
        transfer.source_place = obj.place
        if obj.status != ObjectStatus.ARCHIVED:  # to delete an archived one touches no machine
            transfer.source_machine = obj.machine
        transfer.group = obj.group
        transfer.bytes_total = obj.size
    destination = destination_of(machines, request.fields)
    if destination is not None:
        transfer.destination_machine, transfer.destination_place = destination.machine, destination.path
        group = getattr(request.fields, "group", "") if obj is None else obj.group
        owner = None if obj is None else obj.created_by
        require_destination(request.grant, _kind(request), destination, group, owner)
    match request.fields:
        case MoveRequest() | DeleteRequest():
            claim_writing(session, _id(obj), transfer.id)
            transfer.notes = known_note(obj.size, obj.checksum) if obj is not None else {}
        case CopyRequest():
            claim_reading(session, _id(obj), transfer.id)
            transfer.result_object_id = uuid4()
        case GetExternalRequest(size=size, group=group, options=options):
            if options.get(IF_NEWER_THAN):
                get_object(session, UUID(str(options[IF_NEWER_THAN])), seen(request.grant, READ))
            transfer.result_object_id = None if request.fields.extract else uuid4()
            transfer.group = group
            transfer.bytes_total = size
        case _:
            raise InternalError(f"{request.kind} without its items")
    if destination is not None:
        claim_place(session, destination, transfer=transfer.id, by=request.grant)
        require_outside_archive(machines[destination.machine], destination.path)  # bundles themselves hold their places
    elif obj is not None and obj.status == ObjectStatus.UNKNOWN:
        # it holds no place: what lies there by now may be somebody else's, and must not be deleted
        claim_place(session, Place(obj.machine, obj.place), transfer=transfer.id, by=request.grant)


def _usable_source(session: Session, machines: Machines, request: SealedRequest) -> DataObject | None:
    """Return the object's row, locked as by `lock_object`; it is read only."""
    if request.object_id is None:
        return None
    found = session.execute(_SOURCE, {"object_id": request.object_id}).one_or_none()
    if found is None:
        raise ObjectNotFound(f"no object has the identifier {request.object_id}")
    obj = cast(DataObject, found)
    require_source(request.grant, request.kind, obj)
    require_usable(obj, removing=request.kind is TransferKind.DELETE)
    if request.kind is TransferKind.DELETE and obj.held_since is not None:
        raise ObjectHeld(f"object {obj.id} is held since {obj.held_since:%Y-%m-%d}: {obj.hold_reason or 'no reason'}")
    if obj.status != ObjectStatus.ARCHIVED:
        machines[obj.machine]  # raises UnknownMachine: its objects stay listed, but can't be worked on
    return obj


_OBJECTS = table_of(DataObject)
_SOURCE = (  # made once: it is asked for each transfer
    select(_OBJECTS).where(_OBJECTS.c.id == bindparam("object_id")).with_for_update()
)


def _id(obj: DataObject | None) -> UUID:
    if obj is None:
        raise InvalidRequest("uuid: an object is needed", {"uuid": "the identifier of an object"})
    return obj.id
