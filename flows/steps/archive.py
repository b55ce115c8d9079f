"""The tasks that the flows to and from archives are made of: a bundle each (`flows.archive.bundling`, `.recalling`)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from datamanager.domain.states import Phase, TransferKind
from datamanager.errors import DataManagerError, SourceNotRemoved, Staging
from flows.archive import bundling, members, recalling, staging
from flows.runtime.tasks import require_items_fault, step, threaded
from flows.runtime.transfer_run import TransferRun, current
from models.archive import items as archive_items
from models.batches import results as batch_results
from models.objects.bulk_claims import chunks
from models.tables import TransferItem

Numbers = Sequence[int]


async def plan_bundles() -> list[Numbers]:
    """Say which items become a bundle together."""
    work = current()
    return await asyncio.to_thread(lambda: list[Numbers](bundling.plan(work, _to_do(work))))


@step("stage")
async def stage_bundles() -> tuple[list[Numbers], Staging | None]:
    """Say which items come back together: those of one bundle, in the order in which they lie there.

    Left out are bundles that are still on tape. They were asked for, and the attempt ends with what is returned too.
    """
    work = current()
    work.control.enter(Phase.PROBE)
    return await threaded(_staged, work)


@step("bundle", "bundle {number} of {count}")
async def make_bundle(number: int, count: int, items: Numbers) -> None:
    """Make a bundle of the items that are not done yet."""
    work = current()
    bundle = bundling.BundleWork(work, items, whole=count == 1)
    await carry(work, bundle.perform, f"bundle {number} of {count}", bundle.errors)


@step("recall", "recall {number} of {count}")
async def recall(number: int, count: int, items: Numbers) -> None:
    """Bring back those of a bundle's items that are not done yet."""
    work = current()
    perform = members.performing(work, items, recalling.RecallChunk)
    await carry(work, perform, f"recall {number} of {count}", work.item_errors)


async def each(groups: Sequence[Numbers], do: Callable[[int, int, Numbers], Awaitable[None]]) -> None:
    """Do a step for each group. What fails although it was tried again ends these items, and the next ones follow."""
    work = current()
    for number, items in enumerate(groups, 1):
        try:
            await do(number, len(groups), items)
        except DataManagerError as error:
            require_items_fault(error)
            await asyncio.to_thread(_give_up, work, items, error)


async def carry(work: TransferRun, perform: Callable[[], None], what: str, errors: dict[int, DataManagerError]) -> None:
    """Do a group's work in a thread, count its bytes if it ends well, and say which items failed (`errors`)."""
    work.control.enter(Phase.TRANSFER)
    done, known = work.control.bytes_done, set(errors)
    try:
        await threaded(perform)
    except DataManagerError:
        work.control.bytes_done = done  # what is to be tried again does not count
        raise
    finally:
        for number in errors.keys() - known:
            work.log.warning("item %d: %s: %s", number, errors[number].code, errors[number].detail)
    work.log.info("%s is done", what)


def _staged(work: TransferRun) -> tuple[list[Numbers], Staging | None]:
    rows = _to_do(work)
    if not any(row.notes.get("intent") for row in rows):
        work.control.unshield()  # no file can have its name: whoever wants this to stop is heard
    work.control.check()
    groups, again = staging.split(work, recalling.plan(work, rows), rows)
    return groups, staging.waiting(again) if again else None


def _to_do(work: TransferRun) -> list[TransferItem]:
    with work.parts.database.read() as session:
        return batch_results.items_to_do(session, work.hold, -1, 2**31)


def _give_up(work: TransferRun, numbers: Numbers, error: DataManagerError) -> None:
    """End in ERROR the items that no further try has helped; a bundle of theirs that is not sealed is given up."""
    with work.parts.database.write() as session:
        rows = archive_items.items_among(session, work.hold, numbers)
        failures = [(row.number, _lasting(work, row, error)) for row in rows]
        for some in chunks(failures, batch_results.CHUNK):
            batch_results.fail_items(session, work.hold, some)
        if TransferKind(work.row.kind) in (TransferKind.ARCHIVE, TransferKind.ARCHIVE_MANY):
            for bundle in {archive_items.bundle_in(row) for row in rows}:
                if bundle is not None:
                    archive_items.abandon_bundle(session, work.hold, bundle)


def _lasting(work: TransferRun, row: TransferItem, error: DataManagerError) -> DataManagerError:
    own = work.item_errors.get(row.number, error)
    if not row.notes.get("committed"):
        return own
    bundle = f"{row.destination_machine}:{row.dest}"
    return SourceNotRemoved(f"the object is archived in {bundle}, but its source is still there: {own.detail}")
