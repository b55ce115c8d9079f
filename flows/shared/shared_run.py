"""The transfers of one shared flow run, from their leases to their ends: begun, watched, settled.

Each ends for itself. One that users stop, or whose lease is lost, drops out before its file gets its name. One whose
failure may pass, or is not known to be its own, returns to the queue, and goes alone the next time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import ParamSpec, TypeVar
from uuid import UUID

from sqlalchemy.orm import Session

from datamanager.domain.states import Phase, TransferKind
from datamanager.engine.attempt import Attempt, KnownFile
from datamanager.engine.control import USER_STOPS, Control
from datamanager.errors import CatalogueUnavailable, DataManagerError, InternalError, LeaseLost, MachineUnavailable
from flows.runtime.lifecycle import settle_failure
from flows.runtime.monitor import NOTE_EVERY, PATIENCE
from flows.runtime.progress import SHOW_AFTER, ProgressArtifact
from flows.runtime.reachability import note_unreachable
from flows.runtime.services import Services, SharedGroup
from flows.runtime.tasks import PAUSES
from flows.runtime.transfer_run import TransferRun
from models.access.permission import NEEDS, kept_of, reach_of
from models.database import write
from models.objects.bulk_claims import chunks
from models.tables import Transfer
from models.transfers import outcomes, queue, shared_outcomes
from models.transfers.cancel_pause import note_partial
from models.transfers.items import KNOWN
from models.transfers.lookup import request_of
from models.transfers.queue import TransferLease

P = ParamSpec("P")
T = TypeVar("T")
V = TypeVar("V")

PATIENT_LOOKS = 2
"""Looks of the watch until one that users stop is let go by itself."""
SETTLED_AT_ONCE = 50
"""Transfers that went wrong in one transaction, which is to be short."""

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class SharedTransfer:
    """One of the transfers; `number` is its place in the run. It is open until it has ended or left the run."""

    number: int
    hold: TransferLease
    row: Transfer
    attempt: Attempt
    control: Control
    """What stops this one."""
    error: DataManagerError | None = None
    """Why it is to leave."""
    alone_next: bool = False
    machine_away: bool = False
    leaves_partial: bool = False
    looks: int = 0
    """How often the watch has found that it is to stop."""
    deferred: bool = False
    """Its file is not for this way: it leaves without an error."""

    def fail(self, error: DataManagerError, *, alone_next: bool = False) -> None:
        """Note why it is to leave; the first reason counts."""
        if self.error is None:
            self.error, self.alone_next = error, alone_next


class SharedRun:
    """What a flow run does with its transfers. Belongs to the run's task; the work is done in its threads."""

    def __init__(self, parts: Services, group: SharedGroup, flow_run: UUID) -> None:
        self.parts = parts
        self.flow_run = flow_run
        self.control = group.control
        patient = sorted(group.taken, key=lambda one: one[1].fail_fast)
        # one of those for which nobody waits, so that what it learns of their machines holds for all
        self.lead = TransferRun(parts, *patient[0], group.control)
        """What the work of all together is done as: it is never written to."""
        self.log = self.lead.log
        self.moving = self.lead.row.kind == TransferKind.MOVE.value
        self.open = {number: self._member(number, *one) for number, one in enumerate(group.taken)}
        """The transfers that have not ended or left, by number."""
        self.all = list(self.open.values())

    def _member(self, number: int, hold: TransferLease, row: Transfer) -> SharedTransfer:
        request, destination = request_of(row), self.lead.end_at(outcomes.destination(row))
        attempt = Attempt(
            transfer=hold.transfer,
            epoch=hold.epoch,
            kind=TransferKind(row.kind),
            source=self.lead.end_at(outcomes.source(row)),
            destination=destination,
            overwrite=bool(getattr(request, "overwrite", False)),
            verify=getattr(request, "verify", None) or destination.machine.verify,
            known=KnownFile(**row.notes.get(KNOWN, {})),
        )
        member = SharedTransfer(number, hold, row, attempt, self.parts.running.get(hold) or Control())
        grant, needs = kept_of(row.grant), NEEDS[attempt.kind]
        ends = (attempt.origin, needs.source), (attempt.target, needs.destination)
        # what a person's scopes name of a machine holds for no other member
        member.deferred = any(reach_of(grant, end.machine.name, row.group, actions) for end, actions in ends)
        return member

    # --- the catalogue -----------------------------------------------------------------------------------------------

    def write_now(self, change: Callable[..., T], *args: object) -> T:
        """Run `change(session, …)` in a writing transaction; again where the catalogue is away for a moment. Blocks.

        Raises: CatalogueUnavailable, and what the control was stopped with.
        """
        for pause in PAUSES:
            try:
                return self._write_once(change, *args)
            except CatalogueUnavailable:
                until = time.monotonic() + pause
                while time.monotonic() < until:
                    self.control.check()
                    time.sleep(0.1)
        return self._write_once(change, *args)

    def _write_once(self, change: Callable[..., T], *args: object) -> T:
        with self.parts.database.write() as session:
            return change(session, *args)

    def write_each(
        self,
        many: Callable[[Session, Mapping[TransferLease, V]], set[TransferLease]],
        one: Callable[[Session, TransferLease, V], object],
        values: Mapping[int, V],
    ) -> list[int]:
        """Tell the catalogue something of members by one transaction, or, if that can't be, of each by its own: what
        goes wrong then is the member's. Return of which it was told; those that are not held any more have left.
        """
        if not values:
            return []
        by_hold = {self.all[number].hold: value for number, value in values.items()}
        try:
            held = self.write_now(many, by_hold)
        except DataManagerError as error:
            if not isinstance(error, InternalError):
                raise
            held = self._one_by_one(one, by_hold, error)
        except Exception as error:  # noqa: BLE001 - one member's, but nobody knows whose
            held = self._one_by_one(one, by_hold, error)
        self.lose(number for number in values if self.all[number].hold not in held)
        return [number for number in values if number in self.open and self.open[number].error is None]

    def _one_by_one(
        self,
        one: Callable[[Session, TransferLease, V], object],
        values: Mapping[TransferLease, V],
        why: Exception,
    ) -> set[TransferLease]:
        self.log.error("not recorded together: %r", why)
        log.error("shared run %s: not recorded together", self.flow_run, exc_info=why)
        members, held = {member.hold: member for member in self.all}, set(values)
        for hold, value in values.items():
            try:
                self.write_now(one, hold, value)
            except LeaseLost:
                held.discard(hold)
            except CatalogueUnavailable:
                raise
            except DataManagerError as error:
                members[hold].fail(error)
            except Exception as error:
                log.exception("transfer %s: internal error", hold.transfer)
                members[hold].fail(InternalError(f"unexpected {type(error).__name__}"))
        return held

    # --- members -----------------------------------------------------------------------------------------------------

    def working(self) -> list[SharedTransfer]:
        """Return the members with which nothing went wrong so far."""
        return [member for member in list(self.open.values()) if member.error is None and not member.deferred]

    def drop_stopped(self) -> None:
        """Note the members that are to stop: the run goes on without them."""
        for member in self.working():
            if (reason := member.control.stopping) is not None:
                member.fail(reason)

    def lose(self, numbers: Iterable[int]) -> None:
        """Note that members' leases are lost: somebody else has them, or ended them."""
        for number in list(numbers):
            self.all[number].fail(LeaseLost(f"transfer {self.all[number].hold.transfer} is no longer held"))

    def ended(self, numbers: Iterable[int]) -> None:
        """Note that members have ended well, and notify who waits for them."""
        for number in numbers:
            self._leave(self.all[number])

    def fail_all(self, error: DataManagerError) -> None:
        """Note what went wrong with all that are left: whose it is is not known."""
        for member in self.working():
            member.fail(error, alone_next=True)

    def _leave(self, member: SharedTransfer) -> None:
        self.open.pop(member.number, None)
        self.parts.running.pop(member.hold, None)
        self.parts.notify(f"ended:{member.hold.transfer}")

    # --- from its begin to its end -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Note that the run has begun; those that are lost, or are to stop, have left. Blocks."""
        holds = [member.hold for member in self.open.values()]
        held = self.write_now(shared_outcomes.begin, holds, self.flow_run)
        self.lose(member.number for member in self.open.values() if member.hold not in held)
        self.control.enter(Phase.TRANSFER, sum(member.row.bytes_total or 0 for member in self.working()))
        self._look()
        self.drop_stopped()

    @asynccontextmanager
    async def watched(self) -> AsyncIterator[None]:
        """Watch the work while the body runs: limits, what users stop, a bar if it takes long."""
        watching = asyncio.create_task(self._watch(), name=f"watch {self.flow_run}")
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def _watch(self) -> None:
        artifact = ProgressArtifact()
        while True:
            await asyncio.sleep(NOTE_EVERY)
            with suppress(CatalogueUnavailable):
                await asyncio.to_thread(self._look)
                await self._let_go()
            if self.control.stopping is not None:
                await asyncio.sleep(PATIENCE)
                if self.control.stopping is not None:
                    self.control.abort()
            elif self.lead.seconds > SHOW_AFTER:
                await artifact.show(self.control, self.lead.seconds)

    def _look(self) -> None:
        """Read which members are to stop, and apply the limits in force."""
        self.note_stops()
        self.lead.apply_limits()

    def note_stops(self) -> None:
        """Read which members users, or their deadlines, want to stop. Blocks. Raises: CatalogueUnavailable."""
        members = {member.hold: member for member in list(self.open.values())}
        for hold, reason in self.lead.read(shared_outcomes.stops, list(members)).items():
            members[hold].control.stop(reason)

    async def _let_go(self) -> None:
        """End those that users have stopped for a while: they need not wait for the bytes of the others, or for a
        machine that is silent. What may have its name by now comes to its own end.
        """
        stopped = [one for one in self.working() if isinstance(one.control.stopping, USER_STOPS)]
        for member in stopped:
            member.looks += 1
        waiting = [member for member in stopped if member.looks >= PATIENT_LOOKS]
        for some in chunks(waiting, SETTLED_AT_ONCE):
            for member, reason in await write(self.parts.database, self._end_stopped, some):
                member.fail(reason)  # the work goes on without it
                self._leave(member)

    def _end_stopped(
        self, session: Session, members: Sequence[SharedTransfer]
    ) -> list[tuple[SharedTransfer, DataManagerError]]:
        """End members that are to stop and whose intents are not recorded: they can't be any more then. Return them."""
        ended = list[tuple[SharedTransfer, DataManagerError]]()
        for member in members:
            reason = member.control.stopping
            with suppress(LeaseLost):
                if reason is not None and not queue.held(session, member.hold, lock=True).past_commit_point:
                    member.leaves_partial = True
                    settle_failure(session, self.parts, member.hold, reason, member)
                    ended.append((member, reason))
        return ended

    async def threaded(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do blocking work in a thread; when the mover stops, it is stopped and waited for."""
        thread = asyncio.ensure_future(asyncio.to_thread(call, *args, **kwargs))
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            self.control.stop(InternalError("the mover stops"))
            await asyncio.wait([thread])
            raise

    async def settle(self) -> None:
        """Record what went wrong, and let those leave with which it did."""
        leaving = [member for member in self.open.values() if member.error is not None or member.deferred]
        if any(isinstance(member.error, MachineUnavailable) for member in leaving):
            with suppress(CatalogueUnavailable):
                await note_unreachable(self.lead)
        for some in chunks(leaving, SETTLED_AT_ONCE):
            try:
                await write(self.parts.database, self._settle, some)
            except CatalogueUnavailable:  # their leases run out, and a mover takes them again
                log.warning("shared run %s: the results of %d can't be recorded", self.flow_run, len(some))
            for member in some:
                self._leave(member)

    def _settle(self, session: Session, members: Sequence[SharedTransfer]) -> None:
        for member in members:
            error = member.error
            member.machine_away = self.lead.machine_away and not member.row.fail_fast
            member.machine_away &= isinstance(error, MachineUnavailable)
            with suppress(LeaseLost):
                if isinstance(error, LeaseLost):
                    note_partial(session, member.hold.transfer)
                elif error is None:
                    queue.requeue(session, member.hold)  # it counts as an attempt, so that it goes alone
                else:
                    settle_failure(session, self.parts, member.hold, error, member)
