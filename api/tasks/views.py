"""What clients see of tasks and of a batch's items, with what is read beside their rows: a batch's counts, and what a
queued task waits for.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NotRequired

import orjson
from sqlalchemy.orm import Session
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from api.context import Context
from api.http.problems import ErrorView, error_view
from api.http.responses import OMIT, view_of
from datamanager.domain.states import TransferKind, TransferStatus
from datamanager.settings import Settings
from models.machines.wait_reasons import reasons
from models.tables import Transfer, TransferItem
from models.transfers.items import BatchCounts, count_items
from models.transfers.outcomes import UNCHANGED

TASK_BYTES = 2000
"""Bytes of what every task is shown with, at most."""
FAR = timedelta(days=3650)
"""An end further away than that is not known at all."""


class FaultView(TypedDict):
    """What went wrong in one attempt."""

    time: str
    code: str
    detail: str
    attempt: int


class ItemCountsView(TypedDict):
    """How many items a batch has: `total` is complete + error + queued; `skipped` are those of `complete` that were
    there already.
    """

    total: int
    complete: int
    skipped: int
    error: int
    queued: int


class ItemView(TypedDict):
    """One item of a batch. `status` is QUEUED, COMPLETE or ERROR; `result` is the object at the destination, null until
    the item is COMPLETE; `skipped` says that it was there already.
    """

    number: int
    object: str
    machine: str
    dest: str
    status: str
    skipped: bool
    result: str | None
    size: int | None
    error: ErrorView | None
    not_kept: NotRequired[list[str]]
    """What the destination does not keep of the file, if there is something: of `mode`, `mtime`, `fsync`."""


class TaskView(TypedDict):
    """A task. `result` is null until it ended, then as in the seed: the new object's uuid, or a message.

    `object` is the object worked on (null for getexternal and batches), `bytes_total` is null while unknown,
    `bandwidth` (bytes per second) where the task has no limit of its own. `bytes_per_second` and `eta`, when all bytes
    will have moved at that rate, are null while no bytes move. `waiting_for` says why a queued one is not
    begun, null when it is just not its turn yet. `reason` is why there is one that no client asked for, `created_by`
    the person who asked (null where authentication was off, or nobody did). A batch has `items`.
    """

    status: str
    result: str | None
    task: str
    kind: str
    phase: str
    bytes_done: int
    bytes_total: int | None
    bytes_per_second: int | None
    eta: datetime | None
    bandwidth: int | None
    priority: str
    deadline: datetime | None
    not_before: datetime | None
    paused: bool
    waiting_for: str | None
    reason: str | None
    attempt: int
    faults: list[FaultView]
    error: ErrorView | None
    created: datetime
    created_by: str | None
    started: datetime | None
    ended: datetime | None
    flow_run_id: str | None
    flow_run_url: str | None
    object: str | None
    items: NotRequired[ItemCountsView]
    unchanged: NotRequired[bool]
    """Of a getexternal that found nothing newer than the object that it was given, which is its `result`."""
    not_kept: NotRequired[list[str]]
    """What the destination does not keep of the file, if there is something: of `mode`, `mtime`, `fsync`."""


def show_tasks(session: Session, context: Context, rows: Sequence[Transfer]) -> list[TaskView]:
    """Show tasks, in the given order."""
    items = {row.id: count_items(session, row.id) for row in rows if TransferKind(row.kind).many}
    waiting_for = reasons(session, context.machines, rows)
    return [_task_view(row, context.settings, items.get(row.id), waiting_for.get(row.id)) for row in rows]


def show_task(session: Session, context: Context, row: Transfer) -> TaskView:
    """Show one task."""
    [view] = show_tasks(session, context, [row])
    return view


def _task_view(row: Transfer, settings: Settings, items: BatchCounts | None, waiting_for: str | None) -> TaskView:
    run = row.flow_run_id
    return view_of(
        TaskView,
        row,
        result=row.result if row.ended else None,
        task=row.id,
        eta=_eta(row),
        waiting_for=waiting_for,
        attempt=row.attempts,
        faults=[{key: fault[key] for key in FaultView.__annotations__} for fault in row.faults],
        error=error_view(row.error_code, row.error_detail),
        flow_run_url=f"{settings.prefect_ui}/runs/flow-run/{run}" if run else None,
        object=row.object_id,
        items=OMIT if items is None else items,
        unchanged=True if row.notes.get(UNCHANGED) else OMIT,
        not_kept=_not_kept(row),
    )


def weight_of_task(row: Transfer) -> int:
    """Return about how many bytes a task is shown with: what went wrong may be long, all else is not."""
    long = [row.faults, row.error_detail, row.result, row.reason, row.created_by, row.notes]
    return TASK_BYTES + len(orjson.dumps(long))


def item_view(row: TransferItem) -> ItemView:
    """Show an item of a batch."""
    return view_of(
        ItemView,
        row,
        object=row.object_id,
        machine=row.destination_machine,
        result=row.result_object_id if row.status == TransferStatus.COMPLETE.value else None,
        error=error_view(row.error_code, row.error_detail),
        not_kept=_not_kept(row),
    )


def _not_kept(row: Transfer | TransferItem) -> Any:
    return (row.notes.get("intent") or {}).get("not_kept") or OMIT


def _eta(row: Transfer) -> datetime | None:
    """Return when all bytes will have moved, at the present rate: to the second."""
    if not row.bytes_per_second or row.bytes_total is None:
        return None
    seconds = max(0, row.bytes_total - row.bytes_done) / row.bytes_per_second
    if seconds > FAR.total_seconds():
        return None
    return (datetime.now(UTC) + timedelta(seconds=seconds)).replace(microsecond=0)
