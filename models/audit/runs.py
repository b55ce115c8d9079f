"""Audits in the catalogue: queued, taken by a mover, performed by a flow run, ended with an event.

    QUEUED    `submit`; without a `flow_run_id` any mover takes it (`take`), else that run performs it (`begin`)
    RUNNING   `begin`; a run that fell silent gives it back to the queue (`give_back_lost`)
    COMPLETE  `end`
    ERROR     `end` with an error

A machine is audited by one run at a time, which has the lease `audit:{machine}`. Writes name an `AuditLease`: when the
lease is another attempt's they raise LeaseLost and change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Select, delete, func, or_, select, update
from sqlalchemy.orm import Session

from datamanager.domain.audit_rules import AuditStatus, AuditTerms
from datamanager.errors import AuditNotFound, DataManagerError, InternalError, LeaseLost
from datamanager.identity.grant import Grant
from models.access.permission import maker
from models.access.visibility import ALL, Visible, find_seen
from models.core.cursors import NEWEST, ROWS, Rendering, page_of
from models.core.leases import RUN_PREFIX, drop_lease, hold_lease, is_held
from models.core.outbox import post_event
from models.database import affected, now, storable, wake
from models.tables import Audit, AuditFinding

LEASE = timedelta(seconds=60)
"""Of a machine, from when an audit of it is taken until its run has begun and renews it itself."""
ATTEMPTS = 5
"""How often an audit is taken before it is given up."""
DETAIL_MAX = 2000  # characters of an error's detail that are kept
_OPEN = (AuditStatus.QUEUED.value, AuditStatus.RUNNING.value)
_WAITS = (Audit.status == AuditStatus.QUEUED.value, Audit.ended.is_(None), Audit.flow_run_id.is_(None))


@dataclass(frozen=True, slots=True)
class AuditLease:
    """An attempt's lease on an audit."""

    audit: UUID
    machine: str
    attempt: int

    @property
    def lease(self) -> str:
        """The name of its lease."""
        return lease_name(self.machine)

    @property
    def holder(self) -> str:
        """How the lease names it."""
        return f"{self.audit}:{self.attempt}"


def lease_name(machine: str) -> str:
    """Name the lease of whoever audits a machine."""
    return f"audit:{machine}"


def submit(
    session: Session, machine: str, terms: AuditTerms, by: Grant | None, *, flow_run: UUID | None = None
) -> Audit:
    """Enter an audit that `by` requested; with `flow_run` it is that run's to perform, as long as the run lives."""
    row = Audit(
        id=uuid4(),
        machine=machine,
        status=AuditStatus.QUEUED.value,
        options=AuditTerms.model_validate(terms.model_dump()).model_dump(mode="json"),
        flow_run_id=flow_run,
        created_by=maker(by),
        created=now(session),
    )
    session.add(row)
    session.flush()
    if flow_run is None:
        wake(session, "queued")
    return row


def get_audit(session: Session, audit: UUID, visible: Visible) -> Audit:
    """Return an audit. Raises: AuditNotFound, also when it is not seen."""
    if visible is ALL:
        found = session.get(Audit, audit, populate_existing=True)
    else:
        found = find_seen(session, Audit, Audit.id == audit, visible, Visible.audits)
    if found is None:
        raise AuditNotFound(f"no audit has the identifier {audit}")
    return found


def anything_to_do(session: Session) -> bool:
    """Say whether `take` or `give_back_lost` would find one: a look that needs no writing transaction."""
    if any(not is_held(session, lease_name(machine)) for machine in _waiting_machines(session)):
        return True
    time = now(session)
    return any(not _is_alive(session, row, time) for row in session.scalars(_begun()))


def take(session: Session, limit: int) -> list[AuditLease]:
    """Take up to `limit` audits that wait for no run of their own, one a machine, those that wait for longest first."""
    holds = list[AuditLease]()
    for machine in _waiting_machines(session):
        if len(holds) >= limit:
            break
        if is_held(session, lease_name(machine)):
            continue
        query = select(Audit).where(*_WAITS, Audit.machine == machine).order_by(Audit.created, Audit.id)
        row = session.scalars(query.limit(1).with_for_update(skip_locked=True)).first()
        if row is None:
            continue
        hold = AuditLease(row.id, row.machine, row.attempts + 1)
        if hold_lease(session, hold.lease, hold.holder, LEASE):
            row.status, row.attempts, row.taken = AuditStatus.RUNNING.value, hold.attempt, now(session)
            holds.append(hold)
    return holds


def attach(session: Session, hold: AuditLease, flow_run: UUID) -> None:
    """Note which run performs it. Raises: LeaseLost."""
    held(session, hold).flow_run_id = flow_run


def release(session: Session, hold: AuditLease) -> None:
    """Put back what was taken, or what a mover that stops has not ended: another attempt begins anew.

    Never raises for an audit that is another's by now.
    """
    back = update(Audit).where(Audit.id == hold.audit, Audit.attempts == hold.attempt, Audit.ended.is_(None))
    session.execute(back.values(status=AuditStatus.QUEUED.value, flow_run_id=None, begun=None, attempts=hold.attempt))
    drop_lease(session, hold.lease, hold.holder)
    wake(session, "queued")


def begin(session: Session, audit: UUID, flow_run: UUID, lease: timedelta) -> AuditLease | None:
    """Begin to perform an audit that is this run's; None while another run audits the machine.

    What an attempt before this one found is forgotten. Raises: AuditNotFound when it is not this run's.
    """
    row = session.get(Audit, audit, with_for_update=True, populate_existing=True)
    if row is None or row.ended is not None or row.flow_run_id != flow_run:
        raise AuditNotFound(f"audit {audit} does not wait for this run; it has ended, or another run has it")
    fresh = row.status == AuditStatus.QUEUED.value
    hold = AuditLease(row.id, row.machine, row.attempts + 1 if fresh else row.attempts)
    if not hold_lease(session, hold.lease, hold.holder, lease):
        return None
    row.status, row.attempts, row.begun = AuditStatus.RUNNING.value, hold.attempt, now(session)
    row.taken = row.begun
    row.counts, row.scrubbed_objects, row.scrubbed_bytes = {}, 0, 0
    _forget_findings(session, audit)
    return hold


def renew(session: Session, hold: AuditLease, lease: timedelta) -> None:
    """Prolong the lease. Raises: LeaseLost."""
    if not hold_lease(session, hold.lease, hold.holder, lease):
        raise LeaseLost(f"machine {hold.machine} is audited by another run now")


def held(session: Session, hold: AuditLease) -> Audit:
    """Return the row if the lease still stands, and keep it so until the transaction ends. Raises: LeaseLost."""
    row = session.get(Audit, hold.audit, with_for_update=True, populate_existing=True)
    running = row is not None and row.status == AuditStatus.RUNNING.value and row.attempts == hold.attempt
    if row is None or not running or not is_held(session, hold.lease, hold.holder):
        raise LeaseLost(f"audit {hold.audit} is no longer this run's")
    return row


def end(session: Session, hold: AuditLease, error: DataManagerError | None = None) -> Audit:
    """End an audit, with an event (`dm.audit.completed`). With an error that is not just suspicion what was found is
    forgotten: it was not looked at to the end. Raises: LeaseLost.
    """
    row = held(session, hold)
    if error is not None and not row.suspicious:
        _forget_findings(session, row.id)
        row.counts = {}
    drop_lease(session, hold.lease, hold.holder)
    _end(session, row, error)
    return row


def give_back_lost(session: Session) -> list[Audit]:
    """Return audits whose run fell silent to the queue, or end those that were taken too often; return all of them."""
    lost = list[Audit]()
    time = now(session)
    for row in session.scalars(_begun().with_for_update(skip_locked=True)):
        if _is_alive(session, row, time):
            continue
        row.flow_run_id = None
        if row.attempts < ATTEMPTS:
            row.status, row.begun = AuditStatus.QUEUED.value, None
        else:
            error = InternalError(f"given up after {ATTEMPTS} attempts: no mover completed it")
            row.counts = {}
            _forget_findings(session, row.id)
            _end(session, row, error)
        lost.append(row)
    return lost


def drop_rest(session: Session, flow_run: UUID, error: DataManagerError) -> None:
    """End the audits that wait for a run which was cancelled."""
    query = select(Audit).where(Audit.flow_run_id == flow_run, Audit.status == AuditStatus.QUEUED.value)
    for row in session.scalars(query.where(Audit.ended.is_(None)).with_for_update()):
        _end(session, row, error)


def select_audits(
    session: Session,
    visible: Visible,
    *,
    machine: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
    rendering: Rendering = ROWS,
) -> tuple[list[Any], str | None]:
    """Return one page, the newest first, shown as `rendering` says, and the cursor of the next one. Raises:
    InvalidRequest for a bad cursor.
    """
    query = select(Audit).where(*visible.audits())
    if machine is not None:
        query = query.where(Audit.machine == machine)
    return page_of(session, query, Audit.created, NEWEST, limit, cursor, rendering)


def prune(session: Session, keep: timedelta, *, audits: int, findings: int) -> tuple[int, int]:
    """Forget up to so many findings of audits that ended longer ago than `keep`, and audits that have none any more;
    return how many findings and audits went.
    """
    old = select(Audit.id).where(Audit.ended < now(session) - keep)
    key = AuditFinding.audit_id, AuditFinding.number
    some = session.execute(select(*key).where(AuditFinding.audit_id.in_(old)).limit(findings)).all()
    gone = 0
    by_audit: dict[UUID, list[int]] = {}
    for audit, number in some:
        by_audit.setdefault(audit, []).append(number)
    for audit, numbers in by_audit.items():
        low, high = min(numbers), max(numbers)
        mine = AuditFinding.audit_id == audit, AuditFinding.number.between(low, high)
        gone += affected(session, delete(AuditFinding).where(*mine))
    left = select(AuditFinding.number).where(AuditFinding.audit_id == Audit.id)
    empty = old.where(~left.exists()).limit(audits)
    return gone, affected(session, delete(Audit).where(Audit.id.in_(empty)))


def _waiting_machines(session: Session) -> list[str]:
    """Return the machines of audits that wait for no run of their own, the longest waiting first."""
    query = select(Audit.machine).where(*_WAITS).group_by(Audit.machine).order_by(func.min(Audit.created))
    return list(session.scalars(query))


def _begun() -> Select[Audit]:
    """Select the audits that were taken, or are a run's."""
    mine = or_(Audit.status == AuditStatus.RUNNING.value, Audit.flow_run_id.is_not(None))
    return select(Audit).where(Audit.status.in_(_OPEN), Audit.ended.is_(None), mine)


def _is_alive(session: Session, row: Audit, time: datetime) -> bool:
    """Say whether somebody works on an audit that was taken, or is that of a run."""
    if row.flow_run_id is None:
        return row.taken is not None and row.taken > time - LEASE
    return is_held(session, f"{RUN_PREFIX}{row.flow_run_id}")


def _end(session: Session, row: Audit, error: DataManagerError | None) -> None:
    """End a row, with an event (`dm.audit.completed`)."""
    row.status = (AuditStatus.COMPLETE if error is None else AuditStatus.ERROR).value
    row.ended = now(session)
    if error is not None:
        row.error_code, row.error_detail = error.code, storable(error.detail)[:DETAIL_MAX]
    data: dict[str, Any] = {
        "audit": str(row.id),
        "machine": row.machine,
        "status": row.status,
        "counts": row.counts,
        "scrubbed_objects": row.scrubbed_objects,
        "scrubbed_bytes": row.scrubbed_bytes,
        "suspicious": row.suspicious,
    }
    if row.error_code is not None:
        data |= {"code": row.error_code, "detail": row.error_detail}
    post_event(session, "dm.audit.completed", row.id, data)


def _forget_findings(session: Session, audit: UUID) -> None:
    session.execute(delete(AuditFinding).where(AuditFinding.audit_id == audit))
