"""The tasks that the flows to and from archives are made of: a bundle each (`flows.archive.bundling`, `.recalling`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from datamanager.domain.states import Phase, TransferKind
from datamanager.errors import DataManagerError, SourceNotRemoved, Staging
from flows.archive import bundling, recalling
from flows.runtime.tasks import require_items_fault, step, threaded, unforeseen
from flows.runtime.transfer_run import TransferRun, current
from models.archive import items as archive_items
from models.batches import results as batch_results
from models.objects.bulk_claims import chunks
from models.tables import TransferItem

Numbers = Sequence[int]


async def plan_bundles() -> list[Numbers]:
    """Say which items become a bundle together."""
    run = current()
    return await asyncio.to_thread(lambda: list[Numbers](bundling.plan(run, run.items_to_do())))


@step("stage")
async def stage_bundles() -> tuple[list[Numbers], Staging | None]:
    """Say which items come back together: those of one bundle, in the order in which they lie there.

    Left out are bundles that are still on tape. They were requested, and the attempt ends with what is returned too.
    """
    run = current()
    run.control.enter(Phase.PROBE)
    return await threaded(_staged, run)


@step("bundle", "bundle {number} of {count}")
async def make_bundle(number: int, count: int, items: Numbers) -> None:
    """Make a bundle of the items that are not done yet."""
    run = current()
    bundle = bundling.BundleWork(run, items, whole=count == 1)
    await carry(run, bundle.perform, f"bundle {number} of {count}", bundle.errors)


@step("recall", "recall {number} of {count}")
async def recall(number: int, count: int, items: Numbers) -> None:
    """Bring back those of a bundle's items that are not done yet."""
    run = current()
    perform = recalling.performing(run, items, recalling.RecallChunk)
    await carry(run, perform, f"recall {number} of {count}", run.item_errors)


async def each(groups: Sequence[Numbers], do: Callable[[int, int, Numbers], Awaitable[None]]) -> None:
    """Do a step for each group. What fails although it was tried again ends these items, and the next ones follow."""
    run = current()
    for number, items in enumerate(groups, 1):
        try:
            await do(number, len(groups), items)
        except DataManagerError as error:
            require_items_fault(error)
            await asyncio.to_thread(_give_up, run, items, error)
        except Exception as error:  # noqa: BLE001 - logged there; no step ends the batch
            await asyncio.to_thread(_give_up, run, items, unforeseen(error))


async def carry(run: TransferRun, perform: Callable[[], None], what: str, errors: dict[int, DataManagerError]) -> None:
    """Do a group's work in a thread, count its bytes if it ends well, and say which items failed (`errors`)."""
    run.control.enter(Phase.TRANSFER)
    done, known = run.control.bytes_done, set(errors)
    try:
        await threaded(perform)
    except DataManagerError:
        run.control.bytes_done = done  # what is to be tried again does not count
        raise
    finally:
        for number in errors.keys() - known:
            run.log.warning("item %d: %s: %s", number, errors[number].code, errors[number].detail)
    run.log.info("%s is done", what)


def _staged(run: TransferRun) -> tuple[list[Numbers], Staging | None]:
    rows = run.items_to_do()
    if not any(row.notes.get("intent") for row in rows):
        run.control.unshield()  # no file can have its name: users may stop it
    run.control.check()
    return recalling.split(run, recalling.plan(run, rows), rows)


def _give_up(run: TransferRun, numbers: Numbers, error: DataManagerError) -> None:
    """End in ERROR the items that no further try has helped; a bundle of theirs that is not sealed is given up."""
    with run.parts.database.write() as session:
        rows = archive_items.items_among(session, run.hold, numbers)
        failures = [(row.number, _lasting(run, row, error)) for row in rows]
        for some in chunks(failures, batch_results.CHUNK):
            batch_results.fail_items(session, run.hold, some)
        if TransferKind(run.row.kind) in (TransferKind.ARCHIVE, TransferKind.ARCHIVE_MANY):
            for bundle in {archive_items.bundle_in(row) for row in rows}:
                if bundle is not None:
                    archive_items.abandon_bundle(session, run.hold, bundle)


def _lasting(run: TransferRun, row: TransferItem, error: DataManagerError) -> DataManagerError:
    own = run.item_errors.get(row.number, error)
    if not row.notes.get("committed"):
        return own
    bundle = f"{row.destination_machine}:{row.dest}"
    return SourceNotRemoved(f"the object is archived in {bundle}, but its source is still there: {own.detail}")
