"""Many small members of one archive at once, by the machinery of `engine.bulk`: few round trips, in their order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from datamanager.domain.location import Place
from datamanager.engine.attempt import Intent
from datamanager.engine.bulk import run as bulk_run
from datamanager.engine.bulk.bulk_chunk import Later, Outcome, SmallItem
from datamanager.engine.control import Control
from datamanager.engine.extracting.archive_member import Packed
from datamanager.engine.extracting.member_content import Lying, pieces
from datamanager.machines import Machine, VerifyPolicy
from datamanager.transports.port import Session


@dataclass(frozen=True, slots=True)
class ExtractItem:
    """A member to extract; `number` is the caller's, `source` the place that it is said to have in the archive."""

    number: int
    member: Packed
    source: Place
    destination: Place


def stage(
    source: Session,
    target: Session,
    archive: Lying,
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
    """Bring the items' bytes into partial files beside their destinations and verify them; see `bulk_run.stage`. What many
    bytes are stored of is for later, however few they say that they become: they would all be in memory.

    Two sessions of the machine on which the archive lies and the members are to lie. Raises: SourceChanged (the archive
    is not what it was), what breaks a connection and what `control` raises.
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
