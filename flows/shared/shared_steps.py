"""The tasks that a shared run is made of, and what is around them: its begin, its end, the table of its transfers.

They are not retried: what fails returns to the queue by itself, and a run of its own has the retries of its steps.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import acreate_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run as running
from prefect.tasks import Task
from sqlalchemy import select
from sqlalchemy.orm import Session

from datamanager.domain.states import Phase, TransferStatus
from datamanager.errors import Cancelled, DataManagerError, InternalError, ItemsFailed, NotSupported
from flows.runtime.progress import SHOWN_WITHIN, plain
from flows.runtime.services import services
from flows.shared.shared_chunk import SharedChunk
from flows.shared.shared_run import SharedRun
from models.database import read
from models.tables import Transfer

BY_HAND = (
    "a shared run is begun by a mover, for transfers that wait: request copies and moves as ever, over HTTP, by "
    "messages, or with the flows copy and move"
)
log = logging.getLogger(__name__)

_chunk: ContextVar[SharedChunk] = ContextVar("shared_chunk")


@asynccontextmanager
async def going_together() -> AsyncIterator[SharedRun]:
    """Begin the flow run's transfers, and settle them when the body has done with them, whatever happens.

    Raises: NotSupported in a run that no mover has begun for transfers; CancelledError when the mover stops, which
    gives back what is left.
    """
    parts, flow_run = services(), UUID(str(running.get_id()))
    group = parts.shared.get(flow_run)
    if group is None or group.begun:
        raise NotSupported(BY_HAND)
    group.begun = True
    run = SharedRun(parts, group, flow_run)
    chunk = SharedChunk(run)
    _chunk.set(chunk)
    try:
        await run.threaded(run.begin)
        async with run.watched():
            yield run
    except DataManagerError as error:
        run.log.warning("%s: %s", error.code, error.detail)
        run.fail_all(error)
        await asyncio.to_thread(chunk.abandon)
    except Exception as error:
        log.exception("shared run %s: internal error", flow_run)
        run.fail_all(InternalError(f"unexpected {type(error).__name__}"))
        await asyncio.to_thread(chunk.abandon)
    await run.settle()


def _step(name: str) -> Callable[[Callable[[], Coroutine[Any, Any, None]]], Task[[], Coroutine[Any, Any, None]]]:
    return task(name=name, cache_policy=NO_CACHE, persist_result=False)


@_step("stage")
async def stage_all() -> None:
    """Bring the bytes to the destinations, and verify them."""
    chunk = _chunk.get()
    await chunk.run.threaded(chunk.stage)


@_step("publish")
async def publish_all() -> None:
    """Record the intents, and give the files their names."""
    chunk = _chunk.get()
    chunk.run.control.enter(Phase.PUBLISH)
    await chunk.run.threaded(chunk.publish)


@_step("commit")
async def commit_all() -> None:
    """Commit what has its name to the catalogue."""
    chunk = _chunk.get()
    chunk.run.control.enter(Phase.COMMIT)
    await chunk.run.threaded(chunk.commit)


@_step("remove sources")
async def remove_sources() -> None:
    """Remove the sources of moves."""
    chunk = _chunk.get()
    chunk.run.control.enter(Phase.CLEANUP)
    await chunk.run.threaded(chunk.remove_sources)


async def conclude(run: SharedRun) -> str:
    """Leave the table of the run's transfers; return how they ended.

    Raises: ItemsFailed when one has failed; Cancelled when users have cancelled all that ended.
    """
    rows = await read(run.parts.database, _rows, [member.hold.transfer for member in run.all])
    mine = [row for row in rows if row.flow_run_id == run.flow_run and row.ended is not None]
    complete = sum(row.status == TransferStatus.COMPLETE.value for row in mine)
    table = [
        {
            "transfer": str(row.id),
            "object": str(row.object_id),
            "status": row.status if row in mine else "returned to the queue",
            "result": plain((row.result if row.error_code is None else f"{row.error_code}: {row.error_detail}") or ""),
        }
        for row in rows
    ]
    said = f"{complete} of {len(rows)} transfers done"
    if back := len(rows) - len(mine):
        said += f", {back} returned to the queue"
    try:
        await acreate_table_artifact(table, description=said)
    except SHOWN_WITHIN as exc:
        run.log.warning("the table can't be shown: %s", exc)
    run.log.info("%s, %.1f s since the run began", said, run.lead.seconds)
    if failed := [row for row in mine if row.error_code not in (None, Cancelled.code)]:
        raise ItemsFailed(f"{said}, {len(failed)} failed, first: {failed[0].error_code}: {failed[0].error_detail}")
    if mine and not complete:
        raise Cancelled(said)
    return said


def _rows(session: Session, transfers: list[UUID]) -> list[Transfer]:
    return list(session.scalars(select(Transfer).where(Transfer.id.in_(transfers)).order_by(Transfer.created)))
