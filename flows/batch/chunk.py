"""One chunk of a batch, from its rows to their ends: moved, verified, recorded, named, committed, all in step.

Small files of two machines go together (`engine.bulk`), the others by the one-file engine. An item that fails for good
fails alone; one whose failure may pass stays QUEUED, and the chunk is done again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar

from datamanager.domain.states import TransferKind, Verified
from datamanager.engine.attempt import Attempt, Endpoint, Found, Intent
from datamanager.engine.bulk import bulk_publish, bulk_staging
from datamanager.engine.bulk.bulk_chunk import BulkEndpoints, BulkRules, Failed, Outcome, Staged
from datamanager.engine.bulk.bulk_removal import Removal, remove_sources
from datamanager.engine.control import Control
from datamanager.engine.single import staged_file
from datamanager.engine.single.endpoints import acquire_sessions
from datamanager.engine.single.source_removal import machine_time, remove_source
from datamanager.engine.single.staged_file import ReadyFile
from datamanager.errors import DataManagerError, InternalError, MachineUnavailable, ServiceError
from datamanager.transports.port import Session, Storage
from flows.batch.attempts import ItemAttempts
from flows.runtime.acting import acted_as
from flows.runtime.one_file import late_arrivals, refused_destinations, settle_places
from flows.runtime.retry import may_pass
from flows.runtime.transfer_run import TransferRun
from models.batches import results as batch_results
from models.objects.bulk_claims import chunks
from models.objects.catalogue import Facts
from models.tables import TransferItem

log = logging.getLogger(__name__)
T = TypeVar("T")

AT_ONCE = 4
"""Files of the one-file engine that are worked on at once."""
PACKED_FROM = 100
"""Files from which on a tar stream is worth starting a program for."""
Together = Callable[[Session, Sequence[Staged]], Sequence[DataManagerError | None]]
"""What is done with small files in one session: why it failed with each, None where it did not."""


class ItemsChunk:
    """The chunk's rows under way; `control` is its own. `errors`: what failed so far, by item number. One thread's."""

    within_one_machine = False
    """Whether small files go together also when both ends are one machine."""
    resends = True
    """Whether doing an item again also brings other bytes: else what is damaged stays so."""
    describes_all = False
    """Whether there is something to be said of every item (`_describe`), also where nothing is noted."""

    def __init__(self, run: TransferRun, rows: Sequence[TransferItem], control: Control | None = None) -> None:
        self._run = run
        self._control = control or run.control
        self._moving = run.row.kind == TransferKind.MOVE_MANY.value
        self._rows = {row.number: row for row in rows}
        self._attempts = ItemAttempts(run, self._rows)
        self._small: list[tuple[Attempt, list[Staged]]] = []
        self._ready: dict[int, ReadyFile] = {}
        self._named: dict[int, _Named] = {}
        self.errors: dict[int, DataManagerError] = {}
        self.bytes_done = 0
        """Bytes of the items that are where they are to be."""

    def perform(self) -> None:
        """Bring every item to its end, but for those whose failure may pass.

        Raises: one of such failures, when all others are done; LeaseLost, Cancelled and the like at once. Once a file
        may have its name, users' cancel and pause wait for the chunk's end.
        """
        control = self._control
        if any(row.notes.get("intent") for row in self._rows.values()):
            control.shield()
        else:
            control.unshield()
        try:
            self._perform()
        finally:
            control.unshield()

    def _perform(self) -> None:
        committed = [number for number, row in self._rows.items() if row.notes.get("committed")]
        for number in self._rows:
            if self.describes_all or not self._attempts.is_plain(number):
                self._trying(number, self._describe)
        fresh = [number for number in self._rows if number not in committed and number not in self.errors]
        self._settle_sources(fresh)
        self._stage_single(self._stage_small([number for number in fresh if number not in self.errors]))
        self._refuse_second_names()
        self._claim_links()
        self._publish()
        self._commit()
        if self._moving:
            self._remove_sources([*self._named, *committed])
        lasting = [(number, error) for number, error in self.errors.items() if not may_pass(error, resend=self.resends)]
        self._run.write_all(batch_results.fail_items, lasting)
        self._run.item_errors |= self.errors
        passing = [error for error in self.errors.values() if may_pass(error, resend=self.resends)]
        if passing:  # that a machine is away is raised first: the whole may wait for it
            raise next((error for error in passing if isinstance(error, MachineUnavailable)), passing[0])

    # --- what is to be done ------------------------------------------------------------------------------------------

    def _describe(self, number: int) -> None:
        """Make an item's attempt."""
        self._attempts[number]

    # --- bytes into partial files ------------------------------------------------------------------------------------

    def _stage_small(self, numbers: Sequence[int]) -> list[int]:
        """Stage the small files of each pair of machines together; return the numbers of those that go one by one."""
        rest: list[int] = []
        for (origin, target, _), group in _grouped(numbers, self._attempts.way):
            if origin == target and not self.within_one_machine:
                rest += group
                continue
            attempt = self._attempts[group[0]]
            try:
                with acquire_sessions(attempt) as (source, sink):
                    ends = BulkEndpoints(source, sink, attempt.origin.machine, attempt.target.machine)
                    outcomes = self._stage_together(ends, group, self._rules(attempt, group, ends))
            except DataManagerError as error:
                self._all_failed(group, error)
                continue
            except Exception as error:  # noqa: BLE001 - one item's, but nobody knows whose: each is tried alone
                _note_unforeseen(self._run, group, error)
                rest += group
                continue
            staged = [one for one in outcomes if isinstance(one, Staged)]
            self._small.append((attempt, staged))
            self.errors |= {one.number: one.error for one in outcomes if isinstance(one, Failed)}
            known = {one.number for one in staged} | self.errors.keys()
            rest += [number for number in group if number not in known]
        return rest

    def _stage_together(self, ends: BulkEndpoints[Session], group: Sequence[int], rules: BulkRules) -> list[Outcome]:
        """Stage the small ones of a group."""
        return bulk_staging.stage(ends, list(map(self._attempts.small_item, group)), rules, self._control)

    def _rules(self, attempt: Attempt, group: Sequence[int], ends: BulkEndpoints[Session]) -> BulkRules:
        """Return what holds for a group; `attempt` is that of any of them. For many, programs are started."""
        programs = [end.begin_many() for end in (ends.source, ends.target) if len(group) >= PACKED_FROM]
        noted = {number: self._attempts[number] for number in group if number in self._attempts}
        return BulkRules(
            self._run.transfer,
            self._run.hold.epoch,
            attempt.verify,
            attempt.overwrite,
            packed=programs[1:] == [False],
            ours={number: one.intent for number, one in noted.items() if one.intent is not None},
            known={number: one.known for number, one in noted.items()},
            clock=partial(machine_time, ends.source) if self._moving else None,
        )

    def _stage_single(self, numbers: Sequence[int]) -> None:
        def stage(number: int) -> None:
            self._ready[number] = self._stage_one(number)

        self._each(numbers, stage)

    def _stage_one(self, number: int) -> ReadyFile:
        return staged_file.stage(self._attempts[number], self._control)

    # --- names and catalogue -----------------------------------------------------------------------------------------

    def _settle_sources(self, numbers: Sequence[int]) -> None:
        """Look whether the files of a move are their objects' own, where that is not known."""
        if self._moving:
            failed = settle_places(self._run, [self._rows[number].object_id for number in numbers])
            self.errors |= {n: failed[self._rows[n].object_id] for n in numbers if self._rows[n].object_id in failed}

    def _refuse_second_names(self) -> None:
        """Fail the items whose destination is another one's file, under another name, or where no object may be."""
        destinations = self._destinations()
        machines = {number: self._attempts.machines(number)[1] for number in destinations}
        refused = refused_destinations(self._run, self._attempts, destinations, machines)
        self._drop(refused)
        self.errors |= refused

    def _destinations(self) -> dict[int, Staged | Found]:
        staged: dict[int, Staged | Found] = {one.number: one for _, some in self._small for one in some}
        return staged | {number: ready.found for number, ready in self._ready.items()}

    def _claim_links(self) -> None:
        """Hold the places that the destinations have in truth, where linked directories lead to them."""
        canonical = {number: one.canonical for number, one in self._destinations().items()}
        linked = {n: path for n, path in canonical.items() if path != self._rows[n].destination_place}
        if linked:
            self._drop(self._run.write_now(batch_results.claim_canonicals, linked))

    def _drop(self, numbers: Collection[int]) -> None:
        """Remove the partial files of items that are not to be published."""
        taken = set(numbers)
        for attempt, staged in self._small:
            self._discard_small(attempt, [one for one in staged if one.number in taken])
        self._small = [(attempt, [one for one in staged if one.number not in taken]) for attempt, staged in self._small]
        for number in taken & self._ready.keys():
            staged_file.discard(self._ready.pop(number))

    def _publish(self) -> None:
        """Record the intents, then give the names. The record is fenced: who lost the lease publishes nothing."""
        if self._attempts.overwrite:
            late = late_arrivals(self._run, self._attempts, self._destinations())
            self._drop(late)
            self.errors |= late
        intents = {one.number: one.intent for _, staged in self._small for one in staged}
        intents |= {number: ready.intent for number, ready in self._ready.items()}
        if not intents:
            return
        self._control.shield()

        def record(some: Sequence[tuple[int, Intent]]) -> None:
            for part in chunks(some, batch_results.COPIES):
                self._run.write_now(batch_results.record_intents, {number: intent.note() for number, intent in part})

        unrecorded = self._written(record, list(intents.items()))
        for attempt, staged in self._small:
            self._discard_small(attempt, [one for one in staged if one.number in unrecorded])
            self._publish_small(attempt, [one for one in staged if one.number not in unrecorded])
        for number in unrecorded & self._ready.keys():
            staged_file.discard(self._ready.pop(number))

        def publish(number: int) -> None:
            ready = staged_file.publish(self._ready[number], self._control)
            self._named[number] = _Named(ready.intent, ready.verified)

        self._each(list(self._ready), publish)

    def _publish_small(self, attempt: Attempt, staged: list[Staged]) -> None:
        publish = partial(bulk_publish.publish, overwrite=attempt.overwrite)
        for one in self._done_together(attempt.target, staged, publish):
            self._named[one.number] = _Named(one.intent, attempt.proof_level, one)

    def _commit(self) -> None:
        results = [(one, named.facts(self._attempts[one].target.storage)) for one, named in self._named.items()]
        for number in self._written(self._tell, results):
            del self._named[number]
        self.bytes_done = sum(named.intent.size for named in self._named.values())

    def _tell(self, results: Sequence[tuple[int, Facts]]) -> None:
        """Commit the files that have their names."""
        if self._moving:
            self._run.write_all(batch_results.commit_moves, results)
        else:
            self._run.write_all(batch_results.complete_copies, results, batch_results.COPIES)

    def _written(self, write: Callable[[Sequence[tuple[int, T]]], None], values: Sequence[tuple[int, T]]) -> set[int]:
        """Write something to the catalogue for items, by number; what nobody foresaw is the error of the item that it
        is raised for. Return the numbers of these."""
        try:
            write(values)
            return set()
        except DataManagerError:
            raise
        except Exception as error:  # noqa: BLE001 - one item's
            numbers = [number for number, _ in values]
            _note_unforeseen(self._run, numbers, error)
            if len(values) > 1:
                return set[int]().union(*(self._written(write, [value]) for value in values))
            self.errors |= dict.fromkeys(numbers, _unforeseen(error))
            return set(numbers)

    def _remove_sources(self, numbers: Sequence[int]) -> None:
        """End moves: the sources go, if they still are what was read."""
        gone: list[int] = []
        for attempt, staged in self._small:
            mine = [named.small for one in staged if (named := self._named.get(one.number)) and named.small]
            done = self._done_together(attempt.origin, mine, self._remove_small) if mine else []
            gone += [one.number for one in done]

        def remove(number: int) -> None:
            attempt, named = self._attempts[number], self._named.get(number)
            intent = named.intent if named else Intent(**self._rows[number].notes["intent"])
            remove_source(attempt.origin, intent, attempt.target, attempt.transfer, self._control.watch)
            gone.append(number)

        self._each([n for n in numbers if n not in self._named or self._named[n].small is None], remove)
        self._run.write_all(batch_results.end_committed, gone)

    def _remove_small(self, source: Session, staged: Sequence[Staged]) -> Sequence[DataManagerError | None]:
        removals = [
            Removal(one.source_path, one.intent, one.canonical, self._attempts[one.number].transfer) for one in staged
        ]
        return remove_sources(source, removals, self._control.watch)

    def _done_together(self, end: Endpoint, staged: list[Staged], act: Together) -> list[Staged]:
        """Do something with small files in one session; return those with which it went well."""
        try:
            with end.storage.session() as session:
                outcomes = act(session, staged)
        except DataManagerError as error:
            self._all_failed([one.number for one in staged], error)
            return []
        except Exception as error:  # noqa: BLE001 - one file's; what was done for the others is found done
            _note_unforeseen(self._run, [one.number for one in staged], error)
            if len(staged) > 1:
                return [done for one in staged for done in self._done_together(end, [one], act)]
            self.errors[staged[0].number] = _unforeseen(error)
            return []
        failures = {one.number: failure for one, failure in zip(staged, outcomes, strict=True) if failure is not None}
        self.errors |= failures
        return [one for one in staged if one.number not in failures]

    def _discard_small(self, attempt: Attempt, staged: list[Staged]) -> None:
        if staged:
            with attempt.target.storage.session() as sink:
                bulk_publish.discard(sink, staged)

    # --- failures ----------------------------------------------------------------------------------------------------

    def _each(self, numbers: Sequence[int], act: Callable[[int], None]) -> None:
        """Do something for each item, a few at once."""
        if numbers:
            with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="items") as pool:
                list(pool.map(lambda number: self._trying(number, act), numbers))
        self._control.check()

    def _trying(self, number: int, act: Callable[[int], None]) -> None:
        """Do something for an item; a failure is the item's own, unless the whole is to stop."""
        if (away := self._away(number)) is not None:
            self.errors[number] = away
            return
        try:
            act(number)
        except ServiceError:
            raise
        except DataManagerError as error:
            self._control.check()
            self.errors[number] = error
        except Exception as error:  # noqa: BLE001 - whatever it is: no item ends the batch
            self._control.check()
            _note_unforeseen(self._run, [number], error)
            self.errors[number] = _unforeseen(error)

    def _away(self, number: int) -> DataManagerError | None:
        """Return why an item need not be tried: a machine of its own was found away by another item just now."""
        machines = self._attempts.machines
        for other, error in list(self.errors.items()):
            if isinstance(error, MachineUnavailable) and machines(other) == machines(number):
                return error
        return None

    def _all_failed(self, numbers: Iterable[int], error: DataManagerError) -> None:
        if isinstance(error, ServiceError):
            raise error
        self._control.check()
        self.errors |= dict.fromkeys(numbers, error)


class _Named(NamedTuple):
    """An item whose file has its name; `small` when it went with others."""

    intent: Intent
    verified: Verified
    small: Staged | None = None

    def facts(self, storage: Storage) -> Facts:
        sha256 = self.intent.sha256
        checksum = f"sha256:{sha256}" if sha256 else None
        return Facts(self.intent.size, checksum, self.verified, self.intent.not_kept, acted_as(storage))


def _note_unforeseen(run: TransferRun, numbers: Sequence[int], error: Exception) -> None:
    log.error("transfer %s: internal error with items %s", run.transfer, list(numbers)[:10], exc_info=error)


def _unforeseen(error: Exception) -> InternalError:
    return InternalError(f"unexpected {type(error).__name__}")


def _grouped(numbers: Iterable[int], key: Callable[[int], Any]) -> Iterable[tuple[Any, list[int]]]:
    groups = dict[Any, list[int]]()
    for number in sorted(numbers):
        groups.setdefault(key(number), []).append(number)
    return sorted(groups.items())
