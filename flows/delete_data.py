"""The flow that deletes an object's file; its row stays, DELETED."""

from __future__ import annotations

from uuid import UUID

from prefect import flow

from datamanager.domain.states import TransferKind
from datamanager.domain.timing import Priority
from flows.runtime.lifecycle import order_unless, working_on
from flows.steps.single import remove_file


@flow(name="delete", persist_result=False)
async def delete_data(
    uuid: UUID | None = None,
    priority: Priority = Priority.NORMAL,
    deadline: str = "",
    transfer: UUID | None = None,
) -> str:
    """Delete the file of object `uuid`. A file that is gone already is fine.

    Args:
        uuid: The object; required.
        priority: Which goes first where transfers wait for each other: high, normal or low.
        deadline: When it must have ended: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means never.
        transfer: Leave it empty. The Data Manager itself gives this one, and nothing else.
    """
    fields = {"priority": priority, "deadline": deadline}
    order = order_unless(transfer, TransferKind.DELETE, fields, uuid)
    async with working_on(TransferKind.DELETE, transfer, order):
        return await remove_file()
