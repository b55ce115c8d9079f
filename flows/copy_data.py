"""The flow that copies an object to another place, as a new object."""

from __future__ import annotations

from uuid import UUID

from prefect import flow

from datamanager.domain.requests import CopyRequest
from datamanager.domain.states import TransferKind
from flows.running.progress import summarise
from flows.running.work import working_on
from flows.steps import commit, deliver, probe
from models.transfers import Order


@flow(name="copy", persist_result=False)
async def copy_data(
    transfer: UUID | None = None,
    uuid: UUID | None = None,
    machine: str | None = None,
    dest: str | None = None,
    overwrite: bool = False,
) -> str:
    """Copy object `uuid` to `dest` on `machine`; return the copy's identifier.

    The Data Manager itself gives `transfer` only. From the Prefect UI or a schedule, leave it empty and fill in the
    rest.
    """
    order = None
    if transfer is None:
        request = CopyRequest.model_validate({"machine": machine, "dest": dest, "overwrite": overwrite})
        order = Order(TransferKind.COPY, request, object_id=uuid)
    async with working_on(TransferKind.COPY, transfer, order) as work:
        found = await probe()
        intent, verified = await deliver(found)
        copy = await commit(intent, verified)
        await summarise(work, found, intent, verified)
    return copy
