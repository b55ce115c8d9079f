"""What clients see of retention: plans, runs, what was taken back."""

from __future__ import annotations

from datetime import datetime

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from api.objects.views import ObjectView


class RetentionCountView(TypedDict):
    """How many objects, and how many bytes, a rule did something with. `verdict` is `act` (archived or deleted), `mark`
    (due after the rule's grace), `spare` (`reason` says why), `failed` (its transfer ended in an error; a later run
    tries again) or `void` (marks that do not hold any more).
    """

    rule: str
    action: str
    verdict: str
    reason: str | None
    objects: int
    bytes: int


class RetentionLineView(TypedDict):
    """What becomes of one object. `survivor` is the copy that remains when this one is deleted."""

    object: str
    machine: str
    place: str
    rule: str
    action: str
    verdict: str
    reason: str | None
    detail: str | None
    bytes: int | None
    due: str | None
    survivor: str | None


class RetentionPlanView(TypedDict):
    """What a run would do now. No file is read for a plan, only by a run before it deletes.

    `truncated`: there are more objects than `lines`; `counts` count all.
    """

    time: datetime
    rules: list[str]
    counts: list[RetentionCountView]
    lines: list[RetentionLineView]
    truncated: bool


class RetentionRunView(TypedDict):
    """A run. `status` is QUEUED, RUNNING, COMPLETE or ERROR; `bytes_freed` are those of files that really went,
    `pending` objects whose transfers had not ended when it reported.
    """

    run: str
    status: str
    dry_run: bool
    rule: str
    max_objects: int | None
    max_bytes: int | None
    created: datetime
    started: datetime | None
    ended: datetime | None
    bytes_freed: int
    pending: int
    counts: list[RetentionCountView]
    error: str | None
    flow_run_id: str | None


class RetentionRunDetailView(RetentionRunView):
    """A run with the first objects one by one."""

    lines: list[RetentionLineView]
    truncated: bool


class RestoredView(TypedDict):
    """An object that was taken back from a rule; `task` activates it, if it was archived."""

    object: ObjectView
    task: str | None
