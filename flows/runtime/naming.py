"""How runs are called, so that a person in the Prefect UI can read what happens: `copy weather.nc archer2 → cirrus`."""

from __future__ import annotations

import logging
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectException

from datamanager.domain.states import TransferKind
from models.tables import Transfer

NAME_MAX = 200
log = logging.getLogger(__name__)


def run_name(row: Transfer) -> str:
    """Return the run's name for a transfer."""
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


def run_tags(row: Transfer) -> list[str]:
    """Return the run's tags: kind, machines, group."""
    tags = [row.kind, *(m for m in (row.source_machine, row.destination_machine) if m), row.group]
    return sorted({tag[:100] for tag in tags if tag})


async def describe_run(flow_run: UUID, row: Transfer) -> None:
    """Name and tag a run that was begun in the UI or by a schedule, now that its transfer is known."""
    try:
        async with get_client() as client:
            await client.update_flow_run(flow_run, name=run_name(row), tags=run_tags(row))
    except (httpx.HTTPError, PrefectException) as exc:
        log.warning("run %s can't be named: %s", flow_run, exc)
