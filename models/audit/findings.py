"""What audits found: candidates of a first look, confirmed by a second one; and what the catalogue learns from them.

Whatever changes an object names what its row was at the first look (status, date_modified) and that no transfer has
claimed it: what was changed meanwhile is left alone. Each function is one page in one transaction.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.orm import Session

from datamanager.domain.audit_rules import Finding, FindingKind, proves
from datamanager.domain.location import Place
from datamanager.domain.states import ObjectStatus, Verified
from datamanager.transports.values import to_wire
from models.audit.runs import AuditLease, held
from models.core.cursors import Rendering, numbered_page
from models.core.outbox import post_object_events
from models.database import insert_rows, now, storable
from models.objects.bulk_claims import claim_places, execute_in, lock_objects, rows_in
from models.objects.catalogue import told_of
from models.objects.claims import free_place_of_object
from models.tables import AuditFinding, Claim, DataObject

FINDINGS_MAX = 100_000
"""Candidates of one audit that are looked at twice; how many more there were is counted."""
BYTES = "bytes"
"""The key of a finding's `found` that has the path's bytes in base64, where they are not valid UTF-8."""


def add(session: Session, hold: AuditLease, findings: Sequence[Finding]) -> list[Finding]:
    """Note candidates; return those that were not, being more than an audit keeps. Raises: LeaseLost.

    Dark files get the first half of the room only: they stay, audit after audit, and must not hide what is lost.
    """
    row = held(session, hold)
    counts = dict(row.counts)
    first = int(counts.get("candidates", 0))
    kept, left = list[Finding](), list[Finding]()
    for one in findings:
        most = FINDINGS_MAX // 2 if one.kind is FindingKind.DARK else FINDINGS_MAX
        (kept if first + len(kept) < most else left).append(one)
    values = [
        {
            "audit_id": row.id,
            "number": number,
            "kind": one.kind.value,
            "place": storable(one.place),
            "object_id": one.object_id,
            "expected": dict(one.expected),
            "found": {**one.found, **_bytes(one.place)},
        }
        for number, one in enumerate(kept, first)
    ]
    insert_rows(session, AuditFinding, values)
    counts["candidates"] = first + len(kept)
    if left:
        counts["not_kept"] = int(counts.get("not_kept", 0)) + len(left)
    row.counts = counts
    return left


def take_back(session: Session, hold: AuditLease, counts: Mapping[str, Any]) -> None:
    """Forget the candidates that were noted since the audit's row had these counts. Raises: LeaseLost."""
    row = held(session, hold)
    late = AuditFinding.audit_id == hold.audit, AuditFinding.number >= int(counts.get("candidates", 0))
    session.execute(delete(AuditFinding).where(*late))
    row.counts = dict(counts)


def path_of(row: AuditFinding) -> str:
    """Return the exact path below base_dir."""
    raw = row.found.get(BYTES)
    return row.place if raw is None else base64.b64decode(raw).decode("utf-8", "surrogateescape")


def page(
    session: Session,
    audit: UUID,
    *,
    kind: FindingKind | None = None,
    confirmed: bool = True,
    applied: bool | None = None,
    after: int = -1,
    limit: int = 500,
) -> list[AuditFinding]:
    """Return up to `limit` findings beyond the number `after`, in order; candidates too unless `confirmed`."""
    query = _in_order(audit, kind, after)
    if confirmed:
        query = query.where(AuditFinding.confirmed)
    if applied is not None:
        query = query.where(AuditFinding.applied == applied)
    return list(session.scalars(query.limit(limit)))


def shown_page(
    session: Session, audit: UUID, *, kind: FindingKind | None, after: int, limit: int, rendering: Rendering
) -> tuple[list[Any], int | None]:
    """Return one page of confirmed findings, shown as `rendering` says, and the number that the next page begins after
    (None at the end).
    """
    return numbered_page(session, _in_order(audit, kind, after).where(AuditFinding.confirmed), limit, rendering)


def _in_order(audit: UUID, kind: FindingKind | None, after: int) -> Select[AuditFinding]:
    query = select(AuditFinding).where(AuditFinding.audit_id == audit, AuditFinding.number > after)
    if kind is not None:
        query = query.where(AuditFinding.kind == kind.value)
    return query.order_by(AuditFinding.number)


def settle(session: Session, hold: AuditLease, numbers: Collection[int], confirmed: Mapping[int, Finding]) -> None:
    """Keep those of the candidates `numbers` that a second look `confirmed`, as what it found; forget the others.

    Raises: LeaseLost.
    """
    held(session, hold)
    mine, number = AuditFinding.audit_id == hold.audit, AuditFinding.number
    execute_in(session, delete(AuditFinding).where(mine), number, sorted(set(numbers) - confirmed.keys()))
    for (row,) in rows_in(session, select(AuditFinding).where(mine), number, sorted(confirmed)):
        again = confirmed[row.number]
        row.kind, row.confirmed, row.found = again.kind.value, True, {**again.found, **_bytes(again.place)}


def count(session: Session, audit: UUID) -> dict[str, int]:
    """Return how many findings of each kind two looks have found, and how many of these are bundles or manifests."""
    names = [kind.value.lower() for kind in FindingKind]
    counts = dict.fromkeys([*names, "lost_bundles", "changed_bundles"], 0)
    mine = select(AuditFinding.kind, func.count()).where(AuditFinding.audit_id == audit, AuditFinding.confirmed)
    counts |= {kind.lower(): number for kind, number in session.execute(mine.group_by(AuditFinding.kind))}
    of_bundles = mine.where(AuditFinding.expected["members"].as_integer().is_not(None)).group_by(AuditFinding.kind)
    return counts | {f"{kind.lower()}_bundles": number for kind, number in session.execute(of_bundles)}


def apply_lost(session: Session, hold: AuditLease, findings: Sequence[AuditFinding]) -> int:
    """Make lost objects UNKNOWN: their places are free. Return how many. Raises: LeaseLost."""
    changed = _unchanged(session, hold, findings)
    for row in changed:
        row.status = ObjectStatus.UNKNOWN.value
        free_place_of_object(session, row.id)
    return _changed(session, hold, findings, changed, "lost")


def apply_changed(session: Session, hold: AuditLease, findings: Sequence[AuditFinding]) -> int:
    """Note of changed files that nothing is proved of them any more: `verified` none. Raises: LeaseLost.

    Size, checksum and status stay what they were: only a person knows which is right, the row or the file.
    """
    changed = _unchanged(session, hold, findings)
    for row in changed:
        row.verified = Verified.NONE.value
    return _changed(session, hold, findings, changed, "changed")


def apply_found(session: Session, hold: AuditLease, findings: Sequence[AuditFinding]) -> int:
    """Make UNKNOWN objects ACTIVE again whose file is proved to be there and whose place is free. Raises: LeaseLost."""
    proved = {one.object_id: one for one in findings if proves(one.expected, one.found)}
    rows = _unchanged(session, hold, list(proved.values()))
    wanted = list[tuple[Place, UUID]]()
    for row in rows:
        here = Place(row.machine, row.place)
        canonical = Place(row.machine, proved[row.id].found.get("canonical") or row.place)
        wanted += [(one, row.id) for one in {here, canonical}]
    won = claim_places(session, wanted, transfer=None)
    changed = [row for row in rows if row.id in won]
    for row in changed:
        row.status, row.verified = ObjectStatus.ACTIVE.value, Verified.SHA256.value
        row.provisional = True  # it was not compared with files of other names
    return _changed(session, hold, findings, changed, "found")


def _unchanged(session: Session, hold: AuditLease, findings: Sequence[AuditFinding]) -> list[DataObject]:
    """Return the objects, locked, whose rows are what they were when the findings were made, and that no transfer has
    claimed.
    """
    held(session, hold)
    wanted = {one.object_id: one.expected for one in findings if one.object_id is not None}
    rows = [row for row in lock_objects(session, wanted) if is_same(row, wanted[row.id])]
    busy = claimed(session, [row.id for row in rows])
    return [row for row in rows if row.id not in busy]


def is_same(row: DataObject, expected: Mapping[str, Any]) -> bool:
    """Say whether an object's row is what it was."""
    return row.status == expected["status"] and row.date_modified == datetime.fromisoformat(expected["modified"])


def claimed(session: Session, objects: Sequence[UUID]) -> set[UUID]:
    """Return those of the objects that transfers under way have claimed, or whose places they have."""
    query = select(Claim.object_id).where(Claim.transfer_id.is_not(None)).distinct()
    return {row.object_id for row in rows_in(session, query, Claim.object_id, objects)}


def _changed(
    session: Session, hold: AuditLease, findings: Sequence[AuditFinding], rows: Sequence[DataObject], event: str
) -> int:
    """Note which findings were applied, to which rows, with an event for each; return how many."""
    time, objects = now(session), {row.id for row in rows}
    for row in rows:
        row.date_modified = time
    numbers = [one.number for one in findings if one.object_id in objects]
    mine = update(AuditFinding).where(AuditFinding.audit_id == hold.audit)
    execute_in(session, mine.values(applied=True), AuditFinding.number, numbers)
    post_object_events(session, event, [(row.id, told_of(row)) for row in rows], time)
    return len(rows)


def _bytes(place: str) -> dict[str, str]:
    try:
        place.encode("utf-8")
    except UnicodeEncodeError:
        return {BYTES: base64.b64encode(to_wire(place)).decode("ascii")}
    return {}
