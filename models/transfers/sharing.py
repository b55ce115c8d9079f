"""Which transfers may share a run: small copies and moves that are alike, at their first attempt.

When more transfers wait than slots are free, a mover takes those that come next and are like the one whose turn it is
together with it (`queue.take`), and performs them in one flow run. On the rows `shared_run` names it: they count as one
transfer of a mover, of a machine and of a work queue. One that does not end there goes alone the next time, so that
what is wrong with it concerns nobody else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import select

from datamanager.domain.states import TransferKind
from datamanager.engine.bulk.bulk_chunk import SMALL
from models.tables import DataObject, Transfer

MOST = 200
"""Transfers in one run."""
MOST_BYTES = 32 * 2**20
"""Bytes in one run: so it is over soon, whatever it meets."""
KINDS = (TransferKind.COPY.value, TransferKind.MOVE.value)

FACTS = (
    Transfer.id,
    Transfer.kind,
    Transfer.created,
    Transfer.bytes_total,
    Transfer.bandwidth,
    Transfer.attempts,
    Transfer.past_commit_point,
    Transfer.flow_run_id,
    Transfer.source_machine,
    Transfer.destination_machine,
    select(DataObject.id)
    .where(DataObject.id == Transfer.object_id, DataObject.provisional)
    .exists()
    .label("provisional"),
)
"""What `may_share` has to know of a transfer."""


def may_share(row: Any) -> bool:
    """Say whether a transfer (FACTS) may go together with others.

    A move within one machine is a rename, for which a run of its own is as quick; whether a provisional place is its
    object's own has to be looked up before it is moved.
    """
    if row.kind not in KINDS or row.bytes_total is None or row.bytes_total > SMALL:
        return False
    if row.attempts or row.past_commit_point or row.flow_run_id is not None or row.bandwidth is not None:
        return False
    moves = row.kind == TransferKind.MOVE.value
    return not (moves and (row.provisional or row.source_machine == row.destination_machine))


def joining(first: Any) -> Callable[[Any], bool]:
    """Return whether one more transfer may join a run that has `first`; those that it accepts are counted."""
    size = first.bytes_total

    def joins(row: Any) -> bool:
        nonlocal size
        if row.kind != first.kind or not may_share(row) or size + row.bytes_total > MOST_BYTES:
            return False
        size += row.bytes_total
        return True

    return joins
