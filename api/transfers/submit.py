"""Orders: hand a transfer to the movers, and wait for its end where the client does."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from anyio.to_thread import run_sync
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response

from api.context import Context
from api.http.idempotency import Slot, once
from api.http.responses import message_answer, object_answer, preferences, task_answer
from datamanager.domain.requests import GetExternalRequest
from datamanager.domain.states import TransferKind, TransferStatus
from datamanager.errors import InternalError, OrchestratorUnavailable, by_code
from datamanager.messaging.wake import ring
from datamanager.sealing import Sealer
from datamanager.sources.download_terms import parse_terms
from datamanager.sources.network.source_context import SourceContext
from models.core.leases import movers_online
from models.machines.health import require_open
from models.machines.limits import ends
from models.tables import Transfer
from models.transfers.outcomes import UNCHANGED
from models.transfers.submission import Order, sealed_order, submit


async def wait_for(context: Context, request: Request, order: Order) -> Response:
    """Do an order and answer with how it ended; 202 with the task when the client prefers not to wait (so long)."""
    wishes = preferences(request)
    order = replace(order, fail_fast=wishes.patience != 0)

    async def work(slot: Slot) -> Response:
        task = slot.subject or await _submit(context, order, slot)
        row = None if wishes.patience == 0 else await context.waiter.ended(task, wishes.patience)
        if row is None:
            return task_answer(request, task, 202, wishes.applied)
        slot.ended = True
        return _outcome(request, row)

    return await once(context, request, order.request, work)


async def enqueue(context: Context, request: Request, order: Order) -> Response:
    """Accept an order and answer with its task."""
    at_once = preferences(request).respond_async

    async def work(slot: Slot) -> Response:
        task = slot.subject or await _submit(context, order, slot)
        return task_answer(request, task, 202 if at_once else 200, "respond-async" if at_once else "")

    return await once(context, request, order.request, work)


async def _submit(context: Context, order: Order, slot: Slot) -> UUID:
    wanted = order.request
    if isinstance(wanted, GetExternalRequest):
        await context.remotely(lambda: _check_source(context, wanted))
        order = await run_sync(sealed_order, order, Sealer.of(context.settings))

    def inside(session: Session) -> UUID:
        if order.fail_fast and not any(mover.prefect for mover in movers_online(session)):
            raise OrchestratorUnavailable("no mover that can reach Prefect is online; nothing was changed")
        transfer = submit(session, context.machines, order)
        if order.fail_fast:
            require_open(session, ends(transfer))
        slot.attach(session, transfer.id)
        return transfer.id

    task = await context.writing(inside)
    context.posted()
    await run_sync(ring, context.run_directory, "mover", "queued")
    return task


def _check_source(context: Context, wanted: GetExternalRequest) -> None:
    parse_terms(wanted).check(SourceContext.of(context.guard, context.settings))


def _outcome(request: Request, row: Transfer) -> Response:
    """Answer with how a transfer ended. Raises: the error that it ended with."""
    if row.status != TransferStatus.COMPLETE.value:
        raise by_code(row.error_code or InternalError.code, row.error_detail or "")
    if row.kind in (TransferKind.COPY.value, TransferKind.GETEXTERNAL.value):
        if row.result_object_id is None:
            raise InternalError(f"transfer {row.id} made no object")
        return object_answer(request, row.result_object_id, 200 if row.notes.get(UNCHANGED) else 201)
    return message_answer(request, row.object_id, row.result or "")
