"""The invariants: what must hold of a transfer after any fault. Pure: facts in, violations out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from datamanager.domain.states import TransferKind, TransferStatus
from tests.support.hearing import Heard, misheard

TERMINAL = {TransferStatus.COMPLETE.value: "dm.transfer.complete", TransferStatus.ERROR.value: "dm.transfer.error"}
AT_NEW_PLACE = "source_not_removed"
"""The one error after which a move's object is at its new place, and its source is still there."""


@dataclass(frozen=True)
class Facts:
    """What was found of a transfer after its end (or after patience ended) and the service's mending."""

    kind: TransferKind
    allowed: frozenset[str]
    """How it may end: COMPLETE, or an error's code."""
    versions: frozenset[str]
    """The sha256 of what the source held, before the fault and after it: whole, one of them must arrive."""
    status: str
    code: str | None
    detail: str | None
    sequence: int
    source: str | None = None
    """The sha256 of the file at the source now, None when there is none (or the source is no file)."""
    destination: str | None = None
    live_at_source: int = 0
    live_at_destination: int = 0
    """ACTIVE objects there."""
    claims: int = 0
    owner: str | None = None
    leftovers: Sequence[str] = ()
    heard: Sequence[Heard] = ()
    seen: Sequence[str] = field(default=())
    """What was wrong while it ran."""
    told: str | None = None
    """The status that its events tell of, where that is another one: a batch's, of an item."""

    @property
    def outcome(self) -> str:
        """COMPLETE, an error's code, or the status in which it is stuck."""
        return self.code or self.status


def violations(facts: Facts) -> list[str]:
    """Return a sentence for each invariant that does not hold."""
    found = list(facts.seen)
    if facts.status not in TERMINAL:
        return [*found, f"it did not end: {facts.status}, owner {facts.owner}"]
    if facts.outcome not in facts.allowed:
        found.append(f"it ended {facts.outcome} ({facts.detail}); allowed: {', '.join(sorted(facts.allowed))}")
    found += _bytes(facts) + _rows(facts) + _events(facts)
    if facts.leftovers:
        found.append(f"partial files lie about: {', '.join(facts.leftovers)}")
    if facts.claims:
        found.append(f"{facts.claims} claims outlived it")
    if facts.owner is not None:
        found.append(f"{facts.owner} still holds it")
    return found


def _bytes(facts: Facts) -> list[str]:
    found = []
    arrived = facts.outcome in (TransferStatus.COMPLETE.value, AT_NEW_PLACE)
    if arrived and facts.destination not in facts.versions:
        found.append("the destination is missing" if facts.destination is None else "the destination has other bytes")
    if not arrived and facts.destination is not None:
        found.append("a file was published although the transfer ended in error")
    if facts.kind is TransferKind.GETEXTERNAL:
        return found
    gone = facts.kind is TransferKind.MOVE and facts.outcome == TransferStatus.COMPLETE.value
    if gone and facts.source is not None:
        found.append("the move's source is still there")
    if not gone and facts.source not in facts.versions:
        found.append("the source is lost" if facts.source is None else "the source has other bytes")
    return found


def _rows(facts: Facts) -> list[str]:
    arrived = facts.outcome in (TransferStatus.COMPLETE.value, AT_NEW_PLACE)
    left = facts.kind is TransferKind.GETEXTERNAL or (facts.kind is TransferKind.MOVE and arrived)
    wanted = {"source": 0 if left else 1, "destination": 1 if arrived else 0}
    there = {"source": facts.live_at_source, "destination": facts.live_at_destination}
    return [f"{there[end]} live rows at the {end}, not {wanted[end]}" for end in wanted if there[end] != wanted[end]]


def _events(facts: Facts) -> list[str]:
    if found := misheard(facts.heard, facts.sequence):
        return found
    last = max(facts.heard, key=lambda event: event.sequence)
    if last.type != TERMINAL[facts.told or facts.status]:
        return [f"the last event does not tell of the end: {[event.type for event in facts.heard]}"]
    return []
