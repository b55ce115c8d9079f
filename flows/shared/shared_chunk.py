"""The work of a shared run, step by step for all of its transfers: staged and verified, published, committed; of moves
the sources removed. (docs/transfer-protocol.md; `engine.bulk` does it to many files at once)

All of it blocks. What goes wrong with one transfer is noted there (`SharedTransfer.fail`), and the others go on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import groupby
from typing import Any

from sqlalchemy.orm import Session as OrmSession

from datamanager.engine.attempt import Attempt
from datamanager.engine.bulk import bulk_publish, bulk_staging
from datamanager.engine.bulk.bulk_chunk import BulkEndpoints, BulkRules, Failed, SmallItem, Staged
from datamanager.engine.bulk.bulk_removal import Removal, remove_sources
from datamanager.engine.control import unwrapped
from datamanager.engine.single.endpoints import acquire_sessions
from datamanager.engine.single.source_removal import machine_time
from datamanager.errors import DataManagerError, InternalError, ServiceError, TransportError
from datamanager.transports.port import Session, Storage
from flows.batch.chunk import PACKED_FROM
from flows.runtime.acting import acted_as
from flows.runtime.one_file import late_arrivals, refused_destinations
from flows.shared.shared_run import SharedRun, SharedTransfer
from models.objects.catalogue import Facts
from models.transfers import outcomes, queue, shared_outcomes
from models.transfers.queue import TransferLease

log = logging.getLogger(__name__)


@dataclass(slots=True)
class SharedChunk:
    """The transfers of a run under way; `staged` are those with a partial file, by number."""

    run: SharedRun
    staged: dict[int, Staged] = field(default_factory=dict)
    published: dict[int, Staged] = field(default_factory=dict)

    def stage(self) -> None:
        """Bring the bytes into partial files beside the destinations, and verify them."""
        for members in _alike(self.run.working()):
            first = members[0].attempt
            for member in members:
                member.leaves_partial = True
            with self._noting(members):
                self._stage(first, members)
        self._drop_stopped()
        attempts = self._attempts()
        machines = {number: attempt.target.machine.name for number, attempt in attempts.items()}
        self._refuse(refused_destinations(self.run.lead, attempts, self.staged, machines))
        self._claim_links()

    def publish(self) -> None:
        """Record the intents, then give the names. The record is fenced: what is not held any more gets none."""
        run = self.run
        self._refuse(late_arrivals(run.lead, self._attempts(), self.staged))
        run.control.shield()
        run.note_stops()
        self._drop_stopped()  # what is to stop from here on may have its name: it comes to its end
        intents = {number: asdict(one.intent) for number, one in self.staged.items()}
        recorded = run.write_each(shared_outcomes.record_intents, _remember, intents)
        self._drop([number for number in self.staged if number not in recorded])
        for members in _alike([run.all[number] for number in self.staged]):
            target, overwrite = members[0].attempt.target, members[0].attempt.overwrite
            act = partial(bulk_publish.publish, overwrite=overwrite)
            self.published |= self._together(target.storage, members, self.staged, act)
        for number in self.published:
            run.all[number].leaves_partial = False

    def commit(self) -> None:
        """Commit what has its name to the catalogue; copies have ended then."""
        run, facts = self.run, {number: self._facts(number) for number in self.published}
        if run.moving:
            run.write_each(shared_outcomes.commit_moves, outcomes.commit_move, facts)
        else:
            run.ended(run.write_each(shared_outcomes.complete_copies, outcomes.complete_copy, facts))

    def remove_sources(self) -> None:
        """End moves: their sources go, if they still are what was read."""
        run = self.run
        members = [run.all[number] for number in self.published if run.all[number].error is None]
        if not members:
            return

        def remove(source: Session, staged: Sequence[Staged]) -> Sequence[DataManagerError | None]:
            removals = [
                Removal(one.source_path, one.intent, one.canonical, run.all[one.number].hold.transfer) for one in staged
            ]
            return remove_sources(source, removals, run.control.watch)

        for member in members:
            member.leaves_partial = True  # it may be aside
        gone = self._together(members[0].attempt.origin.storage, members, self.published, remove)
        run.ended(run.write_each(_finish_moves, _finish_move, dict.fromkeys(gone)))

    def abandon(self) -> None:
        """Remove the partial files of a run that ends before they got their names, as far as can be."""
        with suppress(TransportError):
            for members in _alike([self.run.all[number] for number in self.staged]):
                with unwrapped(members[0].attempt.target.storage).session() as sink:
                    bulk_publish.discard(sink, [self.staged[one.number] for one in members])
                for member in members:
                    member.leaves_partial = False

    # --- inside ------------------------------------------------------------------------------------------------------

    def _stage(self, first: Attempt, members: Sequence[SharedTransfer]) -> None:
        run = self.run
        items = [SmallItem(one.number, one.attempt.origin.place, one.attempt.target.place) for one in members]
        with acquire_sessions(first) as (source, sink):
            if source is sink:  # a machine that allows one connection: it can't be read and written at once
                for member in members:
                    member.deferred, member.leaves_partial = True, False
                return
            rules = BulkRules(
                first.transfer,
                first.epoch,
                first.verify,
                first.overwrite,
                packed=len(members) >= PACKED_FROM,
                known={one.number: one.attempt.known for one in members},
                clock=partial(machine_time, source) if run.moving else None,
                keys={one.number: (one.hold.transfer, one.hold.epoch) for one in members},
            )
            ends = BulkEndpoints(source, sink, first.origin.machine, first.target.machine)
            found = bulk_staging.stage(ends, items, rules, run.control)
        for member, outcome in zip(members, found, strict=True):
            member.leaves_partial = isinstance(outcome, Staged)
            if isinstance(outcome, Staged):
                self.staged[member.number] = outcome
            elif isinstance(outcome, Failed):
                member.fail(outcome.error)
            else:
                member.deferred = True

    def _attempts(self) -> dict[int, Attempt]:
        return {number: self.run.all[number].attempt for number in self.staged}

    def _claim_links(self) -> None:
        """Hold the places that the destinations have in truth, where linked directories lead to them."""
        members = [self.run.all[number] for number in self.staged]
        linked = {
            one.hold: path
            for one in members
            if (path := self.staged[one.number].canonical) != one.row.destination_place
        }
        if linked:
            refused = self.run.write_now(shared_outcomes.claim_canonicals, linked)
            self._refuse({one.number: refused[one.hold] for one in members if one.hold in refused})

    def _drop_stopped(self) -> None:
        """Drop what is to stop, and what the watch has let go meanwhile."""
        self.run.drop_stopped()
        self._drop([number for number in self.staged if self.run.all[number].error is not None])

    def _refuse(self, errors: Mapping[int, DataManagerError]) -> None:
        for number, error in errors.items():
            self.run.all[number].fail(error)
        self._drop(errors)

    def _drop(self, numbers: Collection[int]) -> None:
        """Remove the partial files of transfers that are not to be published."""
        dropped = {number: self.staged.pop(number) for number in numbers if number in self.staged}
        if not dropped:
            return
        members = [self.run.all[number] for number in dropped]
        with self._noting(members), members[0].attempt.target.storage.session() as sink:
            bulk_publish.discard(sink, list(dropped.values()))
            for member in members:
                member.leaves_partial = False

    def _together(
        self,
        storage: Storage,
        members: Sequence[SharedTransfer],
        staged: Mapping[int, Staged],
        act: Callable[[Session, list[Staged]], Sequence[DataManagerError | None]],
    ) -> dict[int, Staged]:
        """Do something with the files of members in one session; return those with which it went well."""
        with self._noting(members), storage.session() as session:
            found = act(session, [staged[member.number] for member in members])
            for member, error in zip(members, found, strict=True):
                if error is not None:
                    member.fail(error)
        return {one.number: staged[one.number] for one in members if one.error is None}

    @contextmanager
    def _noting(self, members: Sequence[SharedTransfer]) -> Iterator[None]:
        """Note what is raised as the members', one by one unknown whose. Raises: what the whole run is to stop with."""
        try:
            yield
        except ServiceError:
            raise
        except DataManagerError as error:
            self.run.control.check()
            self.run.log.warning("%s: %s", error.code, error.detail)
            for member in members:
                member.fail(error, alone_next=True)
        except Exception as error:
            self.run.control.check()
            log.exception("shared run %s: internal error", self.run.flow_run)
            for member in members:
                member.fail(InternalError(f"unexpected {type(error).__name__}"), alone_next=True)

    def _facts(self, number: int) -> Facts:
        intent, attempt = self.published[number].intent, self.run.all[number].attempt
        checksum = f"sha256:{intent.sha256}" if intent.sha256 else None
        return Facts(intent.size, checksum, attempt.proof_level, intent.not_kept, acted_as(attempt.target.storage))


def _alike(members: Sequence[SharedTransfer]) -> list[list[SharedTransfer]]:
    """Return the members by what holds for all of a chunk: how it is verified, and whether files are replaced."""

    def rules(member: SharedTransfer) -> tuple[str, bool]:
        return member.attempt.verify.value, member.attempt.overwrite

    return [list(some) for _, some in groupby(sorted(members, key=rules), rules)]


def _remember(session: OrmSession, hold: TransferLease, intent: Mapping[str, Any]) -> None:
    queue.remember(session, hold, intent=dict(intent))


def _finish_moves(session: OrmSession, gone: Mapping[TransferLease, None]) -> set[TransferLease]:
    return shared_outcomes.finish_moves(session, list(gone))


def _finish_move(session: OrmSession, hold: TransferLease, _: None) -> None:
    outcomes.finish_move(session, hold)
