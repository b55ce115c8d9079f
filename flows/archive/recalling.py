"""Members of bundles on their way back, as chunks of a batch, once their bundles are staged from tape.

Each member is compared with the sha256 that the catalogue has of it before its file gets a name. A damaged bundle costs
the members that are damaged, and no others.
An archive's `stage_poll` says whether a bundle can be read; `stage_command` requests it, once a transfer. Until bundles
are staged the transfer waits in the queue, with no slot and no connection, and looks again after `stage_every`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from itertools import groupby
from operator import itemgetter

from datamanager.domain.location import Place
from datamanager.engine.attempt import Intent, Restart
from datamanager.engine.bulk.bulk_chunk import BulkEndpoints, BulkRules, Outcome
from datamanager.engine.bundles import recall
from datamanager.engine.path_confinement import confined
from datamanager.engine.single.staged_file import ReadyFile, Share
from datamanager.engine.single.transfer import Remember
from datamanager.errors import ObjectUnknown, RemoteFailure, Staging
from datamanager.machines import Machine, VerifyPolicy
from datamanager.transports.port import Session
from flows.batch.chunk import ItemsChunk
from flows.runtime.transfer_run import TransferRun
from models.archive import bundles
from models.archive import items as archive_items
from models.batches import results as batch_results
from models.objects.bulk_claims import chunks
from models.objects.catalogue import Facts
from models.tables import TransferItem
from models.transfers import queue

AT_ONCE = 2000
"""Members of one step."""


def plan(_: TransferRun, rows: Sequence[TransferItem]) -> list[list[int]]:
    """Say which items come back together, by their numbers: those of a bundle, in the order in which they lie there."""
    found = list[list[int]]()
    keyed = sorted((row.notes["bundle"], row.notes["offset"], row.number) for row in rows)
    for _bundle, members in groupby(keyed, key=itemgetter(0)):
        numbers = [number for *_, number in members]
        found += map(list, chunks(numbers, AT_ONCE))
    return found


class MembersChunk(ItemsChunk):
    """Files of a larger one (a bundle, an archive from outside). A damaged member costs itself, and no other."""

    within_one_machine = True
    resends = False
    describes_all = True

    def _remembering(self, number: int) -> Remember:
        """Return what records an item's restart marker."""

        def remember(marker: Restart) -> None:
            self._run.write_now(archive_items.note_restart, number, asdict(marker))

        return remember


def performing(
    run: TransferRun, numbers: Sequence[int], chunk: Callable[[TransferRun, Sequence[TransferItem]], MembersChunk]
) -> Callable[[], None]:
    """Return what brings out those of the items that are not done. It blocks."""

    def perform() -> None:
        rows = run.read(archive_items.items_among, run.hold, numbers)
        if rows:
            chunk(run, rows).perform()

    return perform


class RecallChunk(MembersChunk):
    """The members of one bundle under way."""

    def __init__(self, run: TransferRun, rows: Sequence[TransferItem]) -> None:
        super().__init__(run, rows)
        found = run.read(bundles.members_of, [row.object_id for row in rows])
        self._members = {row.number: found[row.object_id] for row in rows if row.object_id in found}

    def _describe(self, number: int) -> None:
        if number not in self._members:
            raise ObjectUnknown(f"the catalogue has no bundle with object {self._rows[number].object_id}")
        super()._describe(number)
        _, member = self._members[number]
        # what it will be is known before: a file at its place that is just this is accepted (`keep_source` left it)
        known = Intent(member.size, member.sha256, member.mtime)
        self._attempts[number] = replace(self._attempts[number], intent=known)

    def _stage_together(self, ends: BulkEndpoints[Session], group: Sequence[int], rules: BulkRules) -> list[Outcome]:
        bundle, _ = self._members[group[0]]
        items = [recall.RecallItem(n, self._members[n][1], self._attempts[n].target.place) for n in group]
        return recall.stage_small(ends, bundle, items, replace(rules, verify=VerifyPolicy.SHA256), self._run.control)

    def _stage_one(self, number: int) -> ReadyFile:
        bundle, member = self._members[number]
        return recall.stage_large(
            self._attempts[number], bundle, member, Share(self._run.control), self._remembering(number)
        )

    def _tell(self, results: Sequence[tuple[int, Facts]]) -> None:
        self._run.write_all(archive_items.commit_recalls, results)


def split(
    run: TransferRun, groups: Sequence[Sequence[int]], rows: Sequence[TransferItem]
) -> tuple[list[Sequence[int]], Staging | None]:
    """Return the groups of items whose bundles can be read now, and what the attempt ends with while there are others:
    these are requested, once. Blocks.

    Raises: RemoteFailure when a program can't be run, or refuses; what the transports raise.
    """
    by_number = {row.number: row for row in rows}
    online: dict[Place, bool] = {}
    here, again = list[Sequence[int]](), 0.0
    for group in groups:
        bundle = batch_results.source(by_number[group[0]])
        if bundle.machine not in run.parts.machines:
            here.append(group)  # its items fail alone
            continue
        machine = run.parts.machines[bundle.machine]
        if bundle not in online:
            online[bundle] = not machine.stage_poll or _is_online(run, machine, bundle)
        if online[bundle]:
            here.append(group)
        else:
            again = min(again or machine.stage_every, machine.stage_every)
    return here, Staging("the archive is staging bundles from tape", again=timedelta(seconds=again)) if again else None


def _is_online(run: TransferRun, machine: Machine, bundle: Place) -> bool:
    requested: Mapping[str, bool] = run.row.notes.get("staged", {})
    with run.storage(machine.name).session() as session:
        path = confined(session, machine, bundle.path)
        if session.programs.run(_words(machine.stage_poll, path), run.control.watch) == 0:
            return True
        if machine.stage_command and str(bundle) not in requested:
            status = session.programs.run(_words(machine.stage_command, path), run.control.watch)
            if status != 0:
                raise RemoteFailure(f"{machine.name}: {machine.stage_command[0]} ended with {status} for {bundle}")
            run.log.info("%s: requested %s", machine.name, bundle.path)
            requested = {**requested, str(bundle): True}
            run.write_now(queue.remember, staged=requested)
            run.row.notes = {**run.row.notes, "staged": requested}
    return False


def _words(words: Sequence[str], path: str) -> list[str]:
    return [word.replace("{path}", path) for word in words]
