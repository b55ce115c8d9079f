"""What clients see of rows: the JSON answers, typed; the OpenAPI document is made from these types."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, NotRequired

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from api.http.problems import title_of
from api.machines.probe import Finding
from datamanager.domain.limits import Limits
from datamanager.domain.states import TransferStatus
from datamanager.errors import by_code
from datamanager.machines import Machine
from datamanager.settings import Settings
from models.machines.health import Health
from models.tables import DataObject, Transfer, TransferItem
from models.transfers.items import ItemCounts
from models.transfers.outcomes import UNCHANGED

FAR = timedelta(days=3650)
"""An end further away than that is not known at all."""


class HoldView(TypedDict):
    """Who holds an object, and why: it can't be deleted until the hold is released."""

    since: datetime
    by: str | None
    reason: str | None


class ObjectView(TypedDict):
    """A data object. `path` is the directory as the client gave it, `checksum` is `sha256:…` or null. `last_used` is
    when it was last copied from, moved or activated; `expires_at` until when it is wanted.
    """

    id: str
    machine: str
    filename: str
    path: str
    description: str
    size: int | None
    metadata: dict[str, Any]
    date_registered: datetime
    date_modified: datetime
    status: str
    originator: str
    group: str
    checksum: str | None
    verified: str
    derived_from: str | None
    archived_in: str | None
    last_used: datetime | None
    expires_at: datetime | None
    hold: HoldView | None


class ErrorView(TypedDict):
    """Why a task ended in ERROR."""

    code: str
    detail: str
    retryable: bool


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


class TreeFileView(TypedDict):
    """A file of a tree that was registered. `path` is the directory, `size` in bytes."""

    uuid: str
    path: str
    filename: str
    size: int | None


class TreeView(TypedDict):
    """What became of a tree: `registered` new objects, `already` files that an object or a transfer under way has,
    `skipped` links, special files and partial files, `unnameable` names that no object can have (not UTF-8, too long).
    """

    registered: int
    already: int
    skipped: int
    unnameable: int
    objects: list[TreeFileView]


class TaskView(TypedDict):
    """A task. `result` is null until it ended, then as in the seed: the new object's uuid, or a message.

    `object` is the object worked on (null for getexternal and batches), `bytes_total` is null while unknown,
    `bandwidth` (bytes per second) where the task has no limit of its own. `bytes_per_second` and `eta`, when all bytes
    will have moved at that rate, are null while no bytes move. `waiting_for` says why a queued one is not
    begun, null when it is just not its turn yet. `reason` is why there is one that no client asked for. A batch has
    `items`.
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
    started: datetime | None
    ended: datetime | None
    flow_run_id: str | None
    flow_run_url: str | None
    object: str | None
    items: NotRequired[ItemCountsView]
    unchanged: NotRequired[bool]
    """Of a getexternal that found nothing newer than the object that it was given, which is its `result`."""


class MachineErrorView(TypedDict):
    """Why a machine can't be used."""

    code: str
    detail: str


class CircuitView(TypedDict):
    """An open circuit: a machine could not be reached `failures` times in a row, and its transfers wait. `until`: when
    a mover looks next whether it answers again.
    """

    opened: datetime
    failures: int
    until: datetime


class HealthView(TypedDict):
    """Whether a machine's transfers wait: `drained` since when an operator holds them back, `circuit` while the machine
    can't be reached; each null where it does not.
    """

    name: str
    drained: datetime | None
    circuit: CircuitView | None


class MachineView(TypedDict):
    """A configured machine and what a live probe of it found. `latency_ms` is one round trip.

    `bandwidth` (bytes per second) and `max_transfers` are the limits in force, null where there is none. Its transfers
    wait while it is `drained` (since when) or its `circuit` is open.
    """

    name: str
    transport: str
    host: str | None
    port: int | None
    base_dir: str
    connection: str
    max_connections: int
    verify: str
    archive: bool
    direct: bool
    bandwidth: int | None
    max_transfers: int | None
    drained: datetime | None
    circuit: CircuitView | None
    reachable: bool
    latency_ms: float | None
    free_bytes: int | None
    error: MachineErrorView | None


class LimitsView(TypedDict):
    """A machine's limits in force: bytes per second and transfers at once, null where there is none.

    `changed`: when they were changed while running, null when they are what machines.toml says.
    """

    name: str
    bandwidth: int | None
    max_transfers: int | None
    changed: datetime | None


def object_view(row: DataObject) -> ObjectView:
    """Show an object."""
    return {
        "id": str(row.id),
        "machine": row.machine,
        "filename": row.filename,
        "path": row.path,
        "description": row.description,
        "size": row.size,
        "metadata": row.meta,
        "date_registered": row.date_registered,
        "date_modified": row.date_modified,
        "status": row.status,
        "originator": row.originator,
        "group": row.group,
        "checksum": row.checksum,
        "verified": row.verified,
        "derived_from": _text(row.derived_from),
        "archived_in": row.archived_in,
        "last_used": row.last_used,
        "expires_at": row.expires_at,
        "hold": _hold(row),
    }


def _hold(row: DataObject) -> HoldView | None:
    if row.held_since is None:
        return None
    return {"since": row.held_since, "by": row.held_by, "reason": row.hold_reason}


def task_view(
    row: Transfer, settings: Settings, items: ItemCounts | None = None, waiting_for: str | None = None
) -> TaskView:
    """Show a transfer; `items` of a batch."""
    run = _text(row.flow_run_id)
    view: TaskView = {
        "status": row.status,
        "result": row.result if row.ended else None,
        "task": str(row.id),
        "kind": row.kind,
        "phase": row.phase,
        "bytes_done": row.bytes_done,
        "bytes_total": row.bytes_total,
        "bytes_per_second": row.bytes_per_second,
        "eta": _eta(row),
        "bandwidth": row.bandwidth,
        "priority": row.priority,
        "deadline": row.deadline,
        "not_before": row.not_before,
        "paused": row.paused,
        "waiting_for": waiting_for,
        "reason": row.reason,
        "attempt": row.attempts,
        "faults": [_fault(fault) for fault in row.faults],
        "error": _error(row),
        "created": row.created,
        "started": row.started,
        "ended": row.ended,
        "flow_run_id": run,
        "flow_run_url": f"{settings.prefect_ui}/runs/flow-run/{run}" if run else None,
        "object": _text(row.object_id),
    }
    if row.notes.get(UNCHANGED):
        view["unchanged"] = True
    if items is not None:
        view["items"] = {
            "total": items.total,
            "complete": items.complete,
            "skipped": items.skipped,
            "error": items.error,
            "queued": items.queued,
        }
    return view


def item_view(row: TransferItem) -> ItemView:
    """Show an item of a batch."""
    return {
        "number": row.number,
        "object": str(row.object_id),
        "machine": row.destination_machine,
        "dest": row.dest,
        "status": row.status,
        "skipped": row.skipped,
        "result": _text(row.result_object_id) if row.status == TransferStatus.COMPLETE.value else None,
        "size": row.size,
        "error": _error(row),
    }


def machine_view(machine: Machine, finding: Finding, limits: Limits, health: Health) -> MachineView:
    """Show a machine, without login, keys and files of ours."""
    error = finding.error
    return {
        "name": machine.name,
        "transport": machine.transport.value,
        "host": machine.host,
        "port": machine.port,
        "base_dir": machine.base_dir,
        "connection": machine.connection.value,
        "max_connections": machine.max_connections,
        "verify": machine.verify.value,
        "archive": machine.archive,
        "direct": machine.direct,
        "bandwidth": limits.bandwidth,
        "max_transfers": limits.max_transfers,
        "drained": health.drained,
        "circuit": _circuit(health),
        "reachable": error is None,
        "latency_ms": None if finding.latency is None else round(finding.latency * 1000, 2),
        "free_bytes": finding.free,
        # the sentence, not the detail: that may quote what ssh says of files and logins of ours
        "error": None if error is None else {"code": error.code, "detail": title_of(type(error))},
    }


def limits_view(name: str, limits: Limits) -> LimitsView:
    """Show a machine's limits."""
    return {
        "name": name,
        "bandwidth": limits.bandwidth,
        "max_transfers": limits.max_transfers,
        "changed": limits.changed,
    }


def health_view(name: str, health: Health) -> HealthView:
    """Show a machine's health."""
    return {"name": name, "drained": health.drained, "circuit": _circuit(health)}


def _circuit(health: Health) -> CircuitView | None:
    circuit = health.circuit
    if circuit is None:
        return None
    return {"opened": circuit.opened, "failures": circuit.failures, "until": circuit.until}


def _eta(row: Transfer) -> datetime | None:
    """Return when all bytes will have moved, should they go on as they do now: to the second."""
    if not row.bytes_per_second or row.bytes_total is None:
        return None
    seconds = max(0, row.bytes_total - row.bytes_done) / row.bytes_per_second
    if seconds > FAR.total_seconds():
        return None
    return (datetime.now(UTC) + timedelta(seconds=seconds)).replace(microsecond=0)


def _error(row: Transfer | TransferItem) -> ErrorView | None:
    if row.error_code is None:
        return None
    detail = row.error_detail or ""
    return {"code": row.error_code, "detail": detail, "retryable": by_code(row.error_code, detail).retryable}


def _fault(fault: dict[str, Any]) -> FaultView:
    return {
        "time": fault["time"],
        "code": fault["code"],
        "detail": fault["detail"],
        "attempt": fault["attempt"],
    }


def _text(value: object) -> str | None:
    return None if value is None else str(value)
