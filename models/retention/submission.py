"""Retention acts: what was decided becomes ordinary transfers, if it still holds in the transaction that submits them.

Decided was on what the catalogue said a while ago; in between anybody may have changed anything. So here, with the
object's row and the surviving copy's locked, everything is looked at again: hold, rule, mark, claims, and that the copy
that remains is the one that was proved in storage. A delete holds a reader's claim on the survivor until it ends, so
nobody can move or delete that meanwhile. Transfer and mark are one transaction: a crash leaves both or neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from datamanager.domain.archive_requests import ArchiveItem, ArchiveManyRequest
from datamanager.domain.fields import Priority
from datamanager.domain.location import Place
from datamanager.domain.requests import DeleteRequest
from datamanager.domain.retention_decisions import Decision, Reason, Subject, Verdict, marked_by, rule_of
from datamanager.domain.retention_rules import RetentionRules, Rule
from datamanager.domain.states import BundleStatus, ObjectStatus, TransferKind, TransferStatus
from datamanager.errors import DataManagerError
from datamanager.machines import Machines
from models.database import insert_if_free, now
from models.objects.bulk_claims import lock_objects
from models.objects.claims import claim_reading
from models.retention.facts import subjects
from models.retention.marks import new_mark, open_mark
from models.retention.runs import require_running
from models.submission import TransferRequest, prepare, submit
from models.tables import Bundle, BundleMember, RetentionMark, TransferItem


@dataclass(frozen=True, slots=True)
class Survivor:
    """The copy that remains, as it is to be looked at in storage: its file, or the sealed bundle that has its bytes.

    `sha256` and `size` are those of the file or of the whole bundle; a changed one is another survivor.
    """

    object_id: UUID
    checksum: str
    place: Place
    size: int | None
    sha256: str
    bundle: UUID | None = None


def survivor_of(session: Session, object_id: UUID) -> Survivor | None:
    """Return what would have to be proved of a copy, None when it is none any more: not live, not verified, or in a
    bundle that is not sealed. Claims of others do not matter.
    """
    for row in lock_objects(session, [object_id]):
        (found,) = subjects(session, [row], now(session))
        return _survivor(session, found)
    return None


def submit_delete(
    session: Session,
    machines: Machines,
    run: UUID,
    rules: RetentionRules,
    decision: Decision,
    proved: Survivor | None,
) -> Decision:
    """Delete an object that is due, if all of it still holds; return the decision as it came out (ACT, or why not).

    `proved` is the survivor as it was looked at in storage; None only for a rule that may take the last copy.

    Raises: LeaseLost when the run has ended; what `submit` raises; the transaction must end then, and nothing is
    changed.
    """
    grant = require_running(session, run)
    rule, time = decision.rule, now(session)
    ids = [decision.subject.id] + ([proved.object_id] if proved is not None else [])
    rows = {row.id: row for row in lock_objects(session, ids)}
    found = {one.id: one for one in subjects(session, list(rows.values()), time)}
    hindered = _hindered(rules, decision, found.get(decision.subject.id), time)
    if hindered is not None:
        return hindered
    if not rule.even_last_copy:
        if proved is None or proved.object_id == decision.subject.id:
            return spared(decision, Reason.LAST_VERIFIED_COPY)
        other = found.get(proved.object_id)
        if other is None or _survivor(session, other) != proved or other.checksum != decision.subject.checksum:
            return spared(decision, Reason.CHANGED, "the remaining copy has changed")
        if other.claim == "write" or (other.mark is not None and other.mark.action != "archive"):
            return spared(decision, Reason.CHANGED, "the remaining copy is being deleted or moved")
    mark = _own_mark(session, run, decision, time)
    if mark is None:
        return spared(decision, Reason.CHANGED, "its mark was removed")
    fields = DeleteRequest(priority=Priority.LOW)
    request = TransferRequest(TransferKind.DELETE, fields, decision.subject.id, reason=_why(rule), grant=grant)
    transfer = submit(session, machines, prepare(request))
    if proved is not None and not rule.even_last_copy:
        claim_reading(session, proved.object_id, transfer.id)
        mark.survivor_id = proved.object_id
    _acted(mark, run, transfer.id, decision)
    return decision


def submit_archive(
    session: Session, machines: Machines, run: UUID, rules: RetentionRules, rule: Rule, decisions: Sequence[Decision]
) -> list[Decision]:
    """Archive objects that are due, in one transfer, as far as it still holds; return how each decision came out.

    Raises: LeaseLost when the run has ended; what `submit` raises for the whole (no such archive). Nothing is changed
    then.
    """
    grant = require_running(session, run)
    time, outcome = now(session), dict[UUID, Decision]()
    rows = list(lock_objects(session, [one.subject.id for one in decisions]))
    found = {one.id: one for one in subjects(session, rows, time)}
    going: dict[UUID, tuple[Decision, RetentionMark]] = {}
    for decision in decisions:
        subject = decision.subject
        hindered = _hindered(rules, decision, found.get(subject.id), time)
        if hindered is not None:
            outcome[subject.id] = hindered
            continue
        mark = _own_mark(session, run, decision, time)
        if mark is None:
            outcome[subject.id] = spared(decision, Reason.CHANGED, "its mark was removed")
        else:
            going[subject.id] = decision, mark
    if going:
        fields = ArchiveManyRequest(
            items=[ArchiveItem(uuid=uuid) for uuid in going], archive_to=rule.archive_to, priority=Priority.LOW
        )
        request = TransferRequest(TransferKind.ARCHIVE_MANY, fields, reason=_why(rule), grant=grant)
        transfer = submit(session, machines, prepare(request))
        items = select(TransferItem.object_id, TransferItem.status, TransferItem.error_code, TransferItem.error_detail)
        for uuid, status, code, detail in session.execute(items.where(TransferItem.transfer_id == transfer.id)):
            decision, mark = going[uuid]
            if status == TransferStatus.ERROR.value:
                mark.detail = f"{code}: {detail}"
                outcome[uuid] = spared(decision, Reason.REFUSED, mark.detail)
            else:
                _acted(mark, run, transfer.id, decision)
                outcome[uuid] = decision
    return [outcome[decision.subject.id] for decision in decisions]


def refused(decision: Decision, error: DataManagerError) -> Decision:
    """Return a decision that the catalogue, or a machine, did not let happen."""
    return spared(decision, Reason.REFUSED, f"{error.code}: {error.detail}")


def _hindered(rules: RetentionRules, decision: Decision, subject: Subject | None, time: datetime) -> Decision | None:
    """Return the decision as it has to be now; None while it still holds."""
    rule = decision.rule
    if subject is None or _identity(subject) != _identity(decision.subject):
        return spared(decision, Reason.CHANGED, "it changed after the decision")
    if subject.held:
        return spared(decision, Reason.HELD)
    if rule.name in subject.restored:
        return spared(decision, Reason.RESTORED)
    if subject.claim is not None:
        return spared(decision, Reason.IN_USE)
    if rule_of(rules, subject, time) is not rule:
        return spared(decision, Reason.CHANGED, "the rule no longer selects it")
    mark = subject.mark
    if mark is not None and not (marked_by(subject, rule) and mark.transfer is None and mark.due <= time):
        return spared(decision, Reason.CHANGED, "it has another mark by now")
    return None


def _identity(one: Subject) -> tuple[Any, ...]:
    return one.status, one.machine, one.place, one.checksum, one.verified, one.size


def _own_mark(session: Session, run: UUID, decision: Decision, time: datetime) -> RetentionMark | None:
    """Return the object's mark; without grace it is made now. None when it was taken back since the decision."""
    found = open_mark(session, decision.subject.id)
    if found is None and not decision.rule.grace:
        insert_if_free(session, RetentionMark, new_mark(run, replace(decision, due=time), time))
        found = open_mark(session, decision.subject.id)
    return found


def _survivor(session: Session, found: Subject) -> Survivor | None:
    if not found.proved or found.checksum is None:
        return None
    if found.status == ObjectStatus.ACTIVE:
        sha256 = found.checksum.removeprefix("sha256:")
        return Survivor(found.id, found.checksum, Place(found.machine, found.place), found.size, sha256)
    query = (
        select(Bundle, BundleMember.sha256)
        .join(BundleMember, BundleMember.bundle_id == Bundle.id)
        .where(BundleMember.object_id == found.id, BundleMember.released.is_(None))
    )
    row = session.execute(query).first()
    if row is None:
        return None
    bundle, member = row
    if bundle.status != BundleStatus.SEALED.value or f"sha256:{member}" != found.checksum or bundle.sha256 is None:
        return None
    return Survivor(
        found.id, found.checksum, Place(bundle.machine, bundle.place), bundle.size, bundle.sha256, bundle.id
    )


def _acted(mark: RetentionMark, run: UUID, transfer: UUID, decision: Decision) -> None:
    mark.transfer_id, mark.acted_run_id = transfer, run
    mark.bytes = decision.bytes
    mark.in_archive = decision.subject.status == ObjectStatus.ARCHIVED
    mark.detail = None


def spared(decision: Decision, reason: Reason, detail: str = "") -> Decision:
    """Return a decision as one that nothing is done for, and why."""
    return replace(decision, verdict=Verdict.SPARE, reason=reason, detail=detail)


def _why(rule: Rule) -> str:
    return f"retention: {rule.name}"
