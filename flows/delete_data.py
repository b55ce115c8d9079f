"""The flow that deletes an object's file; its row stays, DELETED."""

from __future__ import annotations

from uuid import UUID

from prefect import flow

from datamanager.domain.requests import DeleteRequest
from datamanager.domain.states import TransferKind
from flows.running.work import working_on
from flows.steps import remove_file
from models.transfers import Order


@flow(name="delete", persist_result=False)
async def delete_data(transfer: UUID | None = None, uuid: UUID | None = None) -> str:
    """Delete the file of object `uuid`. A file that is gone already is fine.

    The Data Manager itself gives `transfer` only. From the Prefect UI or a schedule, leave it empty and fill in the
    rest.
    """
    order = None if transfer is not None else Order(TransferKind.DELETE, DeleteRequest(), object_id=uuid)
    async with working_on(TransferKind.DELETE, transfer, order):
        return await remove_file()
