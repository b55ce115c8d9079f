"""What is fetched again and again: the schedules, the moments that they had, and the versions that came of them.

Prefect says when; what is fetched, and that no moment is fetched twice, is decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import delete, select, tuple_
from sqlalchemy.orm import Session

from datamanager.domain.recurring import ScheduleRequest
from datamanager.domain.requests import DeleteRequest
from datamanager.domain.states import ObjectStatus, TransferKind, TransferStatus, Verified
from datamanager.errors import CatalogueError, InvalidRequest, RequestError, ScheduleNotFound, SecretsUnreadable
from datamanager.identity.grant import Grant
from datamanager.identity.scopes import AccessTarget
from datamanager.machines import Machines
from datamanager.sealing import Sealer
from models.access.permission import kept, kept_of, maker
from models.access.visibility import ALL, Visible, find_seen
from models.core.cursors import Rendering, page_of
from models.database import affected, insert_if_free, now
from models.submission import TransferRequest, prepare, submit
from models.tables import DataObject, Schedule, ScheduleRun, Transfer
from models.transfers.outcomes import UNCHANGED

PENDING, FETCHED, SAME, FAILED, DROPPED = "pending", "fetched", "unchanged", "failed", "dropped"
"""What `outcome` of a run says."""
RUNS_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Rhythm:
    """What Prefect must know of a schedule."""

    id: UUID
    interval: str | None
    cron: str | None
    active: bool
    wanted_at: datetime | None


def request_of(row: Schedule) -> ScheduleRequest:
    """Return the request, typed again."""
    return ScheduleRequest.model_validate(row.request)


def add_schedule(session: Session, request: ScheduleRequest, by: Grant | None) -> Schedule:
    """Enter a schedule, which was checked; its transfers are submitted with this grant. Raises: NotAllowed."""
    if by is not None:
        by.require("schedules", AccessTarget(request.group, request.machine, owner=by.person))
    row = Schedule(
        id=uuid4(),
        request=request.model_dump(mode="json"),
        paused=False,
        created_by=maker(by),
        grant=kept(by),
        created=now(session),
    )
    session.add(row)
    session.flush()
    return row


def get_schedule(session: Session, schedule: UUID, visible: Visible, *, lock: bool = False) -> Schedule:
    """Return a schedule. Raises: ScheduleNotFound, also when it is not seen; NotAllowed when it may not be acted on."""
    if visible is ALL:
        found = session.get(Schedule, schedule, with_for_update=lock or None, populate_existing=lock)
    else:
        found = find_seen(session, Schedule, Schedule.id == schedule, visible, Visible.schedules, lock=lock)
    if found is None:
        raise ScheduleNotFound(f"no schedule has the identifier {schedule}")
    return found


def all_schedules(session: Session) -> list[Schedule]:
    """Return every schedule, oldest first."""
    return list(session.scalars(select(Schedule).order_by(Schedule.created, Schedule.id)))


def select_schedules(
    session: Session, visible: Visible, limit: int, cursor: str | None, rendering: Rendering
) -> tuple[list[Any], str | None]:
    """Return one page, oldest first, shown as `rendering` says, and the cursor of the next one. Raises: InvalidRequest
    for a bad cursor.
    """
    query = select(Schedule).where(*visible.schedules())
    return page_of(session, query, Schedule.created, "date_created", limit, cursor, rendering)


def rhythms(session: Session) -> list[Rhythm]:
    """Return what Prefect must know of all schedules."""
    return [
        Rhythm(row.id, row.request.get("interval"), row.request.get("cron"), not row.paused, row.wanted_at)
        for row in all_schedules(session)
    ]


def remove_schedule(session: Session, schedule: UUID, visible: Visible) -> None:
    """Forget a schedule and its moments; its versions stay, and a transfer under way continues. Raises:
    ScheduleNotFound.
    """
    row = get_schedule(session, schedule, visible, lock=True)
    session.execute(delete(ScheduleRun).where(ScheduleRun.schedule_id == schedule))
    session.delete(row)


def pause_schedule(session: Session, schedule: UUID, visible: Visible, *, paused: bool) -> Schedule:
    """Pause a schedule, or resume it. Idempotent. Raises: ScheduleNotFound."""
    row = get_schedule(session, schedule, visible, lock=True)
    row.paused = paused
    return row


def want_run(session: Session, schedule: UUID, visible: Visible) -> Schedule:
    """Request a run now, also of a paused schedule; a mover brings it to Prefect. Requested twice before that it is
    one. Raises: ScheduleNotFound.
    """
    row = get_schedule(session, schedule, visible, lock=True)
    row.wanted_at = row.wanted_at or now(session).replace(microsecond=0)
    return row


def run_is_made(session: Session, schedule: UUID, wanted_at: datetime) -> None:
    """Note that Prefect has the run that was requested."""
    row = session.get(Schedule, schedule, with_for_update=True, populate_existing=True)
    if row is not None and row.wanted_at == wanted_at:
        row.wanted_at = None


def get_run(session: Session, schedule: UUID, moment: datetime) -> ScheduleRun:
    """Return a moment's run. Raises: ScheduleNotFound when it went with its schedule."""
    found = session.get(ScheduleRun, (schedule, moment))
    if found is None:
        raise ScheduleNotFound(f"no schedule has the identifier {schedule}")
    return found


def last_runs(session: Session, schedule: UUID, limit: int = RUNS_SHOWN) -> list[ScheduleRun]:
    """Return the last moments of a schedule, the newest first."""
    query = select(ScheduleRun).where(ScheduleRun.schedule_id == schedule)
    return list(session.scalars(query.order_by(ScheduleRun.moment.desc()).limit(limit)))


# --- one moment ------------------------------------------------------------------------------------------------------


def begin_moment(session: Session, machines: Machines, sealer: Sealer, schedule: UUID, moment: datetime) -> ScheduleRun:
    """Return the run of a moment, having made its transfer unless it has one: however often a run is repeated, it is
    fetched once. One that failed is tried again. What is refused makes the moment a failed one.

    Raises: ScheduleNotFound.
    """
    # who changes moments of a schedule has its row: two runs at once would lock each other's moments
    row = get_schedule(session, schedule, ALL, lock=True)
    wanted = request_of(row)
    values = {"schedule_id": schedule, "moment": moment, "outcome": PENDING}
    insert_if_free(session, ScheduleRun, values)
    run = session.get_one(ScheduleRun, (schedule, moment), with_for_update=True, populate_existing=True)
    settle(session, [run, *unsettled(session, schedule)])
    if run.outcome not in (PENDING, FAILED) or (run.outcome == PENDING and run.transfer_id is not None):
        return run
    run.outcome, run.code = PENDING, None
    known = _last_version(session, schedule, moment) if wanted.skip_unchanged else None
    try:
        with session.begin_nested():  # a refusal takes back its claims, not the moment
            fields = wanted.at(moment, None if known is None else str(known))
            grant = kept_of(row.grant)
            request = TransferRequest(TransferKind.GETEXTERNAL, fields, reason=f"schedule {schedule}", grant=grant)
            run.transfer_id = submit(session, machines, prepare(request, sealer=sealer)).id
    except ValueError:  # the templates make no request of this moment
        run.outcome, run.code = FAILED, RequestError.code
    except (RequestError, CatalogueError, SecretsUnreadable) as refused:
        run.outcome, run.code = FAILED, refused.code
    return run


def run_moment(session: Session, machines: Machines, sealer: Sealer, schedule: UUID, moment: datetime) -> ScheduleRun:
    """Begin a moment that somebody names, also of a paused schedule; see `begin_moment`.

    Raises: ScheduleNotFound; InvalidRequest for one that is still to come: fetched now, it would not be fetched then.
    """
    if moment > now(session):
        wanted = "must not lie in the future"
        raise InvalidRequest(f"moment: {wanted}", {"moment": wanted})
    return begin_moment(session, machines, sealer, schedule, moment)


def settle(session: Session, runs: list[ScheduleRun]) -> None:
    """Note how the transfers of runs ended, those that have."""
    for run in runs:
        transfer = None
        if run.outcome == PENDING and run.transfer_id is not None:
            transfer = session.get(Transfer, run.transfer_id)
            if transfer is None:
                run.outcome, run.code = FAILED, None  # forgotten before anybody looked
            elif transfer.ended is not None:
                _settle_fetch(run, transfer)
        elif run.delete_id is not None:
            transfer = session.get(Transfer, run.delete_id)
            if transfer is None or transfer.ended is not None:
                run.delete_id = None
                if transfer is not None and transfer.status != TransferStatus.COMPLETE.value:
                    run.outcome = FETCHED  # it is still there: tried again with the next version


def _settle_fetch(run: ScheduleRun, transfer: Transfer) -> None:
    if transfer.status == TransferStatus.COMPLETE.value:
        run.object_id = transfer.result_object_id
        run.outcome = SAME if transfer.notes.get(UNCHANGED) else FETCHED
    else:
        run.outcome, run.code = FAILED, transfer.error_code


def unsettled(session: Session, schedule: UUID | None = None) -> list[ScheduleRun]:
    """Return the runs whose transfer, or whose version's deletion, has ended since the last look."""
    fetched = select(ScheduleRun).join(Transfer, Transfer.id == ScheduleRun.transfer_id)
    dropped = select(ScheduleRun).join(Transfer, Transfer.id == ScheduleRun.delete_id)
    found: list[ScheduleRun] = []
    for query in (fetched.where(ScheduleRun.outcome == PENDING), dropped):
        query = query.where(Transfer.ended.is_not(None))
        if schedule is not None:
            query = query.where(ScheduleRun.schedule_id == schedule)
        found += session.scalars(query)
    return found


def _last_version(session: Session, schedule: UUID, before: datetime) -> UUID | None:
    """Return the newest version of earlier moments that is there."""
    query = select(ScheduleRun.object_id).join(DataObject, DataObject.id == ScheduleRun.object_id)
    query = query.where(ScheduleRun.schedule_id == schedule, ScheduleRun.moment < before)
    query = query.where(ScheduleRun.outcome == FETCHED, DataObject.status == ObjectStatus.ACTIVE.value)
    return session.scalar(query.order_by(ScheduleRun.moment.desc()).limit(1))


# --- versions --------------------------------------------------------------------------------------------------------


def drop_old_versions(session: Session, machines: Machines, schedule: UUID) -> list[UUID]:
    """Note how moments ended, and submit the deletion of the versions beyond those that are kept; return these. A
    deletion is an ordinary transfer.

    Never the newest verified one, and none that is held; what is busy, or could not be deleted just now, has its turn
    with the next version. One whose file is not found counts for nothing and is left to whoever looks after it. Raises:
    ScheduleNotFound.
    """
    row = get_schedule(session, schedule, ALL, lock=True)
    keep = request_of(row).keep
    ended = unsettled(session, schedule)
    stuck = {run.object_id for run in ended if run.delete_id is not None}
    settle(session, ended)
    if keep is None:
        return []
    query = select(ScheduleRun, DataObject).join(DataObject, DataObject.id == ScheduleRun.object_id)
    query = query.where(ScheduleRun.schedule_id == schedule, ScheduleRun.outcome == FETCHED)
    versions = [(row[0], row[1]) for row in session.execute(query.order_by(ScheduleRun.moment.desc()))]
    for run, obj in versions:
        if obj.status == ObjectStatus.DELETED.value:
            run.outcome = DROPPED  # somebody else deleted it
    there = (ObjectStatus.ACTIVE.value, ObjectStatus.ARCHIVED.value)
    versions = [(run, obj) for run, obj in versions if obj.status in there]
    proved = next((obj.id for _, obj in versions if obj.verified != Verified.NONE.value), None)
    dropped = []
    for run, obj in versions[keep:]:
        if obj.id == proved or obj.id in stuck or obj.held_since is not None:
            continue
        why = f"schedule {schedule} keeps {keep}"
        try:
            grant = kept_of(row.grant)
            request = TransferRequest(TransferKind.DELETE, DeleteRequest(), obj.id, reason=why, grant=grant)
            with session.begin_nested():
                run.delete_id = submit(session, machines, prepare(request)).id
        except (RequestError, CatalogueError):
            run.delete_id = None  # read or held just now, or its machine is not configured any more: next time
            continue
        run.outcome = DROPPED
        dropped.append(obj.id)
    return dropped


def prune_runs(session: Session, before: datetime, limit: int = 1000) -> int:
    """Forget moments that came to nothing (or to a version that is gone) before then; return how many."""
    key = ScheduleRun.schedule_id, ScheduleRun.moment
    old = select(*key).where(
        ScheduleRun.moment < before, ScheduleRun.outcome.in_((SAME, FAILED, DROPPED)), ScheduleRun.delete_id.is_(None)
    )
    return affected(session, delete(ScheduleRun).where(tuple_(*key).in_(old.limit(limit))))
