"""One run's work: the transfer it performs, held under a lease, watched while bytes move, ended whatever happens.

A flow gets the transfer's identifier and nothing else (Prefect stores parameters for all to see). A run begun in the
Prefect UI or by
a schedule brings the request instead, and makes its transfer first, keyed by its flow run.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from prefect.runtime import flow_run as running
from sqlalchemy.orm import Session

from datamanager.domain.requests import TransferRequest, validated
from datamanager.domain.states import Phase, TransferKind
from datamanager.engine.attempt import End, Intent, Job, Restart
from datamanager.engine.cancellable_storage import StoppableStorage
from datamanager.engine.control import WISHES, Control
from datamanager.errors import (
    Cancelled,
    CatalogueUnavailable,
    DataManagerError,
    InternalError,
    LeaseLost,
    MachineUnavailable,
    Paused,
    ServiceError,
    Staging,
    TaskNotFound,
)
from datamanager.machines import VerifyPolicy
from datamanager.sealing import Sealer
from datamanager.transports.port import Storage
from flows.runtime.monitor import NOTE_EVERY, watched, wish
from flows.runtime.naming import describe_run
from flows.runtime.services import Services, services
from models.machines import limits
from models.tables import Transfer
from models.transfers import outcomes, queue
from models.transfers.cancel_pause import leave_litter, stop_reason
from models.transfers.items import in_doubt, machines_of
from models.transfers.submission import (
    REQUEST_OF_KIND,
    Order,
    find_by_flow_run,
    get_transfer,
    request_of,
    sealed_order,
    submit,
)

TAKEN_AGAIN = timedelta(seconds=2)

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Work:
    """The transfer that the current flow run performs."""

    def __init__(self, parts: Services, hold: queue.Hold, row: Transfer, control: Control) -> None:
        self.parts = parts
        self.hold = hold
        self.row = row
        self.control = control
        self.request: TransferRequest = request_of(row)
        self.started = time.monotonic()
        restart = row.notes.get("restart")
        self.restart = Restart(**restart) if restart else None
        """What was recorded for going on with a partial file, by this attempt or one before."""
        self.item_errors: dict[int, DataManagerError] = {}
        """Why items of a batch failed last, by number."""
        self.waits = False
        """A machine of this transfer can't be reached for now: it goes back to the queue, and no attempt is counted."""
        self.litter = TransferKind(row.kind).itemised or (hold.epoch > 1 and row.destination_machine is not None)
        """Whether a partial file may lie beside the destination, or that of an item."""
        self._storages: dict[str, Storage] = {}
        self.log = get_run_logger()
        """Prefect's: what is said here stands on the run's page."""

    @property
    def transfer(self) -> UUID:
        """The transfer's identifier."""
        return self.hold.transfer

    def job(self) -> Job:
        """Describe this attempt to the engine."""
        machines = self.parts.machines
        source = destination = None
        if self.row.source_machine is not None:
            name = self.row.source_machine
            source = End(outcomes.source(self.row), machines[name], self.storage(name))
        if self.row.destination_machine is not None:
            name = self.row.destination_machine
            destination = End(outcomes.destination(self.row), machines[name], self.storage(name))
        kind, policy = TransferKind(self.row.kind), getattr(self.request, "verify", None)
        if kind is TransferKind.GETEXTERNAL_MANY:
            policy = VerifyPolicy.SHA256  # it tells an archive from another one, whose files lie elsewhere
        intent = self.row.notes.get("intent")
        return Job(
            transfer=self.transfer,
            epoch=self.hold.epoch,
            kind=kind,
            source=source,
            destination=destination,
            overwrite=bool(getattr(self.request, "overwrite", False)),
            verify=policy or (destination.machine.verify if destination else VerifyPolicy.SIZE),
            intent=Intent(**intent) if intent else None,
            restart=self.restart,
            limited=self.control.throttle is not None and self.control.throttle.limited,
        )

    def storage(self, machine: str) -> Storage:
        """Return a machine's storage, the same one every time, whose sessions end when this work is to stop."""
        if machine not in self._storages:
            self._storages[machine] = StoppableStorage(self.parts.storages.get(machine), self.control)
        return self._storages[machine]

    def remember(self, marker: Restart) -> None:
        """Record a restart marker. Blocks. Raises: LeaseLost, CatalogueUnavailable."""
        with self.parts.database.write() as session:
            queue.remember(session, self.hold, restart=asdict(marker))
        self.restart = marker

    def obey_limits(self) -> None:
        """Let the limits that are in force now hold for this transfer. Blocks. Raises: CatalogueUnavailable."""
        throttles, control = self.parts.throttles, self.control
        with self.parts.database.read() as session:
            touched = limits.ends(self.row)
            if TransferKind(self.row.kind).many:
                touched |= machines_of(session, self.transfer)
            pace = limits.pace(session, self.parts.machines, self.transfer, touched)
        for machine, rate in pace.machines.items():
            throttles.set(machine, rate)
        if control.throttle is None:
            control.throttle = throttles.of(touched, pace.own)
        else:
            control.throttle.limit(pace.own)

    def asked_to_stop(self) -> DataManagerError | None:
        """Return what users, or the transfer's deadline, want it to stop for. Blocks. Raises: CatalogueUnavailable."""
        with self.parts.database.read() as session:
            return stop_reason(session, self.transfer)

    async def is_ended_by(self, error: BaseException) -> bool:
        """Say whether this error ends the transfer; else another attempt follows, here or on another mover."""
        if isinstance(error, asyncio.CancelledError) and isinstance(self.control.stopping, WISHES):
            error = self.control.stopping
        if not isinstance(error, Exception) or isinstance(error, LeaseLost | Paused | Staging):
            return False  # the mover stops, another one has the transfer, or it goes on later
        if self.waits:
            return False

        def look() -> bool:
            with self.parts.database.read() as session:
                return not _goes_on(self.parts, get_transfer(session, self.transfer), error)

        try:
            return await asyncio.to_thread(look)
        except CatalogueUnavailable:
            return False

    def recorded_intent(self) -> Intent:
        """Read back what was recorded before publishing. Blocks. Raises: LeaseLost."""
        with self.parts.database.read() as session:
            return Intent(**queue.held(session, self.hold).notes["intent"])

    @property
    def seconds(self) -> float:
        """How long this run has worked."""
        return time.monotonic() - self.started

    async def write(self, change: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Run `change(session, hold, …)` in a writing transaction, in a thread. Raises: LeaseLost,
        CatalogueUnavailable.
        """

        def transaction() -> Result:
            with self.parts.database.write() as session:
                return change(session, self.hold, *args, **kwargs)

        return await asyncio.to_thread(transaction)


_work: ContextVar[Work] = ContextVar("work")


def current() -> Work:
    """Return the work of the flow run that calls."""
    return _work.get()


def asked(kind: TransferKind, fields: dict[str, Any], uuid: UUID | None = None) -> Order:
    """Make an order of what a person filled in. Raises: InvalidRequest, which names each field that is wrong."""
    return Order(kind, validated(fields, REQUEST_OF_KIND[kind]), object_id=uuid)


@asynccontextmanager
async def working_on(kind: TransferKind, transfer: UUID | None, order: Order | None = None) -> AsyncIterator[Work]:
    """Hold the run's transfer, watch it while the body works, and end it in ERROR when the body raises.

    Raises: what the body raised; TaskNotFound when there is no such transfer waiting.
    """
    parts = services()
    flow_run = UUID(str(running.get_id()))
    hold = await _hold_soon(parts, kind, transfer, order, flow_run)
    work: Work | None = None
    try:
        row = await asyncio.to_thread(_begin, parts, hold, flow_run)
        work = Work(parts, hold, row, parts.running[hold])
        _work.set(work)
        if row.no_return:
            work.control.shield()  # the probe finds out what an attempt before this one did
        if order is not None:
            await describe_run(flow_run, row)
        async with watched(work):
            yield work
    except asyncio.CancelledError:
        reason = None if work is None else wish(work)
        if work is None or reason is None:
            raise  # the mover stops: it gives the hold back when Prefect has been told, not before
        await asyncio.to_thread(_end_in_error, parts, hold, reason, work)
        raise reason from None
    except LeaseLost as lost:
        parts.running.pop(hold, None)
        await asyncio.to_thread(_leave_litter, parts, hold)
        # another mover has the transfer, and its flow run too: this one must not say how that ended
        raise Abort(lost.detail) from lost
    except DataManagerError as error:
        await asyncio.to_thread(_end_in_error, parts, hold, error, work)
        raise
    except Exception as error:
        log.exception("transfer %s: a fault of ours", hold.transfer)
        fault = InternalError(f"unexpected {type(error).__name__}")
        await asyncio.to_thread(_end_in_error, parts, hold, fault, work)
        raise
    else:
        parts.running.pop(hold, None)
    finally:
        parts.ring(f"ended:{hold.transfer}")


class _MachineFull(Exception):
    """A machine has its limit of transfers; nothing was changed."""


async def _hold_soon(
    parts: Services, kind: TransferKind, transfer: UUID | None, order: Order | None, flow_run: UUID
) -> queue.Hold:
    """Return the hold under which this run works, as soon as its machines have room for it and the catalogue is there:
    a run must not fail for either."""
    while True:
        try:
            return await asyncio.to_thread(_hold, parts, kind, transfer, order, flow_run)
        except (_MachineFull, CatalogueUnavailable):
            await asyncio.sleep(NOTE_EVERY)


def _hold(
    parts: Services, kind: TransferKind, transfer: UUID | None, order: Order | None, flow_run: UUID
) -> queue.Hold:
    """Return the hold under which this run works: the mover's, or one that is taken now when the run was begun in
    Prefect, on the transfer that it names or has made.
    """
    hold = parts.by_run.get(flow_run)
    with parts.database.write() as session:
        if hold is None:
            wanted = transfer or _transfer_of(session, parts, order, flow_run)
            caps = limits.caps(session, parts.machines)
            taken = queue.take(session, parts.owner, parts.settings.lease, 1, only=wanted, caps=caps)
            if not taken and caps and queue.waits(session, wanted):
                raise _MachineFull
            if not taken:
                raise TaskNotFound(f"no {kind} transfer {wanted} is waiting; it has ended, or another mover has it")
            hold = taken[0]
        found = get_transfer(session, hold.transfer).kind
        if found != kind.value:
            raise TaskNotFound(f"transfer {hold.transfer} is a {found}, this flow performs a {kind}")
    parts.running.setdefault(hold, Control())
    parts.by_run[flow_run] = hold
    return hold


def _transfer_of(session: Session, parts: Services, order: Order | None, flow_run: UUID) -> UUID:
    """Return the transfer that this run has made, now or before a crash."""
    known = find_by_flow_run(session, flow_run)
    if known is not None:
        return known.id
    if order is None:
        raise TaskNotFound("give the identifier of a transfer, or a request to make one")
    order = sealed_order(order, Sealer.of(parts.settings))
    return submit(session, parts.machines, replace(order, flow_run_id=flow_run)).id


def _begin(parts: Services, hold: queue.Hold, flow_run: UUID) -> Transfer:
    with parts.database.write() as session:
        return queue.begin(session, hold, flow_run)


def _leave_litter(parts: Services, hold: queue.Hold) -> None:
    """Have this attempt's partial file removed after the transfer's end. Nothing here writes any more."""
    try:
        with parts.database.write() as session:
            leave_litter(session, hold.transfer)
    except CatalogueUnavailable:
        log.warning("transfer %s: a partial file of epoch %d may stay", hold.transfer, hold.epoch)


def _end_in_error(parts: Services, hold: queue.Hold, error: DataManagerError, work: Work | None = None) -> None:
    parts.running.pop(hold, None)
    try:
        with parts.database.write() as session:
            row = queue.held(session, hold)
            if isinstance(error, Staging):
                queue.requeue(session, hold, after=error.again, spent=False, phase=Phase.STAGING)
            elif (work is not None and work.waits) or isinstance(error, Paused):
                queue.requeue(session, hold, spent=False)
            elif _goes_on(parts, row, error) or _in_doubt(parts, session, row, error):
                if isinstance(error, Cancelled):
                    row.stop_requested = queue.CANCEL  # also when it was asked for in Prefect
                queue.append_fault(session, row, error.code, error.detail)
                queue.requeue(session, hold, after=TAKEN_AGAIN)
            else:
                outcomes.fail(session, hold, error, litter=None if work is None else work.litter)
    except LeaseLost:
        return  # ended, or taken over, while we failed
    except CatalogueUnavailable:
        # what can't be recorded stays as it is: the lease runs out and a mover takes the transfer again
        log.warning("transfer %s: its end can't be recorded, it will be taken again", hold.transfer)


def _goes_on(parts: Services, row: Transfer, error: Exception) -> bool:
    """Say whether a later attempt must look before anybody may call this an error.

    A catalogue that was away is no fault of the transfer, nor is a machine: it is waited for in the queue. And once the
    intent to publish is recorded, a broken connection leaves open whether the file has its name; the next probe finds
    out. (Of a machine that a client waits for `retryable` was taken away.)
    """
    if not isinstance(error, DataManagerError) or row.attempts >= parts.settings.max_attempts:
        return False
    if isinstance(error, ServiceError):
        return True
    return error.retryable and (isinstance(error, MachineUnavailable) or "intent" in row.notes)


def _in_doubt(parts: Services, session: Session, row: Transfer, error: Exception) -> bool:
    """Say whether files of a batch that users stop may have their names: an attempt looks at them before it ends."""
    if not isinstance(error, WISHES) or row.attempts >= parts.settings.max_attempts:
        return False
    return TransferKind(row.kind).itemised and in_doubt(session, row.id)
