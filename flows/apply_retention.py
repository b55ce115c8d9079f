"""The flow that carries out the rules of retention.toml, and its report in Prefect. It takes no transfer's slot."""

from __future__ import annotations

import asyncio
import time
from typing import Any
from uuid import UUID

from prefect import flow
from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from sqlalchemy.orm import Session

from datamanager.domain.retention_rules import RetentionRules, load_rules
from datamanager.engine.control import Control
from datamanager.errors import DataManagerError, DutyTaken, InternalError, LeaseLost
from flows.audit.report import show_table
from flows.retention.run import Retaining
from flows.runtime.maintenance import control_of, pause, sole_run, this_run, threaded
from flows.runtime.progress import human
from flows.runtime.services import Services, services
from models.access.permission import kept_of
from models.access.standing import require_standing
from models.database import now, read, write
from models.retention import marks
from models.retention import runs as retention_runs
from models.retention.report import Report, make_decider, plan, total
from models.retention.runs import DUTY, RetentionTerms
from models.tables import RetentionRun

PATIENCE = 60.0
"""Seconds that a run waits for another one to end, or for the lease of a dead one to run out."""

TOP = 100
"""Objects that the artifact shows; more of them are at /DM/retention/runs/{id}."""


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
            async with sole_run(parts, DUTY) as control:
                return await _carry_out(parts, terms, run_id, control)
        except DutyTaken as taken:
            if time.monotonic() >= until:
                if run_id is not None:
                    why = f"{taken.code}: {taken.detail}"
                    await write(parts.database, retention_runs.give_up, run_id, why)
                raise
        await pause(control_of(parts), 1.0)


async def _carry_out(parts: Services, terms: RetentionTerms, run_id: UUID | None, control: Control) -> str:
    """Do a run that has the lease, and end its row whatever happens; only a mover that stops leaves that to others."""

    def begin(session: Session) -> RetentionRun:
        row = retention_runs.begin_run(session, terms, run_id, parts.owner, this_run())
        retention_runs.end_abandoned(session, row.id)
        return row

    try:
        row = await write(parts.database, begin)
    except LeaseLost as lost:
        raise Abort(lost.detail) from lost  # another flow run has begun it, and says how it ended
    terms = RetentionTerms(row.dry_run, row.rule, row.max_objects, row.max_bytes)
    report = Report()
    try:
        by = kept_of(row.grant)
        await read(parts.database, require_standing, by, *parts.in_force)
        rules = await threaded(control, load_rules, parts.settings.retention_file)
        if terms.dry_run:
            _, report = await threaded(control, plan, parts.database, rules, parts.machines, terms, by)
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
    decider = await read(parts.database, make_decider, rules, parts.machines, terms)
    await Retaining(parts, run, rules, decider, control, get_run_logger(), report).work()


async def _end(parts: Services, run: UUID, report: Report, error: str | None) -> str:
    """End the run's row with an event, forget what is old, and leave the table on the run's page."""
    counts, lines, truncated = report.counts, report.lines, report.truncated
    row = await write(
        parts.database, retention_runs.end_run, run, counts=counts, lines=lines, error=error, truncated=truncated
    )
    parts.notify(f"ended:{run}")

    def forget(session: Session) -> None:
        before = now(session) - parts.settings.keep_transfers
        retention_runs.prune_runs(session, before)
        marks.prune_marks(session, before)

    await write(parts.database, forget)
    return await show_run(row)


async def show_run(row: RetentionRun) -> str:
    """Leave the report of a run on its flow run's page; return it in one line."""
    text = in_words(row)
    lines = [_line(one, one["objects"], "(all)") for one in row.counts]
    lines += [_line(one, 1, f"{one['object']} {one['machine']}:{one['place']}") for one in row.lines[:TOP]]
    await show_table("retention", lines, f"{text}\n\nMore: `GET /DM/retention/runs/{row.id}`")
    return text


def in_words(row: RetentionRun) -> str:
    """Say what a run did, in one line."""
    acted, size = total(row.counts, "act")
    marked, spared = total(row.counts, "mark")[0], total(row.counts, "spare")[0]
    failed, voided = total(row.counts, "failed")[0], total(row.counts, "void")[0]
    if row.dry_run:
        text = f"dry run: {acted:,} objects ({human(size)}) would be acted on, {marked:,} marked, {spared:,} spared"
    else:
        text = f"{acted:,} objects acted on, {marked:,} marked, {spared:,} spared, {human(row.bytes_freed)} freed"
    text += f", {failed:,} failed" if failed else ""
    text += f", {voided:,} marks removed" if voided else ""
    text += f", {row.pending:,} pending" if row.pending else ""
    return f"{text}; {row.error}" if row.error else text


def _line(one: dict[str, Any], objects: int, what: str) -> dict[str, Any]:
    return {
        "rule": one["rule"],
        "action": one["action"],
        "what": one["verdict"],
        "why": one.get("detail") or one["reason"] or "",
        "objects": objects,
        "bytes": human(one["bytes"]),  # unknown for None
        "object": what,
    }
