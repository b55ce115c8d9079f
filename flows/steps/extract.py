"""The tasks of the flow of an archive from outside: fetch it into a partial file, list it, extract it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from sqlalchemy.orm import Session

from datamanager.domain.states import Phase
from datamanager.engine.attempt import Found, Proof
from datamanager.engine.extracting.member_staging import StoredArchive
from flows.archive import recalling
from flows.external import extracting
from flows.external.request import whole_request
from flows.runtime.tasks import step, threaded
from flows.runtime.transfer_run import TransferRun, current
from flows.steps.archive import carry, each
from flows.steps.single import arrive, discard, probe
from models.external.extracted import ARCHIVE
from models.transfers.cancel_pause import note_partial
from models.transfers.items import count_items, in_doubt
from models.transfers.queue import TransferLease


async def fetch_and_extract() -> None:
    """Extract the archive's files to their places. What an earlier attempt completed is not repeated.

    The archive itself is never published: its partial file is removed when all files, or the transfer, have ended.
    """
    work = current()
    if await asyncio.to_thread(work.read, in_doubt, work.transfer):
        await settle()
    if await asyncio.to_thread(_all_done, work):
        await work.write(_note_partial)  # the archive may be there still
        return
    found = await probe()
    try:
        proof = await arrive(found)
        await examine(found, proof)
        archive = StoredArchive(found.part, proof.size)

        async def take(number: int, count: int, items: Sequence[int]) -> None:
            await extract(number, count, items, archive)

        await each(await asyncio.to_thread(extracting.plan, work), take)
        await remove_archive(found)
    except BaseException as error:
        if await work.is_ended_by(error):
            await discard(work, found)
            work.leaves_partial = True  # partial files of its files may be there still
        raise


@step("settle")
async def settle() -> None:
    """Complete what an earlier attempt published, before a cancel or pause counts, and whatever the source has now."""
    work = current()
    work.control.enter(Phase.PROBE)
    await threaded(extracting.settle, work)


@step("examine")
async def examine(found: Found, proof: Proof) -> None:
    """List and check the archive, and claim the places of its files."""
    work = current()
    work.control.enter(Phase.PROBE)
    await threaded(extracting.enter, work, await whole_request(work), found, proof)


@step("extract", "extract {number} of {count}")
async def extract(number: int, count: int, items: Sequence[int], archive: StoredArchive) -> None:
    """Extract those files that are not done yet."""
    work = current()
    perform = recalling.performing(work, items, lambda by, rows: extracting.ExtractChunk(by, rows, archive))
    await carry(work, perform, f"part {number} of {count}", work.item_errors)


@step("remove archive")
async def remove_archive(found: Found) -> None:
    """Remove the archive: all of its files have ended. On an unreachable machine it stays for now."""
    work = current()
    await discard(work, found)
    if work.leaves_partial:
        await work.write(_note_partial)


def _all_done(work: TransferRun) -> bool:
    return work.row.notes.get(ARCHIVE) is not None and not work.read(count_items, work.transfer).queued


def _note_partial(session: Session, hold: TransferLease) -> None:
    note_partial(session, hold.transfer)
