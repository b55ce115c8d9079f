"""The flow that deletes an object's file; its row stays, DELETED."""

from __future__ import annotations

from uuid import UUID

from prefect import flow

from datamanager.domain.fields import Priority
from datamanager.domain.states import TransferKind
from flows.runtime.lifecycle import working_on
from flows.steps.single import remove_file


@flow(name="delete", persist_result=False)
async def delete_data(
    uuid: UUID | None = None,
    force: bool = False,
    priority: Priority = Priority.NORMAL,
    deadline: str = "",
    transfer: UUID | None = None,
) -> str:
    """Delete the file of object `uuid`. A missing file is not an error.

    Args:
        uuid: The object; required.
        force: Delete the file even if its size or checksum is not what the catalogue has.
        priority: Priority in the queue: high, normal or low.
        deadline: Time by which it must end: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means none.
        transfer: Leave it empty. It is set by the Data Manager.
    """
    async with working_on(TransferKind.DELETE, locals()):
        return await remove_file()
