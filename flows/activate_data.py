"""The flows that bring archived objects back: one, or many in one run, those of one bundle together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from prefect import flow

from datamanager.domain.fields import Priority
from datamanager.domain.states import TransferKind
from flows.runtime.lifecycle import working_on
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
    """Activate archived object `uuid`.

    Args:
        uuid: The object; required.
        machine: The destination machine; empty means its old machine.
        dest: The destination path with the file name, below the base directory; empty means its old path.
        overwrite: Replace an unregistered file at the destination.
        priority: Priority in the queue: high, normal or low.
        deadline: Time by which it must end: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means none.
        transfer: Leave it empty. It is set by the Data Manager.
    """
    return await _perform(TransferKind.ACTIVATE, locals())


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
    """Activate every archived object below `directory` of `source_machine`.

    Args:
        source_machine: The old machine of the objects; required.
        directory: The directory of the objects, below the machine's base directory; empty means all.
        machine: The destination machine; empty means their old machines.
        overwrite: Replace unregistered files at the destination.
        priority: Priority in the queue: high, normal or low.
        deadline: Time by which it must end: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means none.
        transfer: Leave it empty. It is set by the Data Manager.
    """
    return await _perform(TransferKind.ACTIVATE_MANY, locals())


async def _perform(kind: TransferKind, form: Mapping[str, Any]) -> str:
    async with working_on(kind, form):
        groups, staging = await stage_bundles()
        await each(groups, recall)
        if staging is not None:
            raise staging
        return await conclude()
