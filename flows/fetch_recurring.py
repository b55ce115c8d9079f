"""The flow that fetches one moment of a schedule, and the end of such runs. It is no transfer: it submits one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from datetime import UTC, datetime
from uuid import UUID

from prefect import flow
from prefect.context import FlowRunContext
from prefect.logging import get_run_logger
from sqlalchemy.orm import Session

from datamanager.domain.fields import read_time
from datamanager.errors import InternalError, InvalidRequest, ScheduleNotFound, by_code
from datamanager.sealing import Sealer
from flows.runtime.maintenance import control_of, pause
from flows.runtime.services import Services, services
from models.database import read, write
from models.external import schedules
from models.tables import ScheduleRun, Transfer

LOOK_EVERY = 1.0  # seconds
PATIENCE = 900.0
"""Seconds that a run waits for its transfer. A mover notes the end of a longer one, whether or not a run waits."""

log = logging.getLogger(__name__)


@flow(name="recurring", persist_result=False)
async def recurring(schedule: UUID, moment: str = "") -> str:
    """Download the version of a scheduled time, wait for it, and delete old versions.

    Args:
        schedule: The schedule's identifier: see GET /DM/schedules.
        moment: The scheduled time, such as 2026-01-31T12:00:00Z; empty means the scheduled time of this run.
            A time that was downloaded is not downloaded again.
    """
    parts = services()
    control, when = control_of(parts), _moment(moment)
    sealer = Sealer.of(parts.settings)
    log = get_run_logger()
    run = await write(parts.database, schedules.begin_moment, parts.machines, sealer, schedule, when, parts.quotas)
    log.info("%s of schedule %s: %s", f"{when:%Y-%m-%dT%H:%M:%SZ}", schedule, run.transfer_id or run.code)
    until = time.monotonic() + PATIENCE
    while run.outcome == schedules.PENDING:
        if time.monotonic() >= until:
            return f"transfer {run.transfer_id} continues"
        await pause(control, LOOK_EVERY)
        await asyncio.to_thread(finish, parts, schedule)
        run = await read(parts.database, schedules.get_run, schedule, when)
    if run.outcome == schedules.FAILED:
        raise by_code(run.code or InternalError.code, await read(parts.database, _why, run))
    return f"{run.outcome} {run.object_id}"


def _moment(text: str) -> datetime:
    if text:
        try:
            return read_time(text).replace(microsecond=0)
        except ValueError as exc:
            raise InvalidRequest(f"moment: {exc}", {"moment": str(exc)}) from None
    context = FlowRunContext.get()
    planned = context.flow_run.expected_start_time if context is not None and context.flow_run is not None else None
    if planned is None:
        raise InternalError("the run has no scheduled time")
    return datetime.fromtimestamp(planned.timestamp(), UTC).replace(microsecond=0)


def _why(session: Session, run: ScheduleRun) -> str:
    transfer = None if run.transfer_id is None else session.get(Transfer, run.transfer_id)
    detail = None if transfer is None else transfer.error_detail
    return detail or f"the scheduled time was refused: {run.code}"


def finish(parts: Services, only: UUID | None = None) -> None:
    """Record how the runs of all schedules, or of one, ended, and submit deletes of old versions. Blocks; any mover may
    do it at any time. Raises: CatalogueUnavailable.
    """
    with parts.database.read() as session:
        ended = {run.schedule_id for run in schedules.unsettled(session, only)}
    for schedule in ended:
        dropped: list[UUID] = []
        with contextlib.suppress(ScheduleNotFound), parts.database.write() as session:
            dropped = schedules.drop_old_versions(session, parts.machines, schedule)
        if dropped:
            log.info("schedule %s: %d old versions are deleted", schedule, len(dropped))
