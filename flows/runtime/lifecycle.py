"""A transfer run from its lease to its end: the lease acquired, the run watched, its outcome recorded whatever happens.

A run begun in the Prefect UI or by a schedule brings a request instead of a transfer, and makes its transfer first,
keyed by its flow run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

from prefect.exceptions import Abort
from prefect.runtime import flow_run as running
from sqlalchemy.orm import Session

from datamanager.domain.requests import validated
from datamanager.domain.states import TransferKind
from datamanager.engine.control import Control
from datamanager.errors import (
    Cancelled,
    CatalogueUnavailable,
    DataManagerError,
    InternalError,
    LeaseLost,
    NotAllowed,
    TaskNotFound,
)
from datamanager.sealing import Sealer
from datamanager.sources.terms.request_secrets import refuse_secrets
from flows.runtime.acting import acting_for
from flows.runtime.monitor import NOTE_EVERY, user_stop, watched
from flows.runtime.progress import describe_run
from flows.runtime.retry import Requeue, decide
from flows.runtime.services import Services, services
from flows.runtime.transfer_run import WAITED, Traces, TransferRun, attempt_state, make_current
from models.access.visibility import ALL
from models.database import write
from models.machines import limits
from models.submission import TransferRequest, prepare, submit
from models.tables import Transfer
from models.transfers import outcomes, queue, withdrawal
from models.transfers.cancel_pause import note_partial
from models.transfers.lookup import REQUEST_OF_KIND, by_flow_run, get_transfer

DOWNLOAD_OPTIONS = ("extract", "decompress", "credential")
"""Fields of forms that are options of a download."""
log = logging.getLogger(__name__)


def typed_request(kind: TransferKind, fields: dict[str, Any], uuid: UUID | None = None) -> TransferRequest:
    """Make a request of the fields that a person gave. Raises: InvalidRequest, which names each field that is wrong."""
    return TransferRequest(kind, validated(fields, REQUEST_OF_KIND[kind]), object_id=uuid, grant=None)


def request_of_form(kind: TransferKind, form: Mapping[str, Any]) -> TransferRequest | None:
    """Make a request of a form in Prefect, which everybody can read; None when the run was made for a transfer that is
    there already.

    Raises: InvalidRequest, which names each wrong field; NotSupported for a URL with secrets in it.
    """
    fields = dict(form)
    transfer, uuid = fields.pop("transfer"), fields.pop("uuid", None)
    if transfer is not None:
        return None
    if "directory" in fields:
        fields["directory"] = {"machine": fields.pop("source_machine"), "path": fields["directory"]}
    if "url" in fields:
        refuse_secrets({}, "in Prefect's forms, which everybody can read", fields["url"])
        options = {name: value for name in DOWNLOAD_OPTIONS if (value := fields.pop(name, ""))}
        fields |= {"protocol": fields["url"].partition(":")[0], "options": options}
    return typed_request(kind, fields, uuid)


@asynccontextmanager
async def working_on(kind: TransferKind, form: Mapping[str, Any]) -> AsyncIterator[TransferRun]:
    """Acquire the run's transfer, watch it while the body works, and end it in ERROR when the body raises. `form` are
    the flow's parameters by name: its `locals()`, before another name is bound there.

    Raises: what the body raised; TaskNotFound when there is no such transfer waiting; what `request_of_form` raises.
    """
    parts, transfer, request = services(), form["transfer"], request_of_form(kind, form)
    flow_run = UUID(str(running.get_id()))
    hold = await _acquire_lease(parts, kind, transfer, request, flow_run)
    run: TransferRun | None = None
    try:
        row = await _begin(parts, hold, flow_run)
        async with acting_for(parts, hold, row) as acting:
            run = TransferRun(acting, hold, row, parts.running[hold])
            make_current(run)
            if row.past_commit_point:
                run.control.shield()  # the probe finds out what an attempt before this one did
            if request is not None:
                await describe_run(flow_run, row)
            async with watched(run):
                yield run
    except asyncio.CancelledError:
        reason = None if run is None else user_stop(run)
        if reason is None:
            raise  # the mover stops: it gives the lease back when the state in Prefect is written, not before
        await asyncio.to_thread(_record_failure, parts, hold, reason, run)
        raise reason from None
    except LeaseLost as lost:
        parts.running.pop(hold, None)
        await _note_partial(parts, hold)
        # another mover has the transfer, and its flow run too: this one must not say how that ended
        raise Abort(lost.detail) from lost
    except DataManagerError as error:
        await asyncio.to_thread(_record_failure, parts, hold, error, run)
        raise
    except Exception as error:
        log.exception("transfer %s: internal error", hold.transfer)
        fault = InternalError(f"unexpected {type(error).__name__}")
        await asyncio.to_thread(_record_failure, parts, hold, fault, run)
        raise
    else:
        parts.running.pop(hold, None)
    finally:
        parts.notify(f"ended:{hold.transfer}")


class _MachineFull(Exception):
    """A machine has its limit of transfers; nothing was changed."""


async def _acquire_lease(
    parts: Services, kind: TransferKind, transfer: UUID | None, request: TransferRequest | None, flow_run: UUID
) -> queue.TransferLease:
    """Return the lease under which this run works: the mover's; or one that is taken as soon as the run's machines have
    room for it and the catalogue is there, for which no run must fail."""
    if (hold := parts.by_run.get(flow_run)) is not None:  # for this flow: see `deployments.mover.flow_runner`
        parts.running.setdefault(hold, Control())
        return hold
    while True:
        try:
            return await asyncio.to_thread(_try_lease, parts, kind, transfer, request, flow_run)
        except (_MachineFull, CatalogueUnavailable):
            await asyncio.sleep(NOTE_EVERY)


async def _begin(parts: Services, hold: queue.TransferLease, flow_run: UUID) -> Transfer:
    """Note that the run has begun, as soon as the catalogue is there. Raises: LeaseLost, also when that took too
    long."""
    while True:
        try:
            return await write(parts.database, queue.begin, hold, flow_run)
        except CatalogueUnavailable:
            await asyncio.sleep(NOTE_EVERY)


def _try_lease(
    parts: Services, kind: TransferKind, transfer: UUID | None, request: TransferRequest | None, flow_run: UUID
) -> queue.TransferLease:
    """Take the lease under which a run works that was begun in Prefect, on the transfer that it names or has made."""
    with parts.database.write() as session:
        wanted = transfer or _transfer_of(session, parts, request, flow_run)
        caps = limits.caps(session, parts.machines)
        taken = queue.take(session, parts.owner, parts.settings.lease, 1, only=wanted, caps=caps)
        if not taken and caps and queue.waits(session, wanted):
            raise _MachineFull
        if not taken:
            raise TaskNotFound(f"no {kind} transfer {wanted} is waiting; it has ended, or another mover has it")
        hold = taken[0]
        found = get_transfer(session, hold.transfer, ALL).kind
        if found != kind.value:
            raise TaskNotFound(f"transfer {hold.transfer} is a {found}, this flow performs a {kind}")
        withdrawal.forbid(session, [hold.transfer], *parts.in_force)  # it stops before its first step
    parts.running.setdefault(hold, Control())
    parts.by_run[flow_run] = hold
    return hold


def _transfer_of(session: Session, parts: Services, request: TransferRequest | None, flow_run: UUID) -> UUID:
    """Return the transfer that this run has made, now or before a crash."""
    known = by_flow_run(session, [flow_run]).get(flow_run)
    if known is not None:
        return known.id
    if request is None:
        raise TaskNotFound("give the identifier of a transfer, or a request to make one")
    sealed = prepare(replace(request, flow_run_id=flow_run), sealer=Sealer.of(parts.settings))
    return submit(session, parts.machines, sealed, parts.quotas).id


async def _note_partial(parts: Services, hold: queue.TransferLease) -> None:
    """Have this attempt's partial file removed after the transfer's end. Nothing here writes any more."""
    try:
        await write(parts.database, note_partial, hold.transfer)
    except CatalogueUnavailable:
        log.warning("transfer %s: a partial file of epoch %d may remain", hold.transfer, hold.epoch)


def _record_failure(
    parts: Services, hold: queue.TransferLease, error: DataManagerError, run: TransferRun | None = None
) -> None:
    """Requeue the transfer, or end it in ERROR, as `decide` says."""
    parts.running.pop(hold, None)
    try:
        with parts.database.write() as session:
            settle_failure(session, parts, hold, error, run)
    except LeaseLost:
        return  # ended, or taken over, while we failed
    except CatalogueUnavailable:
        # what can't be recorded stays as it is: the lease runs out and a mover takes the transfer again
        log.warning("transfer %s: its result cannot be recorded; another attempt follows", hold.transfer)


def settle_failure(
    session: Session, parts: Services, hold: queue.TransferLease, error: DataManagerError, run: Traces | None
) -> None:
    """Requeue a transfer whose attempt raised, or end it in ERROR, as `decide` says. Raises: LeaseLost."""
    row = queue.held(session, hold)
    decision = decide(error, attempt_state(session, parts, row, run))
    if not isinstance(decision, Requeue):
        outcomes.fail(session, hold, error, leaves_partial=None if run is None else run.leaves_partial)
        return
    if decision.spent:
        if isinstance(error, Cancelled):
            row.stop_requested = queue.CANCEL  # also when it was asked for in Prefect
        elif isinstance(error, NotAllowed):
            row.stop_requested = queue.FORBID
        queue.append_fault(session, row, error.code, error.detail)
    if decision.waited:
        row.notes = {**row.notes, WAITED: row.notes.get(WAITED, 0) + 1}
    queue.requeue(session, hold, after=decision.after, spent=decision.spent, phase=decision.phase)
