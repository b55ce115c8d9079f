"""What a person sees of a transfer in the Prefect UI: the run's name and tags, a bar while bytes move, a summary."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from uuid import UUID

import httpx
from prefect.artifacts import acreate_markdown_artifact, acreate_progress_artifact, aupdate_progress_artifact
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException

from datamanager.domain.states import TransferKind, TransferStatus, Verified
from datamanager.engine.attempt import Found, Intent
from datamanager.engine.control import Control
from datamanager.sources.terms.urls import public_url
from flows.runtime.transfer_run import TransferRun
from models.database import read
from models.tables import Transfer
from models.transfers.items import count_items, select_items

SHOW_AFTER = 5.0
"""Seconds until a transfer is worth artifacts on its run's page, each of which is a request: a bar, a summary."""
FAILED_SHOWN = 50  # failed items of a batch
GROUPS_SHOWN = 20  # groups, and persons, of a shared run that are tags of it
NAME_MAX = 200  # characters of a run's name
SHOWN_WITHIN = (httpx.HTTPError, PrefectException)
log = logging.getLogger(__name__)

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


class ProgressArtifact:
    """The progress bar of one run; made at the first `show`. A Prefect server that is away costs the bar, not the
    transfer.
    """

    def __init__(self) -> None:
        self._id: UUID | None = None

    async def show(self, control: Control, seconds: float) -> None:
        """Bring the bar up to date; `seconds` since the run began."""
        done, total = control.bytes_done, control.bytes_total
        percent = 100.0 * done / total if total else 0.0
        text = f"{control.phase}: {human(done)} of {human(total)}, {human(done / seconds)}/s"
        try:
            if self._id is None:
                self._id = await acreate_progress_artifact(min(percent, 100.0), description=text)
            else:
                await aupdate_progress_artifact(self._id, min(percent, 100.0), description=text)
        except SHOWN_WITHIN as exc:
            log.warning("progress can't be shown: %s", exc)


async def show_summary(title: str, rows: dict[str, str]) -> None:
    """Leave a table of what was done on the run's page."""
    lines = [f"## {plain(title)}", "", "| what | |", "|---|---|"]
    lines += [f"| {plain(name)} | {plain(value)} |" for name, value in rows.items()]
    try:
        await acreate_markdown_artifact("\n".join(lines), description=title)
    except SHOWN_WITHIN as exc:
        log.warning("the summary can't be shown: %s", exc)


async def summarise(run: TransferRun, found: Found, intent: Intent, verified: Verified) -> None:
    """Leave the summary of a file that arrived: how much, how long, how fast, what was proved, and where it is. That of
    a short run is a line of its log.
    """
    attempt, seconds = run.attempt(), run.seconds
    rows = {
        "From": str(attempt.source.place) if attempt.source else public_url(str(getattr(run.request, "url", ""))),
        "To": str(attempt.target.place),
        "Size": f"{human(intent.size)} ({intent.size:,} bytes)",
        "Time": f"{seconds:.2f} s",
        "Speed": f"{intent.size / seconds / 1e6:.1f} MB/s" if seconds else "",
        "Way": found.route.value,
        "Checksum": f"sha256:{intent.sha256}" if intent.sha256 else "not taken",
        "Verified": verified.value,
    }
    if seconds < SHOW_AFTER:
        run.log.info("%s", ", ".join(f"{name}: {value}" for name, value in rows.items()))
    else:
        await show_summary(run_name(run.row), rows)


async def summarise_items(run: TransferRun) -> None:
    """Leave the summary of a batch: how many items ended how, and the first of those that failed."""

    database, transfer = run.parts.database, run.transfer
    failed = await read(database, select_items, transfer, status=TransferStatus.ERROR, limit=FAILED_SHOWN)
    counts = await read(database, count_items, transfer)
    rows = {
        "Items": f"{counts.total:,}",
        "Done": f"{counts.complete:,}, of which {counts.skipped:,} already present",
        "Failed": f"{counts.error:,}",
        "Bytes transferred": human(run.control.bytes_done),
        "Time": f"{run.seconds:.2f} s",
    }
    rows |= {f"Item {one.number}: {one.dest}": f"{one.error_code}: {one.error_detail}" for one in failed}
    await show_summary(run_name(run.row), rows)


def human(size: float | None) -> str:
    """Say a number of bytes to a person, in powers of 1000."""
    if size is None:
        return "unknown"
    value = float(size)
    for unit in _UNITS:
        if value < 1000 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return str(size)


def plain(text: str) -> str:
    """Return a text from outside, as a cell of a table shows it."""
    # file names come from clients: keep them from being read as Markdown or HTML
    shown = " ".join(text.split())
    for sign in "\\`*_{}[]<>|#":
        shown = shown.replace(sign, f"\\{sign}" if sign not in "<>" else {"<": "&lt;", ">": "&gt;"}[sign])
    return shown


def run_name(row: Transfer) -> str:
    """Return the name of a transfer's run: `copy weather.nc archer2 → cirrus`."""
    kind = TransferKind(row.kind)
    places = [row.source_place, row.destination_place]
    path = next(filter(None, reversed(places) if kind is TransferKind.ACTIVATE else places), "")  # not the bundle's
    name = path.rpartition("/")[2]
    if kind.many and kind is not TransferKind.GETEXTERNAL_MANY:
        verb, count = kind.value.partition("_")[0], row.request.get("count", "many")
        ends = f"{row.source_machine or 'several'} → {row.destination_machine or 'several'}"
        return f"{verb} {count} objects {ends}"[:NAME_MAX]
    if kind is TransferKind.DELETE:
        text = f"delete {name} on {row.source_machine or 'its archive'}"
    elif kind is TransferKind.GETEXTERNAL_MANY:
        text = f"getexternal files of {row.request.get('filename', '')} → {row.destination_machine}"
    elif kind is TransferKind.GETEXTERNAL:
        text = f"getexternal {name} → {row.destination_machine}"
    else:
        text = f"{kind} {name} {row.source_machine} → {row.destination_machine}"
    return " ".join(text.split())[:NAME_MAX]


def shared_name(rows: Sequence[Transfer]) -> str:
    """Return the name of a shared run: `copy ×137 archer2 → cirrus`."""
    first = rows[0]
    return f"{first.kind} ×{len(rows)} {first.source_machine} → {first.destination_machine}"[:NAME_MAX]


def shared_tags(rows: Sequence[Transfer]) -> list[str]:
    """Return a shared run's tags: kind, machines, groups, persons."""
    groups, persons = ({getattr(row, name) for row in rows} for name in ("group", "created_by"))
    shown = sorted(groups)[:GROUPS_SHOWN], sorted(persons, key=str)[:GROUPS_SHOWN]
    mine = [row for row in rows if row.group in shown[0] and row.created_by in shown[1]]
    return sorted({tag for row in mine for tag in run_tags(row)})


def run_tags(row: Transfer) -> list[str]:
    """Return the run's tags: kind, machines, group, and who requested it."""
    tags = [row.kind, *(m for m in (row.source_machine, row.destination_machine) if m), row.group]
    tags += [f"person:{row.created_by}"] if row.created_by is not None else []
    return sorted({tag[:100] for tag in tags if tag})


async def describe_run(flow_run: UUID, row: Transfer) -> None:
    """Name and tag a run that was begun in the UI or by a schedule, now that its transfer is known."""
    try:
        async with get_client() as client:
            await client.update_flow_run(flow_run, name=run_name(row), tags=run_tags(row))
    except (httpx.HTTPError, PrefectException) as exc:
        log.warning("run %s can't be named: %s", flow_run, exc)
