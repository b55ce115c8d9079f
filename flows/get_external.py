"""The flows that fetch a URL to a machine: as a new object, or as an archive whose files become objects.

Nothing is staged on the mover.
"""

from __future__ import annotations

from typing import Literal
from uuid import UUID

from prefect import flow

from datamanager.domain.fields import Priority
from datamanager.domain.requests import GetExternalRequest
from datamanager.domain.states import TransferKind
from datamanager.errors import InternalError
from datamanager.sources.terms.urls import public_url
from flows.external.unchanged import unchanged
from flows.runtime.lifecycle import working_on
from flows.steps.batch import conclude
from flows.steps.extract import fetch_and_extract
from flows.steps.single import deliver, probe


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
    """Download `url` to `path`/`filename` on `machine`; return the new object's identifier.

    Args:
        url: The URL to download; required.
        machine: The destination machine; required.
        path: The destination directory, below the machine's base directory.
        filename: The file name; empty means the last segment of the URL.
        group: Group of the object, such as fire, disease, space weather.
        description: Description of the object.
        size: Expected size in bytes; 0 means unknown.
        overwrite: Replace an unregistered file at the destination.
        credential: Name of a stored credential. Secrets cannot be given here, as all users can read them.
        priority: Priority in the queue: high, normal or low.
        deadline: Time by which it must end: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means none.
        transfer: Leave it empty. It is set by the Data Manager.
    """
    async with working_on(TransferKind.GETEXTERNAL, locals()) as work:
        if not isinstance(work.request, GetExternalRequest):
            raise InternalError(f"transfer {work.transfer} is not a download")
        found = await probe()
        if found.published is None and (known := await unchanged(work)) is not None:
            return known
        return await deliver(found, public_url(work.request.url))


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
    """Download the archive at `url`, and make each of its files an object below `path` on `machine`.

    Args:
        url: The URL to download; required.
        extract: Format of the archive: tar or zip.
        decompress: Compression of the tar file; empty means none.
        machine: The destination machine; required.
        path: The destination directory, below the machine's base directory.
        group: Group of the objects, such as fire, disease, space weather.
        description: Description of the objects.
        size: Expected size of the archive in bytes; 0 means unknown.
        overwrite: Replace unregistered files at the destination.
        credential: Name of a stored credential. Secrets cannot be given here, as all users can read them.
        priority: Priority in the queue: high, normal or low.
        deadline: Time by which it must end: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means none.
        transfer: Leave it empty. It is set by the Data Manager.
    """
    async with working_on(TransferKind.GETEXTERNAL_MANY, locals()):
        await fetch_and_extract()
        return await conclude()
