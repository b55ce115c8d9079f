"""The flows that copy objects to another place, as new objects: one, or all below a directory in one run."""

from __future__ import annotations

from uuid import UUID

from prefect import flow

from datamanager.domain.fields import Priority
from datamanager.domain.states import TransferKind
from flows.runtime.lifecycle import working_on
from flows.steps.batch import perform_batch
from flows.steps.single import deliver, probe


@flow(name="copy", persist_result=False)
async def copy_data(
    uuid: UUID | None = None,
    machine: str = "",
    dest: str = "",
    overwrite: bool = False,
    priority: Priority = Priority.NORMAL,
    deadline: str = "",
    transfer: UUID | None = None,
) -> str:
    """Copy object `uuid` to `dest` on `machine`; return the copy's identifier.

    Args:
        uuid: The object; required.
        machine: The destination machine; required.
        dest: The destination path with the file name, below the machine's base directory; required.
        overwrite: Replace an unregistered file at the destination.
        priority: Priority in the queue: high, normal or low.
        deadline: Time by which it must end: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means none.
        transfer: Leave it empty. It is set by the Data Manager.
    """
    async with working_on(TransferKind.COPY, locals()):
        return await deliver(await probe())


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
        source_machine: The machine of the objects; required.
        directory: The directory of the objects, below the machine's base directory; empty means all.
        machine: The destination machine; required.
        dest: The destination directory.
        overwrite: Replace unregistered files at the destination.
        priority: Priority in the queue: high, normal or low.
        deadline: Time by which it must end: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means none.
        transfer: Leave it empty. It is set by the Data Manager.
    """
    return await perform_batch(TransferKind.COPY_MANY, locals())
