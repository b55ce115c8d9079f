"""Members out of their archive, into partial files beside their destinations: many small ones together, with few round
trips (`engine.bulk`), or one large one (`engine.single`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datamanager.domain.location import Place
from datamanager.engine.attempt import Attempt, Proof
from datamanager.engine.bulk import bulk_staging
from datamanager.engine.bulk.bulk_chunk import SMALL, BulkEndpoints, BulkRules, Deferred, Outcome, SmallItem
from datamanager.engine.control import Control
from datamanager.engine.extracting.archive_member import Packed
from datamanager.engine.extracting.member_content import ExtractedContent, StoredArchive, pieces
from datamanager.engine.single.staged_file import ReadyFile, stage_content
from datamanager.engine.single.transfer import Remember
from datamanager.transports.port import Session


@dataclass(frozen=True, slots=True)
class ExtractItem:
    """A member to extract; `number` is the caller's, `source` the place that stands for it in the archive."""

    number: int
    member: Packed
    source: Place
    destination: Place


def stage_small(
    ends: BulkEndpoints[Session],
    archive: StoredArchive,
    items: Sequence[ExtractItem],
    rules: BulkRules,
    control: Control,
) -> list[Outcome]:
    """Bring the items' bytes into partial files beside their destinations and verify them; see `bulk.run.stage`.
    Members with many stored bytes are for later, however few they are said to become: all of them would be in memory.

    `ends` are two sessions of the machine on which the archive lies and the members are to lie. Raises: SourceChanged
    (the archive changed), what breaks a connection and what `control` raises.
    """
    fit = [item for item in items if item.member.stored <= SMALL]
    members = pieces(ends.source, ends.origin, archive, {item.source: item.member for item in fit})
    small = [SmallItem(item.number, item.source, item.destination) for item in fit]
    outcomes = bulk_staging.stage(
        BulkEndpoints(members, ends.target, ends.origin, ends.destination), small, rules, control
    )
    return outcomes + [Deferred(item.number) for item in items if item.member.stored > SMALL]


def stage_large(
    job: Attempt, archive: StoredArchive, member: Packed, control: Control, remember: Remember
) -> ReadyFile:
    """Do all that comes before the rename; the bytes are hashed at both ends, whatever `job.verify` says.

    Raises: ChecksumMismatch (the archive is damaged there), SourceChanged, DestinationExists, NoSpace, what the
    transports raise. An error leaves the partial file: retry, or `stream.discard`.
    """
    content = ExtractedContent(archive, member)

    def judge(_: Proof) -> None:
        content.require_sound()

    return stage_content(job, content, archive.path, judge, control, remember)
