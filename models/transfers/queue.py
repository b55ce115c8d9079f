"""What movers do with transfer rows: acquire one under a lease, renew it, note progress and faults, release it.

Lease and fencing (docs/transfer-protocol.md): a mover acquires a transfer by raising its epoch in one UPDATE; every
later write names that epoch. A runner that lost its lease finds a higher epoch (LeaseLost), and touches nothing that is
not its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import BindParameter, and_, bindparam, case, or_, select, update
from sqlalchemy.orm import Session

from datamanager.domain.fields import Priority
from datamanager.domain.states import TRANSITIONS, Phase, TransferKind, TransferStatus
from datamanager.errors import InternalError, LeaseLost, PathReplaced
from models.core.outbox import post_path_replaced, post_transfer_event
from models.database import affected, now, storable, take_turns, wake
from models.objects.bulk_claims import chunks
from models.tables import Transfer
from models.transfers import sharing
from models.transfers.fair_share import FairShare, ShareQueries, ends_of, pair_of, waiting_pairs
from models.transfers.lookup import held_runs

FAULTS_KEPT = 50
DETAIL_MAX = 2000  # characters of a fault's detail that are kept
NOTABLE = frozenset({"phase", "bytes_done", "bytes_total", "bytes_per_second", "flow_run_id"})
"""The columns that a runner may write while it works; status, lease and end have functions of their own."""

CANCEL, PAUSE, FORBID = "cancel", "pause", "forbid"
"""What `stop_requested` may say."""

NO_CAPS: Mapping[str, int] = MappingProxyType({})
TAKING_LOCK = 0x646D5F74616B696E  # "dm_takin": any number that nobody else uses for an advisory lock of the database


@dataclass(frozen=True, slots=True)
class TransferLease:
    """A mover's lease on a transfer: who, and under which epoch."""

    transfer: UUID
    owner: str
    epoch: int


def take(
    session: Session,
    owner: str,
    lease: timedelta,
    limit: int,
    *,
    only: UUID | None = None,
    caps: Mapping[str, int] = NO_CAPS,
    room: Mapping[str, int] = NO_CAPS,
    besides: Collection[UUID] = (),
    together: bool = False,
    apart: Collection[str] = (),
) -> list[TransferLease]:
    """Take up to `limit` queued transfers (or just `only`), raising each one's epoch: those of the highest priority
    first, of these by fair share (`models.transfers.fair_share`), of one pair of machines and one group the oldest. An
    endless stream of higher ones keeps the lower ones waiting.

    Two movers never take the same one: PostgreSQL locks the rows and others skip them, on SQLite the transaction
    excludes others. `caps`: how many transfers that touch a machine may be held at once, over all movers (see
    `models.machines.limits.caps`). One that finds a machine full stays as it is, and those behind it have their turn.
    `room`: how many of a priority may be taken; one that it does not name has no limit. `besides`: not these.
    `together`: when more wait than `limit`, small ones are taken with others of their kind. Their rows name the run
    that they share, and they count as one (`models.transfers.sharing`); of so many that the transaction is short. Those
    of machines that `apart` names go alone all the same.
    """
    if caps or only is None:
        take_turns(session, TAKING_LOCK)  # what each mover counts stays true
    time = now(session)
    if only is not None:
        full = _full(held_by_machine(session, caps), caps)
        query = select(Transfer).where(Transfer.id == only, Transfer.id.not_in(besides), *_takeable(time))
        rows = list(session.scalars(query.with_for_update(skip_locked=True)))
        rows = [row for row in rows if ends_of(row.share_pair).isdisjoint(full)]
        shared = dict[UUID, UUID]()
    else:
        held = held_by_pair(session)
        shares = FairShare(session, _QUERIES, time, held, besides)
        with session.no_autoflush:  # the notes of all turns are written together
            runs = _choose(shares, _by_machine(held), limit, caps, room, together=together, apart=apart)
        chosen = [one for run in runs for one in run]
        found = {row.id: row for row in session.scalars(select(Transfer).where(Transfer.id.in_(chosen)))}
        rows = [found[one] for one in chosen]
        shared = {one: run_id for run in runs if len(run) > 1 for run_id in [uuid4()] for one in run}
    for row in rows:
        row.owner = owner
        row.epoch += 1
        row.attempts += 1
        row.lease_until = time + lease
        row.shared_run = shared.get(row.id)
    return [TransferLease(row.id, owner, row.epoch) for row in rows]


def _choose(
    shares: FairShare,
    running: Counter[str],
    limit: int,
    caps: Mapping[str, int],
    room: Mapping[str, int],
    *,
    together: bool,
    apart: Collection[str],
) -> list[list[UUID]]:
    """Choose and lock up to `limit` transfers, each with those that share its run; `running` counts the runs that are
    held by machine, and is kept up.
    """
    chosen: list[list[UUID]] = []
    for priority in Priority:
        most = min(limit, len(chosen) + room.get(priority.value, limit))
        while len(chosen) < most and sum(map(len, chosen)) < sharing.MOST:
            full = _full(running, caps)
            if (found := shares.next(priority.value, full)) is None:
                break
            run = [found.id]
            running.update(ends_of(found.pair))
            if together and ends_of(found.pair).isdisjoint(apart) and sharing.may_share(found.facts):
                slots = [most - len(chosen) - 1]
                slots += [caps[name] - running[name] for name in ends_of(found.pair) & caps.keys()]
                of_pair = shares.waiting(priority.value, found.pair, min(slots) + 1)
                if of_pair > min(slots) or shares.more_wait_than(limit - len(chosen) - 1, full):
                    run += shares.company(priority.value, found, sharing.MOST - 1, sharing.joining(found.facts))
            chosen.append(run)
    return chosen


def waiting(session: Session, caps: Mapping[str, int] = NO_CAPS) -> bool:
    """Say whether a transfer could be taken now: a look that needs no writing transaction."""
    full = _full(held_by_machine(session, caps), caps)
    pairs = waiting_pairs(session, _QUERIES, now(session))
    return any(ends_of(pair).isdisjoint(full) for some in pairs.values() for pair in some)


def waits(session: Session, transfer: UUID) -> bool:
    """Say whether a transfer waits to be taken, were its machines not full."""
    return session.scalar(select(Transfer.id).where(Transfer.id == transfer, *_takeable(now(session)))) is not None


def renew(session: Session, holds: list[TransferLease], lease: timedelta) -> list[TransferLease]:
    """Prolong leases; return those that were lost."""
    until, kept = now(session) + lease, set[TransferLease]()
    for some in chunks(holds):
        kept |= still_held(session, some).keys()
        prolonged = update(Transfer).values(lease_until=until).execution_options(synchronize_session=False)
        session.execute(prolonged.where(Transfer.id.in_([hold.transfer for hold in some if hold in kept])))
    return [hold for hold in holds if hold not in kept]


def still_held(session: Session, holds: Sequence[TransferLease], *columns: Any) -> dict[TransferLease, Any]:
    """Lock the transfers whose leases still stand, and return `columns` of each by its lease, in the order of their
    identifiers.
    """
    wanted = set(holds)
    mine = Transfer.id.in_({hold.transfer for hold in wanted}), Transfer.ended.is_(None)
    query = select(Transfer.id, Transfer.epoch, Transfer.owner, *columns).where(*mine)
    rows = session.execute(query.order_by(Transfer.id).with_for_update()).all()
    return {hold: row for row in rows if (hold := TransferLease(row.id, row.owner, row.epoch)) in wanted}


def held(session: Session, hold: TransferLease, *, lock: bool = False) -> Transfer:
    """Return the transfer if the lease still stands. Raises: LeaseLost."""
    query = select(Transfer).where(*_fence(hold)).execution_options(populate_existing=True)
    if lock:
        query = query.with_for_update()
    found = session.scalar(query)
    if found is None:
        raise LeaseLost(f"transfer {hold.transfer} is no longer held under epoch {hold.epoch}")
    return found


def begin(session: Session, hold: TransferLease, flow_run_id: UUID) -> Transfer:
    """Note that the transfer's flow run has begun: RUNNING, and events. Raises: LeaseLost."""
    row = held(session, hold, lock=True)
    row.flow_run_id = flow_run_id
    if row.status == TransferStatus.QUEUED.value:
        advance(row, TransferStatus.RUNNING)
        row.phase = Phase.PROBE.value
        row.started = row.started or now(session)
        row.retry_at = None
        row.past_commit_point |= row.kind == TransferKind.DELETE.value  # it has but one step
        post_transfer_event(session, row, "running", {"attempt": row.attempts})
    return row


def note(session: Session, hold: TransferLease, **values: Any) -> None:
    """Write columns of a held transfer (NOTABLE). A phase that was read before its move was committed, and comes after,
    is not written. Raises: LeaseLost.
    """
    if not values.keys() <= NOTABLE:
        raise InternalError(f"a runner may not write {', '.join(sorted(values.keys() - NOTABLE))}")
    if "phase" in values:
        committed = and_(Transfer.kind == TransferKind.MOVE.value, Transfer.phase == Phase.CLEANUP.value)
        values["phase"] = case((committed, Transfer.phase), else_=values["phase"])
    if not _write(session, hold, **values):
        raise LeaseLost(f"transfer {hold.transfer} is no longer held under epoch {hold.epoch}")


def remember(session: Session, hold: TransferLease, **notes: Any) -> None:
    """Add to what a later attempt must know, before an act that can't be repeated. Raises: LeaseLost."""
    row = held(session, hold, lock=True)
    row.notes = {**row.notes, **notes}
    row.past_commit_point |= "intent" in notes


def add_fault(session: Session, hold: TransferLease, code: str, detail: str) -> None:
    """Keep an attempt's fault on the transfer. Raises: LeaseLost."""
    row = held(session, hold, lock=True)
    append_fault(session, row, code, detail)


def append_fault(session: Session, row: Transfer, code: str, detail: str) -> None:
    """Append a fault to a row of the session; the oldest go when there are too many."""
    if code == PathReplaced.code:
        post_path_replaced(session, row, storable(detail))
    fault = {"time": now(session).isoformat(), "code": code, "detail": storable(detail)[:DETAIL_MAX]}
    row.faults = [*row.faults, {**fault, "attempt": row.attempts}][-FAULTS_KEPT:]


def requeue(
    session: Session,
    hold: TransferLease,
    *,
    after: timedelta = timedelta(0),
    spent: bool = True,
    phase: Phase = Phase.QUEUED,
) -> None:
    """Give a transfer back to the queue, for `after` at least, but not beyond its deadline; `spent=False` when the
    attempt does not count, `phase`: what it waits for. Raises: LeaseLost.
    """
    requeue_row(session, held(session, hold, lock=True), after=after, spent=spent, phase=phase)


def requeue_row(
    session: Session,
    row: Transfer,
    *,
    after: timedelta = timedelta(0),
    spent: bool = True,
    phase: Phase = Phase.QUEUED,
) -> None:
    """Give a locked transfer back to the queue; see `requeue`."""
    _to_queue(session, row)
    if not row.paused:
        row.phase = phase.value
    row.retry_at = now(session) + after if after else None
    if row.retry_at is not None and row.deadline is not None:
        row.retry_at = min(row.retry_at, row.deadline)
    if not spent:
        row.attempts -= 1
    wake(session, "queued")


def reap(session: Session) -> list[Transfer]:
    """Put every transfer whose lease has run out back in the queue, and return them. Any mover may do it."""
    query = (
        select(Transfer)
        .where(Transfer.owner.is_not(None), Transfer.ended.is_(None), Transfer.lease_until < now(session))
        .with_for_update(skip_locked=True)
    )
    lost = list(session.scalars(query))
    for row in lost:
        append_fault(session, row, "lease_lost", f"mover {row.owner} sent no heartbeat")
        _to_queue(session, row)
    if lost:
        wake(session, "queued")
    return lost


def held_by_machine(session: Session, caps: Mapping[str, int]) -> Counter[str]:
    """Count the transfers that movers hold, by each machine that they touch; without caps nobody needs to know."""
    return _by_machine(held_by_pair(session)) if caps else Counter()


def held_by_pair(session: Session) -> Counter[str]:
    """Count the transfers that movers hold, by pair of machines (`Transfer.share_pair`); those that share a run as
    one.
    """
    counted: Counter[str] = Counter()
    for source, destination, _, count in held_runs(session):
        counted[pair_of(source, destination)] += count
    return counted


def _by_machine(held: Mapping[str, int]) -> Counter[str]:
    counted: Counter[str] = Counter()
    for pair, count in held.items():
        counted.update(dict.fromkeys(ends_of(pair), count))
    return counted


def _full(running: Mapping[str, int], caps: Mapping[str, int]) -> set[str]:
    return {name for name, cap in caps.items() if running[name] >= cap}


def _takeable(time: datetime | BindParameter[Any]) -> tuple[Any, ...]:
    return (
        Transfer.ended.is_(None),  # as the partial index has it
        Transfer.status == TransferStatus.QUEUED.value,
        Transfer.owner.is_(None),
        Transfer.paused.is_(False),
        or_(Transfer.retry_at.is_(None), Transfer.retry_at <= time),
        or_(Transfer.not_before.is_(None), Transfer.not_before <= time),
        # what is to end without another attempt is not taken, unless one has to look first (see `cancel_pause.expire`)
        or_(
            Transfer.past_commit_point,
            and_(Transfer.stop_requested.is_(None), or_(Transfer.deadline.is_(None), Transfer.deadline > time)),
        ),
    )


_QUERIES = ShareQueries(_takeable(bindparam("now")))


def advance(row: Transfer, status: TransferStatus) -> None:
    """Change a row's status as TRANSITIONS allows. Raises: InternalError for any other change."""
    if status not in TRANSITIONS[TransferStatus(row.status)]:
        raise InternalError(f"transfer {row.id} can't go from {row.status} to {status}")
    row.status = status.value


def _to_queue(session: Session, row: Transfer) -> None:
    if row.status != TransferStatus.QUEUED.value:  # taken, but not begun yet
        advance(row, TransferStatus.QUEUED)
    row.phase = Phase.QUEUED.value
    row.owner = None
    row.lease_until = None
    row.bytes_per_second = None
    if row.shared_run is not None:  # its next run is its own
        row.shared_run = row.flow_run_id = None
    if row.stop_requested == PAUSE:
        keep_paused(session, row)


def keep_paused(session: Session, row: Transfer) -> None:
    """Pause a transfer that nobody holds until it is resumed, and post the event."""
    row.paused, row.stop_requested = True, None
    row.phase = Phase.PAUSED.value
    post_transfer_event(session, row, "paused", {})


def _fence(hold: TransferLease) -> tuple[Any, ...]:
    return (
        Transfer.id == hold.transfer,
        Transfer.epoch == hold.epoch,
        Transfer.owner == hold.owner,
        Transfer.ended.is_(None),
    )


def _write(session: Session, hold: TransferLease, **values: Any) -> bool:
    return affected(session, update(Transfer).where(*_fence(hold)).values(**values)) == 1
