"""Many small members of one archive at once, by the machinery of `engine.bulk`: few round trips, in their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datamanager.domain.location import Place
from datamanager.engine.bulk import run as bulk_run
from datamanager.engine.bulk.bulk_chunk import BulkEndpoints, BulkRules, Deferred, Outcome, SmallItem
from datamanager.engine.control import Control
from datamanager.engine.extracting.archive_member import Packed
from datamanager.engine.extracting.member_content import Lying, pieces
from datamanager.transports.port import Session


@dataclass(frozen=True, slots=True)
class ExtractItem:
    """A member to extract; `number` is the caller's, `source` the place that it is said to have in the archive."""

    number: int
    member: Packed
    source: Place
    destination: Place


def stage(
    ends: BulkEndpoints[Session], archive: Lying, items: Sequence[ExtractItem], rules: BulkRules, control: Control
) -> list[Outcome]:
    """Bring the items' bytes into partial files beside their destinations and verify them; see `bulk_run.stage`. What many
    bytes are stored of is for later, however few they say that they become: they would all be in memory.

    `ends` are two sessions of the machine on which the archive lies and the members are to lie. Raises: SourceChanged
    (the archive is not what it was), what breaks a connection and what `control` raises.
    """
    fit = [item for item in items if item.member.stored <= bulk_run.SMALL]
    members = pieces(ends.source, ends.origin, archive, {item.source: item.member for item in fit})
    small = [SmallItem(item.number, item.source, item.destination) for item in fit]
    outcomes = bulk_run.stage(BulkEndpoints(members, ends.target, ends.origin, ends.destination), small, rules, control)
    return outcomes + [Deferred(item.number) for item in items if item.member.stored > bulk_run.SMALL]
