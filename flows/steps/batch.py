"""The tasks that the flows of batches are made of: some hundred items each (`flows.batch.chunk`).

An item that fails does so alone. A batch that was interrupted, or is submitted again, does only what is missing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from datamanager.domain.states import Phase, TransferKind
from datamanager.errors import DataManagerError, SourceNotRemoved
from flows.batch import overlapping
from flows.batch.chunk import ItemsChunk
from flows.runtime.lifecycle import working_on
from flows.runtime.progress import summarise_items
from flows.runtime.tasks import require_items_fault, step, threaded, unforeseen
from flows.runtime.transfer_run import TransferRun, current
from models.archive import items as archive_items
from models.batches import results as batch_results
from models.tables import TransferItem

AT_ONCE = 10_000
"""Items of one step, which performs them by chunks: what a step costs in Prefect is little for each."""


async def perform_batch(kind: TransferKind, form: Mapping[str, Any]) -> str:
    """Perform a flow run that copies or moves all items; return its result. `form`: see `working_on`."""
    async with working_on(kind, form):
        last = -1
        while (numbers := await next_items(last)) is not None:
            first, last = numbers
            try:
                await carry_items(first, last)
            except DataManagerError as error:
                require_items_fault(error)
                await give_up_items(first, last, error)
            except Exception as error:  # noqa: BLE001 - logged there; no step ends the batch
                await give_up_items(first, last, unforeseen(error))
        return await conclude()


async def next_items(last: int) -> tuple[int, int] | None:
    """Return the first and the last number of the items to be carried after `last`; None when there are no more."""
    return await asyncio.to_thread(current().read, batch_results.range_to_do, current().hold, last, AT_ONCE)


@step("items", "items {first} to {last}")
async def carry_items(first: int, last: int) -> None:
    """Carry the items whose numbers are from `first` to `last` and that are not done yet."""
    run = current()
    run.control.enter(Phase.TRANSFER)

    def report(rows: Sequence[TransferItem], chunk: ItemsChunk) -> None:
        for number, error in chunk.errors.items():
            run.log.warning("item %d: %s: %s", number, error.code, error.detail)
        run.log.info("items %d to %d: %d done", rows[0].number, rows[-1].number, len(rows) - len(chunk.errors))

    await threaded(overlapping.perform, run, first, last, report)


async def give_up_items(first: int, last: int, error: DataManagerError) -> None:
    """End in ERROR the items from `first` to `last` that no further try has helped."""
    run = current()
    after = first - 1
    while rows := await asyncio.to_thread(run.items_to_do, after, batch_results.CHUNK):
        after, rows = rows[-1].number, [row for row in rows if row.number <= last]
        await run.write(batch_results.fail_items, [(row.number, _lasting(run, row, error)) for row in rows])
        if after >= last:
            break


async def conclude() -> str:
    """End a transfer of items in the catalogue, and leave its summary; return its result for the client.

    Raises: the error that it ended with.
    """
    outcome = await finish()
    await summarise_items(current())
    if isinstance(outcome, DataManagerError):
        raise outcome
    return outcome


@step("finish")
async def finish() -> str | DataManagerError:
    """End the transfer in the catalogue; return its result, or the error that it ended with."""
    run = current()
    run.control.enter(Phase.COMMIT)
    return await run.write(archive_items.finish)


def _lasting(run: TransferRun, row: TransferItem, error: DataManagerError) -> DataManagerError:
    own = run.item_errors.get(row.number, error)
    if not row.notes.get("committed"):
        return own
    place, left = batch_results.destination(row), batch_results.source(row)
    return SourceNotRemoved(f"the object is at {place}, but its source {left} is still there: {own.detail}")
