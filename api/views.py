"""What clients see of rows: the JSON answers, typed; the OpenAPI document is made from these types."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from api.probing import Finding
from api.problems import title_of
from datamanager.errors import by_code
from datamanager.machines import Machine
from datamanager.settings import Settings
from models.tables import DataObject, Transfer


class ObjectView(TypedDict):
    """A data object. `path` is the directory as the client gave it, `checksum` is `sha256:…` or null."""

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


class TaskView(TypedDict):
    """A task. `result` is null until it ended, then as in the seed: the new object's uuid, or a message.

    `object` is the object worked on (null for getexternal), `bytes_total` is null while unknown.
    """

    status: str
    result: str | None
    task: str
    kind: str
    phase: str
    bytes_done: int
    bytes_total: int | None
    attempt: int
    faults: list[FaultView]
    error: ErrorView | None
    created: datetime
    started: datetime | None
    ended: datetime | None
    flow_run_id: str | None
    flow_run_url: str | None
    object: str | None


class MachineErrorView(TypedDict):
    """Why a machine can't be used."""

    code: str
    detail: str


class MachineView(TypedDict):
    """A configured machine and what a live probe of it found. `latency_ms` is one round trip."""

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
    reachable: bool
    latency_ms: float | None
    free_bytes: int | None
    error: MachineErrorView | None


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
    }


def task_view(row: Transfer, settings: Settings) -> TaskView:
    """Show a transfer."""
    run = _text(row.flow_run_id)
    return {
        "status": row.status,
        "result": row.result if row.ended else None,
        "task": str(row.id),
        "kind": row.kind,
        "phase": row.phase,
        "bytes_done": row.bytes_done,
        "bytes_total": row.bytes_total,
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


def machine_view(machine: Machine, finding: Finding) -> MachineView:
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
        "bandwidth": machine.bandwidth,
        "reachable": error is None,
        "latency_ms": None if finding.latency is None else round(finding.latency * 1000, 2),
        "free_bytes": finding.free,
        # the sentence, not the detail: that may quote what ssh says of files and logins of ours
        "error": None if error is None else {"code": error.code, "detail": title_of(type(error))},
    }


def _error(row: Transfer) -> ErrorView | None:
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
