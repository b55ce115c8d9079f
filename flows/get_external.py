"""The flow that fetches a URL to a machine, as a new object. Nothing is staged on the mover."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect import flow

from datamanager.domain.requests import GetExternalRequest
from datamanager.domain.states import TransferKind
from datamanager.errors import InternalError
from datamanager.sources import public_url
from flows.running.progress import summarise
from flows.running.work import working_on
from flows.steps import commit, deliver, probe
from models.transfers import Order


@flow(name="getexternal", persist_result=False)
async def get_external(
    transfer: UUID | None = None,
    url: str | None = None,
    machine: str | None = None,
    path: str = "",
    filename: str | None = None,
    group: str = "",
    description: str = "",
    size: int | None = None,
    overwrite: bool = False,
) -> str:
    """Fetch `url` to `path`/`filename` on `machine`; return the new object's identifier.

    The Data Manager itself gives `transfer` only. From the Prefect UI or a schedule, leave it empty and fill in the
    rest.
    """
    order = None
    if transfer is None:
        fields: dict[str, Any] = {
            "url": url,
            "protocol": (url or "").partition(":")[0],
            "machine": machine,
            "path": path,
            "filename": filename,
            "group": group,
            "description": description,
            "size": size,
            "overwrite": overwrite,
        }
        order = Order(TransferKind.GETEXTERNAL, GetExternalRequest.model_validate(fields))
    async with working_on(TransferKind.GETEXTERNAL, transfer, order) as work:
        if not isinstance(work.request, GetExternalRequest):
            raise InternalError(f"transfer {work.transfer} is no download")
        found = await probe()
        intent, verified = await deliver(found)
        new = await commit(intent, verified, public_url(work.request.url))
        await summarise(work, found, intent, verified)
    return new
