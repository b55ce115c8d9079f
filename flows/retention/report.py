"""What a person sees of a run of retention in the Prefect UI: a table of what was done and spared, the sums above."""

from __future__ import annotations

from typing import Any

from flows.audit.report import show_table
from flows.runtime.progress import human
from models.retention.report import total
from models.tables import RetentionRun

TOP = 100
"""Objects that the artifact shows; more of them are at /DM/retention/runs/{id}."""


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
