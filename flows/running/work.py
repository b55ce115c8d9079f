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
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from dataclasses import replace
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from prefect.runtime import flow_run as running
from sqlalchemy.orm import Session

from datamanager.domain.requests import TransferRequest, validated
from datamanager.domain.states import Phase, TransferKind
from datamanager.engine.control import Control
from datamanager.engine.job import End, Intent, Job
from datamanager.errors import (
    CatalogueUnavailable,
    DataManagerError,
    InternalError,
    LeaseLost,
    ServiceError,
    TaskNotFound,
)
from datamanager.machines import VerifyPolicy
from flows.running.naming import describe_run
from flows.running.progress import ProgressArtifact
from flows.running.services import Services, services
from models import movers, outcomes
from models.tables import Transfer
from models.transfers import REQUEST_OF_KIND, Order, find_by_flow_run, get_transfer, request_of, submit

NOTE_EVERY = 1.0  # seconds between two notes of a transfer's progress in the catalogue
TAKEN_AGAIN = timedelta(seconds=2)
SHOW_AFTER = 5.0  # seconds until a transfer is worth a progress bar in the Prefect UI

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class Work:
    """The transfer that the current flow run performs."""

    def __init__(self, parts: Services, hold: movers.Hold, row: Transfer, control: Control) -> None:
        self.parts = parts
        self.hold = hold
        self.row = row
        self.control = control
        self.request: TransferRequest = request_of(row)
        self.started = time.monotonic()
        self.log = get_run_logger()
        """Prefect's: what is said here stands on the run's page."""

    @property
    def transfer(self) -> UUID:
        """The transfer's identifier."""
        return self.hold.transfer

    def job(self) -> Job:
        """Describe this attempt to the engine."""
        machines, storages = self.parts.machines, self.parts.storages
        source = destination = None
        if self.row.source_machine is not None:
            name = self.row.source_machine
            source = End(outcomes.source(self.row), machines[name], storages.get(name))
        if self.row.destination_machine is not None:
            name = self.row.destination_machine
            destination = End(outcomes.destination(self.row), machines[name], storages.get(name))
        policy: VerifyPolicy | None = getattr(self.request, "verify", None)
        intent = self.row.notes.get("intent")
        return Job(
            transfer=self.transfer,
            epoch=self.hold.epoch,
            kind=TransferKind(self.row.kind),
            source=source,
            destination=destination,
            overwrite=bool(getattr(self.request, "overwrite", False)),
            verify=policy or (destination.machine.verify if destination else VerifyPolicy.SIZE),
            intent=Intent(**intent) if intent else None,
        )

    def recorded_intent(self) -> Intent:
        """Read back what was recorded before publishing. Blocks. Raises: LeaseLost."""
        with self.parts.database.read() as session:
            return Intent(**movers.held(session, self.hold).notes["intent"])

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
    hold = await asyncio.to_thread(_hold, parts, kind, transfer, order, flow_run)
    watching: asyncio.Task[None] | None = None
    try:
        row = await asyncio.to_thread(_begin, parts, hold, flow_run)
        work = Work(parts, hold, row, parts.running[hold])
        _work.set(work)
        if order is not None:
            await describe_run(flow_run, row)
        watching = asyncio.create_task(_watch(work), name=f"watch {hold.transfer}")
        yield work
    except asyncio.CancelledError:
        raise  # the mover stops: it gives the hold back when Prefect has been told, not before
    except LeaseLost as lost:
        parts.running.pop(hold, None)
        # another mover has the transfer, and its flow run too: this one must not say how that ended
        raise Abort(lost.detail) from lost
    except DataManagerError as error:
        await asyncio.to_thread(_end_in_error, parts, hold, error)
        raise
    except Exception as error:
        log.exception("transfer %s: a fault of ours", hold.transfer)
        await asyncio.to_thread(_end_in_error, parts, hold, InternalError(f"unexpected {type(error).__name__}"))
        raise
    else:
        parts.running.pop(hold, None)
    finally:
        if watching is not None:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching
        parts.ring(f"ended:{hold.transfer}")


def _hold(
    parts: Services, kind: TransferKind, transfer: UUID | None, order: Order | None, flow_run: UUID
) -> movers.Hold:
    """Return the hold under which this run works: the mover's, or one that is taken now when the run was begun in
    Prefect, on the transfer that it names or has made.
    """
    hold = parts.by_run.get(flow_run)
    with parts.database.write() as session:
        if hold is None:
            wanted = transfer or _transfer_of(session, parts, order, flow_run)
            taken = movers.take(session, parts.owner, parts.settings.lease, 1, only=wanted)
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
    return submit(session, parts.machines, replace(order, flow_run_id=flow_run)).id


def _begin(parts: Services, hold: movers.Hold, flow_run: UUID) -> Transfer:
    with parts.database.write() as session:
        return movers.begin(session, hold, flow_run)


def _end_in_error(parts: Services, hold: movers.Hold, error: DataManagerError) -> None:
    parts.running.pop(hold, None)
    try:
        with parts.database.write() as session:
            row = movers.held(session, hold)
            if _unfinished(row, error) and row.attempts < parts.settings.max_attempts:
                movers.append_fault(session, row, error.code, error.detail)
                movers.requeue(session, hold, after=TAKEN_AGAIN)
            else:
                outcomes.fail(session, hold, error)
    except LeaseLost:
        return  # ended, or taken over, while we failed
    except CatalogueUnavailable:
        # what can't be recorded stays as it is: the lease runs out and a mover takes the transfer again
        log.warning("transfer %s: its end can't be recorded, it will be taken again", hold.transfer)


def _unfinished(row: Transfer, error: DataManagerError) -> bool:
    """Say whether a later attempt must look before anybody may call this an error.

    A catalogue that was away is no fault of the transfer. And once the intent to publish is recorded, a broken
    connection leaves open whether the file has its name; the next probe finds out.
    """
    return isinstance(error, ServiceError) or (error.retryable and "intent" in row.notes)


async def _watch(work: Work) -> None:
    """Note progress in the catalogue, at most once a second, and show it in the Prefect UI after a while."""
    noted: tuple[Phase, int] | None = None
    artifact = ProgressArtifact()
    while True:
        await asyncio.sleep(NOTE_EVERY)
        control = work.control
        seen = (control.phase, control.bytes_done)
        if seen == noted:
            continue
        values: dict[str, Any] = {"phase": control.phase.value, "bytes_done": control.bytes_done}
        if control.bytes_total is not None:
            values["bytes_total"] = control.bytes_total
        try:
            await work.write(movers.note, **values)
            noted = seen
        except LeaseLost as lost:
            control.stop(lost)
            return
        except CatalogueUnavailable:
            continue  # the next note tells more; publishing asks the catalogue anyway
        if work.seconds > SHOW_AFTER:
            await artifact.show(control, work.seconds)
