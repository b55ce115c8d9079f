"""The flows that copy or move many objects in one run: a task for some hundred items; each item's row has its status.

An item that fails does so alone. A batch that was interrupted, or is asked for again, does only what is missing.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect import flow

from datamanager.domain.states import TransferKind
from datamanager.domain.timing import Priority
from datamanager.errors import DataManagerError
from flows.runtime.lifecycle import order_unless, working_on
from flows.runtime.tasks import require_items_fault
from flows.steps.batch import carry_items, conclude, give_up_items, next_items


@flow(name="copy many", persist_result=False)
async def copy_many(
    source_machine: str = "",
    directory: str = "",
    machine: str = "",
    dest: str = "",
    overwrite: bool = False,
    priority: Priority = Priority.NORMAL,
    deadline: str = "",
    transfer: UUID | None = None,
) -> str:
    """Copy every object below `directory` of `source_machine` to below `dest` on `machine`.

    Args:
        source_machine: The machine where the objects are; required.
        directory: The directory there, below the machine's base directory; empty means all.
        machine: The machine that they are to go to; required.
        dest: The directory there.
        overwrite: Replace files there that are not registered.
        priority: Which goes first where transfers wait for each other: high, normal or low.
        deadline: When it must have ended: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means never.
        transfer: Leave it empty. The Data Manager itself gives this one, and nothing else.
    """
    fields = _fields(source_machine, directory, machine, dest, overwrite, priority, deadline)
    return await _perform(TransferKind.COPY_MANY, transfer, fields)


@flow(name="move many", persist_result=False)
async def move_many(
    source_machine: str = "",
    directory: str = "",
    machine: str = "",
    dest: str = "",
    overwrite: bool = False,
    priority: Priority = Priority.NORMAL,
    deadline: str = "",
    transfer: UUID | None = None,
) -> str:
    """Move every object below `directory` of `source_machine` to below `dest` on `machine`.

    Args:
        source_machine: The machine where the objects are; required.
        directory: The directory there, below the machine's base directory; empty means all.
        machine: The machine that they are to go to; required.
        dest: The directory there.
        overwrite: Replace files there that are not registered.
        priority: Which goes first where transfers wait for each other: high, normal or low.
        deadline: When it must have ended: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means never.
        transfer: Leave it empty. The Data Manager itself gives this one, and nothing else.
    """
    fields = _fields(source_machine, directory, machine, dest, overwrite, priority, deadline)
    return await _perform(TransferKind.MOVE_MANY, transfer, fields)


async def _perform(kind: TransferKind, transfer: UUID | None, fields: dict[str, Any]) -> str:
    async with working_on(kind, transfer, order_unless(transfer, kind, fields)):
        await _carry_all()
        return await conclude()


async def _carry_all() -> None:
    last = -1
    while (numbers := await next_items(last)) is not None:
        first, last = numbers
        try:
            await carry_items(first, last)
        except DataManagerError as error:
            require_items_fault(error)
            await give_up_items(first, last, error)


def _fields(
    source_machine: str, directory: str, machine: str, dest: str, overwrite: bool, priority: Priority, deadline: str
) -> dict[str, Any]:
    return {
        "directory": {"machine": source_machine, "path": directory},
        "machine": machine,
        "dest": dest,
        "overwrite": overwrite,
        "priority": priority,
        "deadline": deadline,
    }
