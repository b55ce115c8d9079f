"""Many small members of one bundle at once, by the machinery of `engine.bulk`: few round trips, in their order.

outcomes = recall_many.stage(source, target, bundle, items, ...)  # engine.chunk's Staged, Failed, Later
bulk_publish.publish(target, staged, overwrite=...)  # as for files
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from datamanager.domain.bundles import Bundle, Member
from datamanager.domain.location import Place
from datamanager.engine.attempt import Intent
from datamanager.engine.bulk import run as bulk_run
from datamanager.engine.bulk.bulk_chunk import Outcome, SmallItem
from datamanager.engine.bulk.run import SMALL
from datamanager.engine.bundles.reading.bundle_members import Members
from datamanager.engine.bundles.reading.stored_bundle import Stored
from datamanager.engine.control import Control
from datamanager.engine.path_confinement import confined
from datamanager.errors import PathMissing, SourceMissing
from datamanager.machines import Machine, VerifyPolicy
from datamanager.transports.port import Session


@dataclass(frozen=True, slots=True)
class RecallItem:
    """A member to bring back; `number` is the caller's, unique within the transfer."""

    number: int
    member: Member
    destination: Place


def stage(
    source: Session,
    target: Session,
    bundle: Bundle,
    items: Sequence[RecallItem],
    *,
    archive: Machine,
    destination: Machine,
    transfer: UUID,
    epoch: int,
    control: Control,
    overwrite: bool = False,
    packed: bool = False,
    most: int = SMALL,
    ours: Mapping[int, Intent] | None = None,
) -> list[Outcome]:
    """Bring the items' bytes into partial files beside their destinations and verify them; see `bulk_run.stage`.

    One outcome per item, in their order: Staged, Failed (ChecksumMismatch where the bundle is damaged), or Later for a
    member larger than `most` bytes: `recall.stage` is for those. The sessions may be of one machine, but must be two.

    Raises: SourceMissing (no such bundle), SourceChanged (it has another size), what breaks a connection (retryable)
    and what `control` raises.
    """
    try:
        path = confined(source, archive, bundle.place.path)
    except PathMissing:
        raise SourceMissing(f"{bundle.place}: no such bundle") from None
    members = Members(source, archive, Stored.find(source, path, bundle), [item.member for item in items])
    return bulk_run.stage(
        members,
        target,
        [SmallItem(item.number, members.place(item.member), item.destination) for item in items],
        origin_machine=archive,
        target_machine=destination,
        transfer=transfer,
        epoch=epoch,
        verify=VerifyPolicy.SHA256,
        control=control,
        overwrite=overwrite,
        packed=packed,
        most=most,
        ours=ours,
    )
