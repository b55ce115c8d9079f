"""The flows that move objects to another place: one, or all below a directory in one run. Identifiers stay."""

from __future__ import annotations

from uuid import UUID

from prefect import flow

from datamanager.domain.fields import Priority
from datamanager.domain.states import TransferKind
from datamanager.errors import DataManagerError, LeaseLost, PathReplaced, SourceNotRemoved
from flows.runtime.lifecycle import working_on
from flows.runtime.transfer_run import TransferRun
from flows.steps.batch import perform_batch
from flows.steps.single import deliver, probe, remove_source


@flow(name="move", persist_result=False)
async def move_data(
    uuid: UUID | None = None,
    machine: str = "",
    dest: str = "",
    overwrite: bool = False,
    priority: Priority = Priority.NORMAL,
    deadline: str = "",
    transfer: UUID | None = None,
) -> str:
    """Move object `uuid` to `dest` on `machine`.

    Args:
        uuid: The object; required.
        machine: The destination machine; required.
        dest: The destination path with the file name, below the machine's base directory; required.
        overwrite: Replace an unregistered file at the destination.
        priority: Priority in the queue: high, normal or low.
        deadline: Time by which it must end: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means none.
        transfer: Leave it empty. It is set by the Data Manager.
    """
    async with working_on(TransferKind.MOVE, locals()) as run:
        if not run.row.notes.get("committed"):
            await deliver(await probe())
        return await _finish(run)


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
        source_machine: The machine of the objects; required.
        directory: The directory of the objects, below the machine's base directory; empty means all.
        machine: The destination machine; required.
        dest: The destination directory.
        overwrite: Replace unregistered files at the destination.
        priority: Priority in the queue: high, normal or low.
        deadline: Time by which it must end: 2026-01-31T12:00:00Z, or a duration such as PT1H; empty means none.
        transfer: Leave it empty. It is set by the Data Manager.
    """
    return await perform_batch(TransferKind.MOVE_MANY, locals())


async def _finish(run: TransferRun) -> str:
    try:
        return await remove_source()
    except (LeaseLost, PathReplaced, SourceNotRemoved):
        raise
    except DataManagerError as error:
        if not await run.is_ended_by(error):
            raise  # it is tried again, here or on another mover
        target, origin = run.attempt().target.place, run.attempt().origin.place
        what = f"the object is at {target}, but its source {origin} is still there: {error.detail}"
        raise SourceNotRemoved(what) from error
