"""The flow that fetches an archive from outside and makes its files objects, all in one run."""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from prefect import flow

from datamanager.domain.states import TransferKind
from datamanager.domain.timing import Priority
from flows.external.request import filled_in
from flows.runtime.lifecycle import working_on
from flows.steps.batch import conclude
from flows.steps.extract import fetch_and_extract


@flow(name="getexternal many", persist_result=False)
async def extract_data(
    url: str = "",
    extract: Literal["tar", "zip"] = "tar",
    decompress: Literal["", "gzip", "zstd"] = "",
    machine: str = "",
    path: str = "",
    group: str = "",
    description: str = "",
    size: int = 0,
    overwrite: bool = False,
    credential: str = "",
    priority: Priority = Priority.NORMAL,
    deadline: str = "",
    transfer: UUID | None = None,
) -> str:
    """Fetch the archive at `url`, and make each file in it an object below `path` on `machine`.

    Args:
        url: What to fetch; required.
        extract: What it is: a tar or a zip file.
        decompress: How the tar file is compressed; empty means not at all.
        machine: The machine that its files are to go to; required.
        path: The directory there, below the machine's base directory.
        group: What they belong to: fire, disease, space weather.
        description: What they are.
        size: Bytes of the archive that must arrive; 0 means unknown.
        overwrite: Replace files there that are not registered.
        credential: Name of a stored credential. Secrets themselves can't be given here, where all can read them.
        priority: Which goes first where transfers wait for each other: high, normal or low.
        deadline: When it must have ended: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means never.
        transfer: Leave it empty. The Data Manager itself gives this one, and nothing else.
    """
    order = None
    if transfer is None:
        order = filled_in(
            TransferKind.GETEXTERNAL_MANY,
            url,
            {"extract": extract, "decompress": decompress, "credential": credential},
            machine=machine,
            path=path,
            group=group,
            description=description,
            size=size,
            overwrite=overwrite,
            priority=priority,
            deadline=deadline,
        )
    async with working_on(TransferKind.GETEXTERNAL_MANY, transfer, order):
        await fetch_and_extract()
        return await conclude()
