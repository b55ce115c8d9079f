"""Members of one bundle on their way back, as a chunk of a batch: small ones together, the others one by one.

Each is compared with the sha256 that the catalogue has of it before its file gets a name. A damaged bundle costs the
members that are damaged, and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter

from datamanager.engine.attempt import Intent
from datamanager.engine.bulk.bulk_chunk import BulkEndpoints, BulkRules, Outcome
from datamanager.engine.bundles import recall
from datamanager.engine.single.staged_file import ReadyFile, Share
from datamanager.errors import ObjectUnknown
from datamanager.machines import VerifyPolicy
from datamanager.transports.port import Session
from flows.archive.members import MembersChunk
from flows.runtime.transfer_run import TransferRun
from models.archive import bundles
from models.archive import items as archive_items
from models.objects.bulk_claims import chunks
from models.objects.catalogue import Facts
from models.tables import TransferItem

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
        self._jobs[number] = replace(self._jobs[number], intent=known)

    def _stage_together(self, ends: BulkEndpoints[Session], group: Sequence[int], rules: BulkRules) -> list[Outcome]:
        bundle, _ = self._members[group[0]]
        items = [recall.RecallItem(n, self._members[n][1], self._jobs[n].target.place) for n in group]
        return recall.stage_small(ends, bundle, items, replace(rules, verify=VerifyPolicy.SHA256), self._run.control)

    def _stage_one(self, number: int) -> ReadyFile:
        bundle, member = self._members[number]
        return recall.stage_large(
            self._jobs[number], bundle, member, Share(self._run.control), self._remembering(number)
        )

    def _tell(self, results: Sequence[tuple[int, Facts]]) -> None:
        self._run.write_all(archive_items.commit_recalls, results)
