"""Submit a transfer to the movers, and wait for its end where the client does."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.context import Context
from api.http.idempotency import Slot, once
from api.http.responses import message_answer, object_answer, preferences, task_answer
from api.transfers.wait import waiter_of
from datamanager.domain.requests import BatchRequest, GetExternalRequest
from datamanager.domain.states import TransferKind, TransferStatus
from datamanager.errors import InternalError, OrchestratorUnavailable, by_code
from datamanager.sealing import Sealer
from models.core.leases import movers_online
from models.machines.health import require_open
from models.machines.limits import ends
from models.submission import SealedRequest, TransferRequest, judged, prepare, source_check, submit
from models.tables import Transfer
from models.transfers.outcomes import UNCHANGED


async def wait_for(context: Context, request: Request, wanted: TransferRequest) -> Response:
    """Submit a transfer and answer with how it ended; 202 with the task to a client that does not wait (so long)."""
    preferred = preferences(request)
    wanted = replace(wanted, fail_fast=preferred.patience != 0)

    async def work(slot: Slot) -> Response:
        task = slot.subject or await _submit(context, wanted, slot)
        row = None if preferred.patience == 0 else await waiter_of(request).ended(task, preferred.patience)
        if row is None:
            return task_answer(request, task, 202, preferred.applied)
        slot.ended = True
        return _outcome(request, row)

    return await once(context, request, wanted.fields, work)


async def enqueue(context: Context, request: Request, wanted: TransferRequest) -> Response:
    """Submit a transfer and answer with its task."""
    at_once = preferences(request).respond_async

    async def work(slot: Slot) -> Response:
        task = slot.subject or await _submit(context, wanted, slot)
        return task_answer(request, task, 202 if at_once else 200, "respond-async" if at_once else "")

    return await once(context, request, wanted.fields, work)


async def _submit(context: Context, wanted: TransferRequest, slot: Slot) -> UUID:
    sealed = await _prepared(context, wanted)
    if isinstance(wanted.fields, BatchRequest):  # thousands of items: other writers are not to wait for their judging
        prepared = sealed
        sealed = await context.judging(lambda session: judged(session, context.machines, prepared))

    def enter(session: Session) -> UUID:
        if sealed.fail_fast and not any(movers_online(session).values()):
            raise OrchestratorUnavailable("no mover that can reach Prefect is online; nothing was changed")
        transfer = submit(session, context.machines, sealed, context.quotas)
        if sealed.fail_fast:
            require_open(session, ends(transfer))
        slot.attach(session, transfer.id)
        return transfer.id

    task = await context.writing(enter)
    context.notify_relay()
    context.notify_movers("queued")
    return task


async def _prepared(context: Context, wanted: TransferRequest) -> SealedRequest:
    """Check a download's source and seal its secrets. What has no source must not wait for those that resolve names."""
    if not isinstance(wanted.fields, GetExternalRequest):
        return prepare(wanted)
    check = source_check(context.guard, context.settings)
    return await context.resolving(lambda: prepare(wanted, check, Sealer.of(context.settings)))


def _outcome(request: Request, row: Transfer) -> Response:
    """Answer with how a transfer ended. Raises: the error that it ended with."""
    if row.status != TransferStatus.COMPLETE.value:
        raise by_code(row.error_code or InternalError.code, row.error_detail or "")
    if row.kind in (TransferKind.COPY.value, TransferKind.GETEXTERNAL.value):
        if row.result_object_id is None:
            raise InternalError(f"transfer {row.id} created no object")
        return object_answer(request, row.result_object_id, 200 if row.notes.get(UNCHANGED) else 201)
    return message_answer(request, row.object_id, row.result or "")
