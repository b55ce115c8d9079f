"""The judge of the fault matrix finds what is planted: each invariant broken once, and nothing where all is well."""

from __future__ import annotations

from dataclasses import replace

import pytest

from datamanager.domain.states import TransferKind
from tests.faults.judging import Facts, violations
from tests.support.hearing import Heard

TOLD = (Heard(1, "dm.transfer.queued"), Heard(2, "dm.transfer.running"), Heard(3, "dm.transfer.complete"))
COPIED = Facts(
    kind=TransferKind.COPY,
    allowed=frozenset({"COMPLETE"}),
    versions=frozenset({"a"}),
    status="COMPLETE",
    code=None,
    detail=None,
    sequence=3,
    source="a",
    destination="a",
    live_at_source=1,
    live_at_destination=1,
    heard=TOLD,
)
MOVED = replace(COPIED, kind=TransferKind.MOVE, source=None, live_at_source=0)
FETCHED = replace(COPIED, kind=TransferKind.GETEXTERNAL, source=None, live_at_source=0)
REFUSED = replace(
    COPIED,
    status="ERROR",
    code="no_space",
    allowed=frozenset({"no_space"}),
    destination=None,
    live_at_destination=0,
    heard=(*TOLD[:2], Heard(3, "dm.transfer.error")),
)
STAYED = replace(
    MOVED, status="ERROR", code="source_not_removed", allowed=frozenset({"source_not_removed"}), source="a",
    heard=REFUSED.heard,
)  # fmt: skip


@pytest.mark.parametrize("facts", [COPIED, MOVED, FETCHED, REFUSED, STAYED, replace(COPIED, heard=(*TOLD, TOLD[1]))])
def test_what_is_well_is_not_blamed(facts: Facts) -> None:
    assert violations(facts) == []


@pytest.mark.parametrize(
    ("facts", "blamed"),
    [
        (replace(COPIED, status="RUNNING"), "did not end"),
        (replace(REFUSED, allowed=frozenset({"COMPLETE"})), "it ended no_space"),
        (replace(COPIED, destination="b"), "destination has other bytes"),
        (replace(COPIED, destination=None), "destination is missing"),
        (replace(REFUSED, destination="a"), "published although"),
        (replace(COPIED, source=None), "source is lost"),
        (replace(REFUSED, kind=TransferKind.MOVE, source=None), "source is lost"),
        (replace(MOVED, source="a"), "source is still there"),
        (replace(COPIED, live_at_destination=2), "2 live rows at the destination"),
        (replace(MOVED, live_at_source=1), "1 live rows at the source"),
        (replace(REFUSED, live_at_destination=1), "1 live rows at the destination"),
        (replace(COPIED, leftovers=("x.dmpart",)), "partial files"),
        (replace(COPIED, claims=1), "claims outlived"),
        (replace(COPIED, owner="mover"), "still holds"),
        (replace(COPIED, heard=TOLD[:2]), "events arrived"),
        (replace(COPIED, heard=(TOLD[1], TOLD[0], TOLD[2])), "out of order"),
        (replace(COPIED, heard=(*TOLD[:2], Heard(3, "dm.transfer.running"))), "does not tell of the end"),
        (replace(COPIED, seen=("RUNNING without an owner",)), "without an owner"),
    ],
)
def test_each_broken_invariant_is_named(facts: Facts, blamed: str) -> None:
    assert any(blamed in sentence for sentence in violations(facts))
