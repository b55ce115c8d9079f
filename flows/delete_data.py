"""The flow that deletes an object's file; its row stays, DELETED."""

from __future__ import annotations

from uuid import UUID

from prefect import flow

from datamanager.domain.states import TransferKind
from flows.running.work import asked, working_on
from flows.steps import remove_file


@flow(name="delete", persist_result=False)
async def delete_data(uuid: UUID | None = None, transfer: UUID | None = None) -> str:
    """Delete the file of object `uuid`. A file that is gone already is fine.

    Args:
        uuid: The object; required.
        transfer: Leave it empty. The Data Manager itself gives this one, and nothing else.
    """
    order = None if transfer is not None else asked(TransferKind.DELETE, {}, uuid)
    async with working_on(TransferKind.DELETE, transfer, order):
        return await remove_file()
