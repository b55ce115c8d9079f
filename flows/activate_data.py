"""The flows that bring archived objects back: one, or many in one run, those of one bundle together."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from prefect import flow

from datamanager.domain.states import TransferKind
from datamanager.domain.timing import Priority
from flows.runtime.lifecycle import order_unless, working_on
from flows.steps.archive import each, recall, stage_bundles
from flows.steps.batch import conclude


@flow(name="activate", persist_result=False)
async def activate_data(
    uuid: UUID | None = None,
    machine: str = "",
    dest: str = "",
    overwrite: bool = False,
    priority: Priority = Priority.NORMAL,
    deadline: str = "",
    transfer: UUID | None = None,
) -> str:
    """Bring object `uuid` back out of its archive.

    Args:
        uuid: The object; required.
        machine: The machine that it is to go to; empty means where it was.
        dest: The path there, with the file's name, below the machine's base directory; empty means the one it had.
        overwrite: Replace a file there that is not registered.
        priority: Which goes first where transfers wait for each other: high, normal or low.
        deadline: When it must have ended: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means never.
        transfer: Leave it empty. The Data Manager itself gives this one, and nothing else.
    """
    fields = {"machine": machine, "dest": dest, "overwrite": overwrite, "priority": priority, "deadline": deadline}
    return await _perform(TransferKind.ACTIVATE, transfer, fields, uuid)


@flow(name="activate many", persist_result=False)
async def activate_many(
    source_machine: str = "",
    directory: str = "",
    machine: str = "",
    overwrite: bool = False,
    priority: Priority = Priority.NORMAL,
    deadline: str = "",
    transfer: UUID | None = None,
) -> str:
    """Bring back every archived object that was below `directory` of `source_machine`.

    Args:
        source_machine: The machine where the objects were; required.
        directory: The directory there, below the machine's base directory; empty means all.
        machine: The machine that they are to go to; empty means where they were.
        overwrite: Replace files there that are not registered.
        priority: Which goes first where transfers wait for each other: high, normal or low.
        deadline: When it must have ended: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means never.
        transfer: Leave it empty. The Data Manager itself gives this one, and nothing else.
    """
    below = {"directory": {"machine": source_machine, "path": directory}}
    fields = below | {"machine": machine, "overwrite": overwrite, "priority": priority, "deadline": deadline}
    return await _perform(TransferKind.ACTIVATE_MANY, transfer, fields)


async def _perform(kind: TransferKind, transfer: UUID | None, fields: dict[str, Any], uuid: UUID | None = None) -> str:
    async with working_on(kind, transfer, order_unless(transfer, kind, fields, uuid)):
        groups, staging = await stage_bundles()
        await each(groups, recall)
        if staging is not None:
            raise staging
        return await conclude()
