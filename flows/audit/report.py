"""What a person sees of an audit and a sweep in the Prefect UI: a table of the first lines, the counts above it."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from prefect.artifacts import acreate_table_artifact

from datamanager.transports.values import shown
from flows.runtime.progress import SHOWN_WITHIN, human
from flows.runtime.services import Services
from models.access.visibility import ALL
from models.audit import findings as audit_findings
from models.audit.runs import get_audit
from models.database import read
from models.tables import Audit

TOP = 100
"""Findings that the artifact shows; all of them are at /DM/audits/{id}/findings."""
log = logging.getLogger(__name__)


async def show_audit(parts: Services, audit: UUID) -> str:
    """Leave the report of an audit on the run's page; return it in one line."""

    row = await read(parts.database, get_audit, audit, ALL)
    findings = await read(parts.database, audit_findings.page, audit, limit=TOP)
    text = in_words(row)
    lines = [
        {
            "kind": one.kind,
            "place": shown(one.place),
            "expected": _facts(one.expected),
            "found": _facts(one.found),
            "object": str(one.object_id or ""),
        }
        for one in findings
    ]
    await show_table(f"audit-{row.machine}", lines, f"{text}\n\nAll findings: `GET /DM/audits/{row.id}/findings`")
    return text


def in_words(row: Audit) -> str:
    """Say what an audit found, in one line."""
    counts = {"lost": 0, "changed": 0, "dark": 0, "found": 0, "objects": 0, **row.counts}
    words = ", ".join(f"{counts[kind]:,} {kind}" for kind in ("lost", "changed", "dark", "found"))
    text = f"{row.machine}: {words} of {counts['objects']:,} objects"
    if row.scrubbed_objects:
        text += f"; {row.scrubbed_objects:,} files hashed ({human(row.scrubbed_bytes)})"
    if row.suspicious:
        text += "; SUSPICIOUS: nothing was changed"
    elif row.error_detail:
        text = f"{row.machine}: {row.error_code}: {row.error_detail}"
    return text


async def show_table(key: str, lines: Sequence[Mapping[str, Any]], description: str) -> None:
    """Leave a table on the run's page; a Prefect that is away costs the table, not the work."""
    name = re.sub(r"[^a-z0-9]+", "-", key.lower()).strip("-")
    try:
        await acreate_table_artifact([dict(line) for line in lines], key=name, description=description)
    except SHOWN_WITHIN as exc:
        log.warning("the table can't be shown: %s", exc)


def _facts(facts: Mapping[str, Any]) -> str:
    wanted = ("size", "sha256", "members", "mtime")
    return ", ".join(f"{name} {facts[name]}" for name in wanted if facts.get(name) is not None)
