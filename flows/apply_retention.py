"""The flow that carries out the rules of retention.toml. It is no transfer: it takes none of their slots."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from uuid import UUID

from prefect import flow
from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from sqlalchemy.orm import Session

from datamanager.domain.retention_decisions import Decider
from datamanager.domain.retention_rules import RetentionRules, load_rules
from datamanager.engine.control import Control
from datamanager.errors import DataManagerError, DutyTaken, InternalError, LeaseLost
from flows.retention.report import show_run
from flows.retention.run import Retaining
from flows.runtime.maintenance import control_of, duty, pause, this_run, threaded, writing
from flows.runtime.services import Services, services
from models.database import now
from models.retention import marks
from models.retention import runs as retention_runs
from models.retention.report import Report, make_decider, plan
from models.retention.runs import DUTY, RetentionTerms
from models.tables import RetentionRun

PATIENCE = 60.0
"""Seconds that a run waits for another one to end, or for the lease of a dead one to run out."""


@flow(name="retention", persist_result=False)
async def retention(
    dry_run: bool = False,
    rule: str = "",
    max_objects: int | None = None,
    max_bytes: int | None = None,
    run_id: UUID | None = None,
) -> str:
    """Archive and delete objects by the rules of retention.toml, after their grace period.

    Args:
        dry_run: Change nothing; only write a report.
        rule: Apply only this rule; empty means all.
        max_objects: Maximum number of objects to act on and to mark; retention.toml may allow fewer.
        max_bytes: Maximum number of bytes; retention.toml may allow fewer.
        run_id: Leave it empty. It is set by the Data Manager.
    """
    parts = services()
    terms = RetentionTerms(dry_run, rule, max_objects, max_bytes)
    until = time.monotonic() + PATIENCE
    while True:
        try:
            async with duty(parts, DUTY) as control:
                return await _carry_out(parts, terms, run_id, control)
        except DutyTaken as taken:
            if time.monotonic() >= until:
                if run_id is not None:
                    why = f"{taken.code}: {taken.detail}"
                    await writing(parts, partial(retention_runs.give_up, run=run_id, error=why))
                raise
        await pause(control_of(parts), 1.0)


async def _carry_out(parts: Services, terms: RetentionTerms, run_id: UUID | None, control: Control) -> str:
    """Do a run that has the duty, and end its row whatever happens; only a mover that stops leaves that to others."""

    def begin(session: Session) -> RetentionRun:
        row = retention_runs.begin_run(session, terms, run_id, parts.owner, this_run())
        retention_runs.end_abandoned(session, row.id)
        return row

    try:
        row = await writing(parts, begin)
    except LeaseLost as lost:
        raise Abort(lost.detail) from lost  # another flow run has begun it, and says how it ended
    terms = RetentionTerms(row.dry_run, row.rule, row.max_objects, row.max_bytes)
    report = Report()
    try:
        rules = await threaded(control, load_rules, parts.settings.retention_file)
        if terms.dry_run:
            _, report = await threaded(control, plan, parts.database, rules, parts.machines, terms)
        else:
            await _act(parts, row.id, rules, terms, control, report)
    except asyncio.CancelledError:
        raise
    except DataManagerError as error:
        await _end(parts, row.id, report, f"{error.code}: {error.detail}")
        raise
    except Exception as error:
        await _end(parts, row.id, report, f"{InternalError.code}: unexpected {type(error).__name__}")
        raise
    return await _end(parts, row.id, report, None)


async def _act(
    parts: Services, run: UUID, rules: RetentionRules, terms: RetentionTerms, control: Control, report: Report
) -> None:
    def decider() -> Decider:
        with parts.database.read() as session:
            return make_decider(session, rules, parts.machines, terms)

    log = get_run_logger()
    work = Retaining(parts, run, rules, await threaded(control, decider), control, log, report)
    await work.work()


async def _end(parts: Services, run: UUID, report: Report, error: str | None) -> str:
    """End the run's row, tell of it, forget what is old, and leave the table on the run's page."""
    row = await writing(
        parts,
        lambda session: retention_runs.end_run(
            session, run, counts=report.counts, lines=report.lines, error=error, truncated=report.truncated
        ),
    )
    parts.notify(f"ended:{run}")

    def forget() -> None:
        keep = parts.settings.keep_transfers
        with parts.database.write() as session:
            before = now(session) - keep
            retention_runs.prune_runs(session, before)
            marks.prune_marks(session, before)

    await asyncio.to_thread(forget)
    return await show_run(row)
