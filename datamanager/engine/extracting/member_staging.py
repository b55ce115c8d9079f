"""Members out of their archive, into partial files beside their destinations: many small ones together, with few round
trips (`engine.bulk`), or one large one (`engine.single`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from datamanager.domain.location import Place
from datamanager.engine.attempt import Intent, Job, Proof
from datamanager.engine.bulk import run as bulk_run
from datamanager.engine.bulk.bulk_chunk import Later, Outcome, SmallItem
from datamanager.engine.control import Control
from datamanager.engine.extracting.archive_member import Packed
from datamanager.engine.extracting.member_content import ExtractedContent, StoredArchive, pieces
from datamanager.engine.single.staged_file import Ready, stage_content
from datamanager.engine.single.transfer import Remember
from datamanager.machines import Machine, VerifyPolicy
from datamanager.transports.port import Session


@dataclass(frozen=True, slots=True)
class ExtractItem:
    """A member to extract; `number` is the caller's, `source` the place that stands for it in the archive."""

    number: int
    member: Packed
    source: Place
    destination: Place


def stage_small(
    source: Session,
    target: Session,
    archive: StoredArchive,
    items: Sequence[ExtractItem],
    *,
    machine: Machine,
    transfer: UUID,
    epoch: int,
    control: Control,
    overwrite: bool,
    packed: bool,
    ours: Mapping[int, Intent],
) -> list[Outcome]:
    """Bring the items' bytes into partial files beside their destinations and verify them; see `bulk_run.stage`. Members
    with many stored bytes are for later, however few they are said to become: all of them would be in memory.

    Both sessions are of the machine of the archive, which is also that of the destinations. Raises: SourceChanged (the
    archive changed), what breaks a connection and what `control` raises.
    """
    fit = [item for item in items if item.member.stored <= bulk_run.SMALL]
    outcomes = bulk_run.stage(
        pieces(source, machine, archive, {item.source: item.member for item in fit}),
        target,
        [SmallItem(item.number, item.source, item.destination) for item in fit],
        origin_machine=machine,
        target_machine=machine,
        transfer=transfer,
        epoch=epoch,
        verify=VerifyPolicy.SHA256,
        control=control,
        overwrite=overwrite,
        packed=packed,
        ours=ours,
    )
    return outcomes + [Later(item.number) for item in items if item.member.stored > bulk_run.SMALL]


def stage_large(job: Job, archive: StoredArchive, member: Packed, control: Control, remember: Remember) -> Ready:
    """Do all that comes before the rename; the bytes are hashed at both ends, whatever `job.verify` says.

    Raises: ChecksumMismatch (the archive is damaged there), SourceChanged, DestinationExists, NoSpace, what the
    transports raise. An error leaves the partial file: retry, or `stream.discard`.
    """
    content = ExtractedContent(archive, member)

    def judge(_: Proof) -> None:
        content.require_sound()

    return stage_content(job, content, archive.path, judge, control, remember)
