"""The flow that fetches a URL to a machine, as a new object. Nothing is staged on the mover."""

from __future__ import annotations

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
