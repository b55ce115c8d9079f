"""What clients see of schedules."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from api.http.responses import OMIT, view_of
from models.tables import Schedule, ScheduleRun


class ScheduleRunView(TypedDict):
    """One moment of a schedule. `outcome` is pending, fetched, unchanged, failed, or dropped: fetched, and deleted
    since as one version too many. `object` is the version, of an unchanged moment the one before; `code` says why it
    failed.
    """

    moment: datetime
    outcome: str
    task: str | None
    object: str | None
    code: str | None


class ScheduleView(TypedDict):
    """A recurring download. `wanted_at`: the moment of a requested run that has not begun yet."""

    id: str
    url: str
    protocol: str
    machine: str
    path: str
    filename: str
    interval: str | None
    cron: str | None
    options: dict[str, Any]
    keep: int | None
    skip_unchanged: bool
    group: str
    description: str
    originator: str
    metadata: dict[str, Any]
    verify: str | None
    priority: str
    paused: bool
    wanted_at: datetime | None
    created: datetime
    runs: NotRequired[list[ScheduleRunView]]


class RemovedView(TypedDict):
    """A schedule that was removed."""

    removed: str


def schedule_view(row: Schedule, runs: Iterable[ScheduleRun] | None = None) -> ScheduleView:
    """Show a schedule; with its runs where they are given."""
    own = ("id", "paused", "wanted_at", "created", "runs")
    fields = {name: row.request.get(name) for name in ScheduleView.__annotations__ if name not in own}
    shown: Any = OMIT
    if runs is not None:
        shown = [view_of(ScheduleRunView, run, task=run.transfer_id, object=run.object_id) for run in runs]
    return view_of(ScheduleView, row, **fields, runs=shown)
