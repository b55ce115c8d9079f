"""The flows that fetch a URL to a machine: as a new object, or as an archive whose files become objects.

Nothing is staged on the mover.
"""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from prefect import flow

from datamanager.domain.requests import GetExternalRequest
from datamanager.domain.states import TransferKind
from datamanager.domain.timing import Priority
from datamanager.errors import InternalError
from datamanager.sources.terms.urls import public_url
from flows.external.request import filled_in
from flows.external.unchanged import unchanged
from flows.runtime.lifecycle import working_on
from flows.runtime.progress import summarise
from flows.steps.batch import conclude
from flows.steps.extract import fetch_and_extract
from flows.steps.single import commit, deliver, probe


@flow(name="getexternal", persist_result=False)
async def get_external(
    url: str = "",
    machine: str = "",
    path: str = "",
    filename: str = "",
    group: str = "",
    description: str = "",
    size: int = 0,
    overwrite: bool = False,
    credential: str = "",
    priority: Priority = Priority.NORMAL,
    deadline: str = "",
    transfer: UUID | None = None,
) -> str:
    """Fetch `url` to `path`/`filename` on `machine`; return the new object's identifier.

    Args:
        url: What to fetch, by http or https; required.
        machine: The machine that it is to go to; required.
        path: The directory there, below the machine's base directory.
        filename: The file's name there; empty means the last part of the URL.
        group: What it belongs to: fire, disease, space weather.
        description: What it is.
        size: Bytes that must arrive; 0 means unknown.
        overwrite: Replace a file there that is not registered.
        credential: Name of a stored credential. Secrets themselves can't be given here, where all can read them.
        priority: Which goes first where transfers wait for each other: high, normal or low.
        deadline: When it must have ended: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means never.
        transfer: Leave it empty. The Data Manager itself gives this one, and nothing else.
    """
    order = None
    if transfer is None:
        order = filled_in(
            TransferKind.GETEXTERNAL,
            url,
            {"credential": credential},
            machine=machine,
            path=path,
            filename=filename,
            group=group,
            description=description,
            size=size,
            overwrite=overwrite,
            priority=priority,
            deadline=deadline,
        )
    async with working_on(TransferKind.GETEXTERNAL, transfer, order) as work:
        if not isinstance(work.request, GetExternalRequest):
            raise InternalError(f"transfer {work.transfer} is no download")
        found = await probe()
        if found.published is None and (known := await unchanged(work)) is not None:
            return known
        intent, verified = await deliver(found)
        new = await commit(intent, verified, public_url(work.request.url))
        await summarise(work, found, intent, verified)
    return new


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
