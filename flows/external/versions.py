"""Ended runs of schedules: their outcome is recorded, and versions beyond the kept number are deleted."""

from __future__ import annotations

import contextlib
import logging
from uuid import UUID

from datamanager.errors import ScheduleNotFound
from flows.runtime.services import Services
from models.external import schedules

log = logging.getLogger(__name__)


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
