"""One bundle, from its items' rows to their ends: sent, verified, recorded, named, committed, sources removed.

An object that can't be archived fails alone, and the bundle is made without it. Until the commit every object is ACTIVE
with its file; from then on it is ARCHIVED, and only its source has to go.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from uuid import UUID

from datamanager.domain.archive_requests import ArchiveTerms
from datamanager.domain.bundle_model import Group, Manifest, Member, Pack, VerifyLevel, WantedMember
from datamanager.domain.location import Place
from datamanager.domain.states import BundleStatus, Phase
from datamanager.engine.attempt import Intent, Restart
from datamanager.engine.bundles import bundle_upload
from datamanager.engine.bundles.bundle_content import ArchiveAttempt
from datamanager.engine.bundles.member_files import remove_sources
from datamanager.engine.control import Control
from datamanager.engine.single.staged_file import Share
from datamanager.errors import DataManagerError, InternalError, LeaseLost, ServiceError
from flows.runtime.one_file import settle_places
from flows.runtime.retry import may_pass
from flows.runtime.transfer_run import TransferRun
from models.archive import bundles
from models.archive import items as archive_items
from models.batches import results as batch_results
from models.objects.bulk_claims import chunks
from models.tables import Bundle, TransferItem

log = logging.getLogger(__name__)

TOGETHER = 2000
"""Objects of one bundle at most: they become ARCHIVED in one transaction, which others wait for."""


def plan(run: TransferRun, rows: Sequence[TransferItem]) -> list[list[int]]:
    """Say which items go together into a bundle, by their numbers: first those that an earlier attempt had begun."""
    terms, begun = terms_of(run), dict[str, list[int]]()
    fresh: dict[str, list[WantedMember]] = {}
    numbers = {row.object_id: row.number for row in rows}
    alone: list[list[int]] = []
    for row in rows:
        if "bundle" in row.notes:
            begun.setdefault(row.notes["bundle"], []).append(row.number)
        elif row.size is None:
            alone.append([row.number])  # nobody knows whether it fits
        else:
            wanted = WantedMember(row.object_id, batch_results.source(row), row.size)
            fresh.setdefault(row.destination_machine, []).append(wanted)
    found = [*begun.values()]
    for wanted_there in fresh.values():
        groups = Group.each(wanted_there, run.parts.settings.bundle_size, alone=terms.pack == "none")
        found += [
            [numbers[one.uuid] for one in members] for group in groups for members in chunks(group.wanted, TOGETHER)
        ]
    return found + alone


def terms_of(run: TransferRun) -> ArchiveTerms:
    """Return the request. Raises: InternalError when this is no archive."""
    if not isinstance(run.request, ArchiveTerms):
        raise InternalError(f"transfer {run.transfer} is not an archive")
    return run.request


class BundleWork:
    """The items of one bundle under way, by their numbers. `errors` has what failed so far. Blocks; one thread's.

    `whole`: there is no other bundle, so its progress and phases are the transfer's.
    """

    def __init__(self, run: TransferRun, numbers: Sequence[int], *, whole: bool) -> None:
        self._run = run
        self._terms = terms_of(run)
        self._numbers = numbers
        self._control: Control = run.control if whole else Share(run.control)
        self._bundle: UUID | None = None
        self.errors: dict[int, DataManagerError] = {}

    def perform(self) -> None:
        """Bring every item to its end, but for those whose failure may pass.

        Raises: such a failure; LeaseLost, Cancelled and the like at once. Once the bundle may have its name, users'
        cancel and pause wait for its end.
        """
        rows = self._rows()
        to_make = [row for row in rows if not row.notes.get("committed")]
        try:
            if len(to_make) < len(rows):
                self._run.control.shield()
            if to_make:
                self._make(to_make)
            if not self._terms.keep_source:
                self._remove_sources()
        finally:
            self._run.control.unshield()
            self._run.item_errors |= self.errors
        passing = [error for error in self.errors.values() if _passes(error)]
        if passing:
            raise passing[0]

    # --- until the commit --------------------------------------------------------------------------------------------

    def _make(self, rows: Sequence[TransferItem]) -> None:
        try:
            self._archive(rows)
        except (ServiceError, LeaseLost):
            raise
        except DataManagerError as error:
            self._run.control.check()
            if _passes(error):
                raise
            self._fail({row: error for row in rows if row.number not in self.errors})
            self._abandon()
        except Exception as error:  # one member's, but nobody knows whose: both halves are tried
            self._run.control.check()
            log.exception("transfer %s: internal error with a bundle", self._run.transfer)
            self._abandon()
            left = [row for row in rows if row.number not in self.errors]
            if len(left) == 1:
                self._fail({left[0]: InternalError(f"unexpected {type(error).__name__}")})
                return
            for half in (left[: len(left) // 2], left[len(left) // 2 :]):
                if half:
                    self._run.control.unshield()
                    self._make(half)

    def _archive(self, rows: Sequence[TransferItem]) -> None:
        bundle = self._begun(rows) or self._begin(rows)
        self._bundle = bundle.id
        if "intent" in bundle.notes:
            self._run.control.shield()  # it may have its name: this attempt looks first
        attempt, by_object = self._attempt(bundle, rows), {row.object_id: row for row in rows}

        def remember(marker: Restart) -> None:
            self._run.write_now(bundles.note_restart, bundle.id, asdict(marker))

        if not self._terms.keep_source:
            unsettled = settle_places(self._run, by_object)
            self._fail({by_object[uuid]: error for uuid, error in unsettled.items()})
            if unsettled:
                attempt = replace(attempt, wanted=tuple(one for one in attempt.wanted if one.uuid not in unsettled))
        staged = bundle_upload.stage(attempt, self._control, remember)
        self._fail({by_object[uuid]: error for uuid, error in staged.failed.items()})
        ready = staged.ready
        if ready is None:
            self._abandon()
            return
        self._control.enter(Phase.PUBLISH)
        self._run.control.shield()
        if not ready.published:  # the record is fenced: who lost the lease publishes nothing
            self._run.write_now(bundles.record_intent, bundle.id, asdict(ready.intent))
        bundle_upload.publish(ready)
        self._control.enter(Phase.COMMIT)
        self._run.write_now(archive_items.commit_archive, ready.manifest, keep_source=self._terms.keep_source)
        self._run.log.info("%s: %d objects", bundle.place, len(ready.manifest.members))

    def _begun(self, rows: Sequence[TransferItem]) -> Bundle | None:
        """Return the bundle that an earlier try or attempt has begun for these items."""
        known, *others = {archive_items.bundle_in(row) for row in rows}
        if known is None or others:
            return None
        with self._run.parts.database.read() as session:
            bundle = session.get(Bundle, known)
        return bundle if bundle is not None and bundle.status == BundleStatus.OPEN.value else None

    def _begin(self, rows: Sequence[TransferItem]) -> Bundle:
        pack = Pack.NONE if self._terms.pack == "none" else Pack.TAR_ZST if self._terms.compress == "zstd" else Pack.TAR
        machine = self._run.parts.machines[rows[0].destination_machine]
        numbers = [row.number for row in rows]
        return self._run.write_now(archive_items.begin_bundle, numbers, machine, pack, VerifyLevel(self._terms.verify))

    def _abandon(self) -> None:
        """Give the bundle up, if it was begun; a mover removes what there is of it (`flows.cleanup.leftovers`)."""
        if self._bundle is not None:
            self._run.write_now(archive_items.abandon_bundle, self._bundle)

    def _attempt(self, bundle: Bundle, rows: Sequence[TransferItem]) -> ArchiveAttempt:
        run, origin = self._run, self._run.source_at(batch_results.source(rows[0]))
        intent, restart = bundle.notes.get("intent"), bundle.notes.get("restart")
        return ArchiveAttempt(
            transfer=run.transfer,
            epoch=run.hold.epoch,
            bundle=bundle.id,
            pack=Pack(bundle.pack),
            level=VerifyLevel(bundle.level),
            machine=origin.machine,
            storage=origin.storage,
            wanted=tuple(WantedMember(row.object_id, batch_results.source(row), row.size or 0) for row in rows),
            destination=run.end_at(Place(bundle.machine, bundle.place)),
            made_by=run.parts.owner,
            intent=Intent(**intent) if intent else None,
            restart=Restart(**restart) if restart else None,
        )

    # --- after it ----------------------------------------------------------------------------------------------------

    def _remove_sources(self) -> None:
        """Remove the files of what is archived, and end these items."""
        rows = [row for row in self._rows() if row.notes.get("committed")]
        if not rows:
            return
        self._control.enter(Phase.CLEANUP)
        found = self._run.read(bundles.members_of, [row.object_id for row in rows])
        gone: list[int] = []
        failed: dict[TransferItem, DataManagerError] = {}
        for bundle_id in {bundle.uuid for bundle, _ in found.values()}:
            mine = [row for row in rows if found[row.object_id][0].uuid == bundle_id]
            with self._run.parts.database.read() as session:
                bundle = session.get_one(Bundle, bundle_id)
            members = [found[row.object_id][1] for row in mine]
            left = remove_sources(self._attempt(bundle, mine), _manifest(bundle, members), self._run.control.watch)
            gone += [row.number for row in mine if row.object_id not in left]
            failed |= {row: left[row.object_id] for row in mine if row.object_id in left}
        self._run.write_all(batch_results.end_committed, gone)
        self._fail(failed)

    # --- rows --------------------------------------------------------------------------------------------------------

    def _rows(self) -> list[TransferItem]:
        return self._run.read(archive_items.items_among, self._run.hold, self._numbers)

    def _fail(self, failed: Mapping[TransferItem, DataManagerError]) -> None:
        errors = {row.number: error for row, error in failed.items()}
        self.errors |= errors
        self._run.write_all(
            batch_results.fail_items, [(number, error) for number, error in errors.items() if not _passes(error)]
        )


def _passes(error: DataManagerError) -> bool:
    return may_pass(error, resend=False)  # the engine has sent damaged bytes again already


def _manifest(row: Bundle, members: Sequence[Member]) -> Manifest:
    """Return what is needed of a manifest to remove the sources of some members."""
    return Manifest(
        bundle=bundles.bundle_of(row),
        made_at=row.created,
        made_by="",
        transfer=row.transfer_id,
        level=VerifyLevel(row.level),
        stream_size=0,
        members=tuple(members),
    )
