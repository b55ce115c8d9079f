"""The transfer that a flow run performs: what its steps read of it and record on it, under its lease.

A flow gets the transfer's identifier and nothing else (Prefect stores parameters for all to see); its steps find the
transfer here (`current`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import asdict, replace
from datetime import timedelta
from functools import cached_property
from typing import Any, Protocol, TypeVar
from uuid import UUID

from prefect.logging import get_run_logger
from sqlalchemy.orm import Session

from datamanager.domain.location import Place
from datamanager.domain.requests import TransferTerms
from datamanager.domain.states import TransferKind
from datamanager.engine.attempt import Attempt, Endpoint, Intent, KnownFile, Restart
from datamanager.engine.control import USER_STOPS, CancellableStorage, Control
from datamanager.errors import CatalogueUnavailable, DataManagerError, LeaseLost
from datamanager.identity.grant import Grant
from datamanager.machines import VerifyPolicy, within
from datamanager.sources.network.source_context import READ_TIMEOUT
from datamanager.sources.registry import typed_options
from datamanager.transports.port import Storage
from flows.runtime.retry import WAITS, AttemptState, Fail, decide
from flows.runtime.services import Services
from models.access.permission import NEEDS, kept_of, reach_of
from models.access.visibility import ALL
from models.batches.results import CHUNK, items_to_do
from models.database import read
from models.machines import limits
from models.objects.bulk_claims import chunks
from models.tables import Transfer
from models.transfers import outcomes, queue
from models.transfers.cancel_pause import stop_reason
from models.transfers.items import KNOWN, in_doubt, machines_of
from models.transfers.lookup import get_transfer, request_of

Result = TypeVar("Result")

WAITED = "waited"
"""The note of how often its source has had a download wait."""


class Traces(Protocol):
    """What is known of an attempt whose steps are over, besides its row."""

    machine_away: bool
    """The circuit of a machine of the transfer is open."""
    leaves_partial: bool
    """A partial file may lie beside the destination, or the source aside."""
    alone_next: bool
    """What went wrong is not known to be this transfer's: alone it is tried again."""


class TransferRun:
    """The transfer that the current flow run performs."""

    def __init__(self, parts: Services, hold: queue.TransferLease, row: Transfer, control: Control) -> None:
        self.parts = parts
        self.hold = hold
        self.row = row
        self.control = control
        self.request: TransferTerms = request_of(row)
        self.started = time.monotonic()
        restart = row.notes.get("restart")
        self.restart = Restart(**restart) if restart else None
        """The restart marker of the partial file, recorded by this attempt or one before."""
        self.stored: Intent | None = None
        """What this attempt recorded before it gave the file its name."""
        self.named: Intent | None = None
        """What has its name by this attempt: only the commit is missing."""
        self.item_errors: dict[int, DataManagerError] = {}
        """Why items of a batch failed last, by number."""
        self.machine_away = False
        """The circuit of a machine of this transfer is open: it is requeued, and no attempt is counted."""
        self.alone_next = False
        taken_again = hold.epoch > 1 and row.destination_machine is not None
        self.leaves_partial = taken_again or TransferKind(row.kind).itemised
        """Whether a partial file may lie beside the destination, or that of an item."""
        self._storages: dict[str, Storage] = {}
        self.log = get_run_logger()
        """Prefect's: its lines stand on the run's page."""

    @property
    def transfer(self) -> UUID:
        """The transfer's identifier."""
        return self.hold.transfer

    @property
    def seconds(self) -> float:
        """How long this run has worked."""
        return time.monotonic() - self.started

    def attempt(self) -> Attempt:
        """Describe this attempt to the engine."""
        row = self.row
        source = None if row.source_machine is None else self.source_at(outcomes.source(row))
        destination = None if row.destination_machine is None else self.destination_at(outcomes.destination(row))
        kind, policy = TransferKind(row.kind), getattr(self.request, "verify", None)
        if kind is TransferKind.GETEXTERNAL_MANY:
            policy = VerifyPolicy.SHA256  # it tells an archive from another one, whose files lie elsewhere
        intent = row.notes.get("intent")
        return Attempt(
            transfer=self.transfer,
            epoch=self.hold.epoch,
            kind=kind,
            source=source,
            destination=destination,
            overwrite=bool(getattr(self.request, "overwrite", False)),
            verify=policy or (destination.machine.verify if destination else VerifyPolicy.SIZE),
            intent=Intent(**intent) if intent else None,
            restart=self.restart,
            known=KnownFile(**row.notes.get(KNOWN, {})),
            limited=self.limited,
        )

    @property
    def limited(self) -> bool:
        """Whether a bandwidth limit is in force."""
        return self.control.throttle is not None and self.control.throttle.limited

    def end_at(self, place: Place) -> Endpoint:
        """Return a place as an end of a transfer, with its machine and storage, as the service itself reaches it."""
        return Endpoint(place, self.parts.machines[place.machine], self.storage(place.machine))

    def source_at(self, place: Place) -> Endpoint:
        """Return the place of what is read, or removed, as the person reaches it; a bundle is the service's own."""
        kind = TransferKind(self.row.kind)
        recalls = kind in (TransferKind.ACTIVATE, TransferKind.ACTIVATE_MANY)
        return self._reached(place, () if recalls else NEEDS[kind].source)

    def destination_at(self, place: Place) -> Endpoint:
        """Return the place of what is written, as the person reaches it."""
        return self._reached(place, NEEDS[TransferKind(self.row.kind)].destination)

    def _reached(self, place: Place, actions: tuple[str, ...]) -> Endpoint:
        end = self.end_at(place)
        reach = reach_of(self._grant, place.machine, self.row.group, actions)
        return replace(end, machine=within(end.machine, reach)) if reach else end

    @cached_property
    def _grant(self) -> Grant | None:
        return kept_of(self.row.grant)

    def storage(self, machine: str) -> Storage:
        """Return a machine's storage, the same one every time, whose sessions end when this run is to stop."""
        if machine not in self._storages:
            self._storages[machine] = CancellableStorage(self.parts.storages.get(machine), self.control)
        return self._storages[machine]

    def remember(self, marker: Restart) -> None:
        """Record a restart marker. Blocks. Raises: LeaseLost, CatalogueUnavailable."""
        self.write_now(queue.remember, restart=asdict(marker))
        self.restart = marker

    def apply_limits(self) -> None:
        """Apply the limits that are in force now. Blocks. Raises: CatalogueUnavailable."""
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

    def stop_reason(self) -> DataManagerError | None:
        """Return why users, or the deadline, want the transfer to stop. Blocks. Raises: CatalogueUnavailable."""
        return self.read(stop_reason, self.transfer)

    async def is_ended_by(self, error: BaseException) -> bool:
        """Say whether this error ends the transfer; else another attempt follows, here or on another mover."""
        if isinstance(error, asyncio.CancelledError) and isinstance(self.control.stopping, USER_STOPS):
            error = self.control.stopping
        if not isinstance(error, Exception) or isinstance(error, LeaseLost):
            return False  # the mover stops, or another one has the transfer

        def look(session: Session) -> AttemptState:
            return attempt_state(session, self.parts, get_transfer(session, self.transfer, ALL), self)

        try:
            return isinstance(decide(error, await read(self.parts.database, look)), Fail)
        except CatalogueUnavailable:
            return False

    def items_to_do(self, after: int = -1, limit: int = 2**31) -> Sequence[Any]:
        """Return up to `limit` QUEUED items beyond the number `after`. Blocks. Raises: LeaseLost."""
        return self.read(items_to_do, self.hold, after, limit)

    def read(self, look: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Run `look(session, …)` in a reading transaction. Blocks. Raises: CatalogueUnavailable."""
        with self.parts.database.read() as session:
            return look(session, *args, **kwargs)

    async def write(self, change: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Run `change(session, hold, …)` in a writing transaction, in a thread. Raises: LeaseLost,
        CatalogueUnavailable.
        """
        return await asyncio.to_thread(self.write_now, change, *args, **kwargs)

    def write_all(self, change: Callable[..., object], values: Sequence[Any], together: int = CHUNK) -> None:
        """Run `change(session, hold, some)` for many items, in transactions that are short for others. Blocks."""
        for some in chunks(values, together):
            self.write_now(change, some)

    def write_now(self, change: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """Run `change(session, hold, …)` in a writing transaction. Blocks. Raises: LeaseLost, CatalogueUnavailable."""
        with self.parts.database.write() as session:
            return change(session, self.hold, *args, **kwargs)


def attempt_state(session: Session, parts: Services, row: Transfer, run: Traces | None) -> AttemptState:
    """Return what is known of an attempt whose steps are over; `run`: None if it did not come to one."""
    timeout, retries = _waits(row)
    return AttemptState(
        last=row.attempts >= parts.settings.max_attempts,
        fail_fast=row.fail_fast,
        machine_away=run is not None and run.machine_away,
        intent="intent" in row.notes,
        items_in_doubt=TransferKind(row.kind).itemised and in_doubt(session, row.id),
        shared=row.shared_run is not None,
        alone_next=run is not None and run.alone_next,
        patience=timedelta(seconds=timeout),
        may_wait=row.notes.get(WAITED, 0) < retries,
    )


def _waits(row: Transfer) -> tuple[float, int]:
    """Return how long (seconds) and how often a source may have a download wait."""
    timeout = retries = None
    if (url := row.request.get("url")) is not None:
        options = typed_options(url, row.request["protocol"], row.request["options"])
        timeout, retries = options.timeout, options.retries
    return READ_TIMEOUT if timeout is None else timeout, WAITS if retries is None else retries


_run: ContextVar[TransferRun] = ContextVar("transfer_run")


def current() -> TransferRun:
    """Return the transfer run of the flow run that calls."""
    return _run.get()


def make_current(run: TransferRun) -> None:
    """Have `current` return this one, in this task and those that it makes."""
    _run.set(run)
