"""Tasks as clients see them, with what is read beside their rows: a batch's counts, and what a queued one waits for."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from api.context import Context
from api.views import TaskView, task_view
from datamanager.domain.states import TransferKind
from models.machines.wait_reasons import reasons
from models.tables import Transfer
from models.transfers.items import count_items


def show_tasks(session: Session, context: Context, rows: Sequence[Transfer]) -> list[TaskView]:
    """Show tasks, in the given order."""
    items = {row.id: count_items(session, row.id) for row in rows if TransferKind(row.kind).many}
    waiting_for = reasons(session, context.machines, rows)
    return [task_view(row, context.settings, items.get(row.id), waiting_for.get(row.id)) for row in rows]


def show_task(session: Session, context: Context, row: Transfer) -> TaskView:
    """Show one task."""
    [view] = show_tasks(session, context, [row])
    return view
