"""What the service answers, typed. Keys that a later service adds are ignored."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field

from datamanager.domain.fields import Priority
from datamanager.domain.states import ObjectStatus, TransferStatus


class ServiceAnswer(BaseModel):
    """What every answer has in common."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ObjectInfo(ServiceAnswer):
    """What the catalogue knows of an object. `path` is its directory as the client gave it, `size` in bytes."""

    id: UUID
    machine: str
    filename: str
    path: str
    description: str
    size: int | None
    metadata: dict[str, Any]
    date_registered: datetime
    date_modified: datetime
    status: ObjectStatus
    originator: str
    group: str
    checksum: str | None
    verified: str
    derived_from: UUID | None
    archived_in: str | None = None
    """The bundle (machine:path) of an ARCHIVED object."""
    last_used: datetime | None = None
    expires_at: datetime | None = None
    hold: dict[str, Any] | None = None
    """Who holds it, since when and why: it can't be deleted."""
    created_by: str | None = None
    """The person who made it; None where authentication was off, or the service did."""
    acted_as: str | None = None
    """Whose login its file was written with: a person's, or `shared`, the service's own."""


class TaskError(ServiceAnswer):
    """Why a task ended in ERROR."""

    code: str
    detail: str
    retryable: bool


class ItemCountsInfo(ServiceAnswer):
    """How many items a batch has; `skipped` are those of `complete` that already present."""

    total: int
    complete: int
    skipped: int
    error: int
    queued: int


class ItemInfo(ServiceAnswer):
    """An item of a batch. `result` is the object at its destination, null until it is COMPLETE."""

    number: int
    object: UUID
    machine: str
    dest: str
    status: TransferStatus
    skipped: bool
    result: UUID | None
    size: int | None
    error: TaskError | None
    not_kept: list[str] = []
    """What the destination could not be told as the source has it: `mtime`."""


class Tree(ServiceAnswer):
    """What became of a tree; `objects` are the new ones (uuid, path, filename, size)."""

    registered: int
    already: int
    skipped: int
    unnameable: int
    objects: list[dict[str, Any]]


class Task(ServiceAnswer):
    """The status of a transfer. `result` is a new object's identifier or a message; null until the end."""

    task: UUID
    kind: str
    status: TransferStatus
    result: str | None
    phase: str
    bytes_done: int
    bytes_total: int | None
    bytes_per_second: int | None = None
    eta: datetime | None = None
    bandwidth: int | None = None
    priority: Priority = Priority.NORMAL
    deadline: datetime | None = None
    not_before: datetime | None = None
    paused: bool = False
    reason: str | None = None
    """Why there is one that no client requested."""
    waiting_for: str | None = None
    """Why a queued one has not started; null when others precede it."""
    created: datetime | None = None
    created_by: str | None = None
    """The person who requested it; None where authentication was off, or nobody did."""
    error: TaskError | None
    flow_run_url: str | None
    faults: list[dict[str, Any]] = Field(default_factory=list)
    items: ItemCountsInfo | None = None
    """Of a batch."""
    unchanged: bool = False
    """A download that found nothing newer than the object it was given, which is its result."""
    not_kept: list[str] = []
    """What the destination could not be told as the source has it: `mtime`."""


class CircuitInfo(ServiceAnswer):
    """A machine that could not be reached `failures` times in a row; `until`: when it is probed next."""

    opened: datetime
    failures: int
    until: datetime


class MachineInfo(ServiceAnswer):
    """A configured machine and what a probe found just now."""

    name: str
    transport: str
    host: str | None
    base_dir: str
    reachable: bool
    latency_ms: float | None
    free_bytes: int | None
    error: dict[str, str] | None
    drained: datetime | None = None
    """Since when its transfers wait in the queue."""
    circuit: CircuitInfo | None = None
    """Open: its transfers wait."""
    objects: int = 0
    """ACTIVE ones that lie on it."""
    object_bytes: int = 0
    """Of these, as far as their sizes are known."""


class MachineHealthInfo(ServiceAnswer):
    """Whether a machine's transfers wait: `drained` since when, by an operator; `circuit` while it can't be reached."""

    name: str
    drained: datetime | None
    circuit: CircuitInfo | None


class MachineLimits(ServiceAnswer):
    """A machine's limits in force, None where there is none. `changed`: None when they are what machines.toml says."""

    name: str
    bandwidth: int | None
    max_transfers: int | None
    changed: datetime | None
