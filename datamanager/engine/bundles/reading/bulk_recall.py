"""Many small members of one bundle at once, by the machinery of `engine.bulk`: few round trips, in their order.

outcomes = recall_many.stage(ends, bundle, items, rules, control)  # engine.chunk's Staged, Failed, Deferred
bulk_publish.publish(target, staged, overwrite=...)  # as for files
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datamanager.domain.archive.bundle_model import Member, SealedBundle
from datamanager.domain.location import Place
from datamanager.engine.bulk import bulk_staging
from datamanager.engine.bulk.bulk_chunk import BulkEndpoints, BulkRules, Outcome, SmallItem
from datamanager.engine.bundles.reading.bundle_members import Members
from datamanager.engine.bundles.reading.stored_bundle import StoredBundle
from datamanager.engine.control import Control
from datamanager.engine.path_confinement import confined
from datamanager.errors import PathMissing, SourceMissing
from datamanager.transports.port import Session


@dataclass(frozen=True, slots=True)
class RecallItem:
    """A member to bring back; `number` is the caller's, unique within the transfer."""

    number: int
    member: Member
    destination: Place


def stage(
    ends: BulkEndpoints[Session], bundle: SealedBundle, items: Sequence[RecallItem], rules: BulkRules, control: Control
) -> list[Outcome]:
    """Bring the items' bytes into partial files beside their destinations and verify them; see
    `bulk_staging.stage`. The source of `ends` is a session of the archive.

    One outcome per item, in their order: Staged, Failed (ChecksumMismatch where the bundle is damaged), or Deferred for
    a member larger than `rules.most` bytes: `recall.stage` is for those. The sessions may be of one machine, but must
    be two.

    Raises: SourceMissing (no such bundle), SourceChanged (it has another size), what breaks a connection (retryable)
    and what `control` raises.
    """
    source, archive = ends.source, ends.origin
    try:
        path = confined(source, archive, bundle.place.path)
    except PathMissing:
        raise SourceMissing(f"{bundle.place}: no such bundle") from None
    members = Members(source, archive, StoredBundle.find(source, path, bundle), [item.member for item in items])
    small = [SmallItem(item.number, members.place(item.member), item.destination) for item in items]
    return bulk_staging.stage(BulkEndpoints(members, ends.target, archive, ends.destination), small, rules, control)
