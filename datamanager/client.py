"""A client of the REST API, for scripts and other services.

    with Client("http://127.0.0.1:5000") as dm:
        weather = dm.register("archer2", "june.nc", "weather", group="fire")
        copy = dm.copy(weather, "cirrus", "weather/june.nc")

What the service refuses is raised as the error it was there (`datamanager.errors`). Writing calls carry an
`Idempotency-Key`, so one whose connection broke is repeated and still done once.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote, urljoin, urlsplit
from uuid import UUID, uuid4

import requests
from pydantic import BaseModel, ConfigDict, Field

from datamanager.domain.states import ObjectStatus, TransferStatus
from datamanager.domain.timing import Priority
from datamanager.errors import (
    DataManagerError,
    InternalError,
    InvalidRequest,
    RegisteredSizeMismatch,
    ServiceError,
    TransportTimeout,
    by_code,
)
from datamanager.settings import is_loopback

DEFAULT_URL = "http://127.0.0.1:5000"
HOLD = 30  # seconds that one request waits for a transfer; then the task is asked for
ATTEMPTS = 3
PAUSE = 0.5  # seconds before a request whose connection broke is repeated
POLL_MAX = 2.0  # seconds between two looks at a task


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ObjectInfo(_Answer):
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


class TaskError(_Answer):
    """Why a task ended in ERROR."""

    code: str
    detail: str
    retryable: bool


class ItemCounts(_Answer):
    """How many items a batch has; `skipped` are those of `complete` that were there already."""

    total: int
    complete: int
    skipped: int
    error: int
    queued: int


class Item(_Answer):
    """How an item of a batch fares. `result` is the object at its destination, null until it is COMPLETE."""

    number: int
    object: UUID
    machine: str
    dest: str
    status: TransferStatus
    skipped: bool
    result: UUID | None
    size: int | None
    error: TaskError | None


class Tree(_Answer):
    """What became of a tree; `objects` are the new ones (uuid, path, filename, size)."""

    registered: int
    already: int
    skipped: int
    unnameable: int
    objects: list[dict[str, Any]]


class Task(_Answer):
    """How a transfer fares. `result` is a new object's identifier or a message; null until the end."""

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
    """Why there is one that no client asked for."""
    waiting_for: str | None = None
    """Why a queued one is not begun; null when it is just not its turn yet."""
    created: datetime | None = None
    error: TaskError | None
    flow_run_url: str | None
    faults: list[dict[str, Any]] = Field(default_factory=list)
    items: ItemCounts | None = None
    """Of a batch."""
    unchanged: bool = False
    """A download that found nothing newer than the object it was given, which is its result."""


class Circuit(_Answer):
    """A machine that could not be reached `failures` times in a row; `until`: when it is probed next."""

    opened: datetime
    failures: int
    until: datetime


class MachineInfo(_Answer):
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
    """Since when its transfers are held back."""
    circuit: Circuit | None = None
    """Open: its transfers wait."""


class MachineHealth(_Answer):
    """Whether a machine's transfers wait: `drained` since when, by an operator; `circuit` while it can't be reached."""

    name: str
    drained: datetime | None
    circuit: Circuit | None


class MachineLimits(_Answer):
    """A machine's limits in force, None where there is none. `changed`: None when they are what machines.toml says."""

    name: str
    bandwidth: int | None
    max_transfers: int | None
    changed: datetime | None


class Client:
    """One service's client; not to be shared between threads. `timeout` in seconds is for one answer.

    Every method may raise ServiceError (it does not answer) and what the service itself raises.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout: float = 30.0) -> None:
        self._base = f"{url.rstrip('/')}/"
        self._timeout = timeout
        self._session = requests.Session()
        self._session.headers["Accept"] = "application/json"
        # no proxy stands between a host and itself
        self._session.trust_env = not is_loopback(urlsplit(url).hostname or "")

    # --- objects -----------------------------------------------------------------------------------------------------

    def register(self, machine: str, filename: str, path: str = "", **fields: Any) -> UUID:
        """Enter a file that lies on a machine into the catalogue; return the new object's identifier.

        `fields`: size, description, originator, group, metadata, verify.
        """
        answer = self._write("PUT", "DM/register", {"machine": machine, "filename": filename, "path": path, **fields})
        return UUID(answer["uuid"])

    def register_tree(self, machine: str, path: str = "", **fields: Any) -> Tree:
        """Enter every regular file below a directory into the catalogue.

        `fields`: description, originator, group, metadata, verify, max_files.
        """
        return Tree.model_validate(
            self._write("POST", "DM/register/tree", {"machine": machine, "path": path, **fields})
        )

    def info(self, object_id: UUID | str) -> ObjectInfo:
        """Return what the catalogue knows of an object."""
        return ObjectInfo.model_validate(self._read(f"DM/info/{object_id}").json())

    def objects(self, **filters: str | int) -> Iterator[ObjectInfo]:
        """Yield the objects that fit, page by page.

        `filters`: machine, group, status, filename (glob), path, since, until, sort, …
        """
        for item in self._pages("DM/info", {"limit": 1000, **filters}):
            yield ObjectInfo.model_validate(item)

    # --- transfers: wait for the end ---------------------------------------------------------------------------------

    def copy(self, object_id: UUID | str, machine: str, dest: str, **fields: Any) -> UUID:
        """Copy an object to `dest` (directory and name) on `machine`; return the copy's identifier.

        `fields`: overwrite, verify, bandwidth, priority (high, normal, low), deadline and not_before (a time with a
        zone, or a timedelta from now). So with every transfer.
        """
        return UUID(self._ended("POST", f"DM/copy/{object_id}", {"machine": machine, "dest": dest, **fields}))

    def move(self, object_id: UUID | str, machine: str, dest: str, **fields: Any) -> None:
        """Move an object to `dest` on `machine`; it keeps its identifier."""
        self._ended("POST", f"DM/move/{object_id}", {"machine": machine, "dest": dest, **fields})

    def archive(self, object_id: UUID | str, **fields: Any) -> None:
        """Put an object into an archive; its place is free then.

        `fields`: archive_to (the archive machine), verify (sizes, checksums, paranoid), keep_source, pack (tar, none),
        compress (none, zstd), and those of every transfer.
        """
        self._ended("POST", f"DM/archive/{object_id}", fields)

    def activate(self, object_id: UUID | str, **fields: Any) -> None:
        """Bring an archived object back, to where it was; `fields`: machine and dest for another place, overwrite."""
        self._ended("POST", f"DM/activate/{object_id}", fields)

    def delete(self, object_id: UUID | str, **fields: Any) -> None:
        """Delete an object's file; its row stays as DELETED. `fields`: priority, deadline, not_before."""
        self._ended("DELETE", f"DM/delete/{object_id}", fields)

    def getexternal(self, url: str, machine: str, filename: str, path: str = "", **fields: Any) -> UUID:
        """Fetch a URL to a machine; return the new object's identifier.

        With the option `extract` there are many: begin it with `start_getexternal`, whose `items` name them.
        """
        options = fields.get("options")
        if isinstance(options, Mapping) and options.get("extract"):
            why = "makes many objects: begin it with start_getexternal"
            raise InvalidRequest(f"options.extract: {why}", {"options.extract": why})
        return UUID(self._ended("PUT", "DM/getexternal", _external(url, machine, filename, path, fields)))

    # --- transfers: as tasks -----------------------------------------------------------------------------------------

    def start_copy(self, object_id: UUID | str, machine: str, dest: str, **fields: Any) -> UUID:
        """Begin a copy; return its task."""
        return self._started(f"DM/async/copy/{object_id}", {"machine": machine, "dest": dest, **fields})

    def start_move(self, object_id: UUID | str, machine: str, dest: str, **fields: Any) -> UUID:
        """Begin a move; return its task."""
        return self._started(f"DM/async/move/{object_id}", {"machine": machine, "dest": dest, **fields})

    def start_getexternal(self, url: str, machine: str, filename: str, path: str = "", **fields: Any) -> UUID:
        """Begin a download; return its task. With the option `extract` its `items` are the files of an archive."""
        return self._started("DM/async/getexternal", _external(url, machine, filename, path, fields))

    def start_archive(self, object_id: UUID | str, **fields: Any) -> UUID:
        """Begin to archive an object; return the task. `fields` are those of `archive`."""
        return self._started(f"DM/async/archive/{object_id}", fields)

    def start_activate(self, object_id: UUID | str, **fields: Any) -> UUID:
        """Begin to bring an archived object back; return the task. `fields` are those of `activate`."""
        return self._started(f"DM/async/activate/{object_id}", fields)

    def archive_many(self, objects: Iterable[UUID | str] | None = None, **fields: Any) -> UUID:
        """Begin to archive up to 10,000 objects, many in a bundle; return the task. A failing one fails alone.

        `fields` are those of `archive`; directory (machine, path) instead of `objects` for all that lies below it.
        """
        items = None if objects is None else [{"uuid": uuid} for uuid in objects]
        return self._started("DM/async/archive", _batch(items, fields))

    def activate_many(self, items: Iterable[Mapping[str, Any]] | None = None, **fields: Any) -> UUID:
        """Begin to bring up to 10,000 archived objects back; return the task. A failing one fails alone.

        `items` have uuid each, and machine and dest for another place than it had. `fields`: machine (of items that
        name none), overwrite; directory (machine, path) instead of `items` for all that was below it.
        """
        return self._started("DM/async/activate", _batch(items, fields))

    def copy_many(self, items: Iterable[Mapping[str, Any]] | None = None, **fields: Any) -> UUID:
        """Begin to copy up to 10,000 objects; return the task. A failing item fails alone (see `items`).

        `items` have uuid, dest and machine each. `fields`: machine (of items that name none), overwrite, verify;
        directory (machine, path) with machine and dest instead of `items` for all that lies below it.
        """
        return self._started("DM/async/copy", _batch(items, fields))

    def move_many(self, items: Iterable[Mapping[str, Any]] | None = None, **fields: Any) -> UUID:
        """Begin to move up to 10,000 objects; return the task. Arguments are those of `copy_many`."""
        return self._started("DM/async/move", _batch(items, fields))

    def items(self, task: UUID | str, status: TransferStatus | None = None) -> Iterator[Item]:
        """Yield a batch's items in the order of the request, page by page; with `status` only those."""
        query: dict[str, str | int] = {"limit": 1000}
        if status is not None:
            query["status"] = status.value
        for item in self._pages(f"DM/async/status/{task}/items", query):
            yield Item.model_validate(item)

    def status(self, task: UUID | str) -> Task:
        """Return how a task fares."""
        return Task.model_validate(self._read(f"DM/async/status/{task}").json())

    def set_bandwidth(self, task: UUID | str, bandwidth: int | str | None) -> Task:
        """Limit how fast a task moves bytes (per second, a number or like "50MB/s"), or lift its limit with None.

        Raises: TaskEnded.
        """
        return Task.model_validate(self._changed(f"DM/async/status/{task}", {"bandwidth": bandwidth}))

    def tasks(self, **filters: str | int) -> Iterator[Task]:
        """Yield the tasks that fit, the newest first, page by page.

        `filters`: status, kind, phase, priority, machine, group, object, since, until, sort (created: oldest first).
        """
        for item in self._pages("DM/async/status", {"limit": 1000, **filters}):
            yield Task.model_validate(item)

    def cancel(self, task: UUID | str) -> Task:
        """End a task as `cancelled`; one that a mover works on ends within seconds. Raises: TaskEnded."""
        return Task.model_validate(self._write("DELETE", f"DM/async/status/{task}", {}))

    def pause(self, task: UUID | str) -> Task:
        """Keep a task from going on until `resume`; one that a mover works on stops soon. Raises: TaskEnded."""
        return Task.model_validate(self._write("POST", f"DM/async/{task}/pause", {}))

    def resume(self, task: UUID | str) -> Task:
        """Let a paused task go on where it was. Raises: TaskEnded."""
        return Task.model_validate(self._write("POST", f"DM/async/{task}/resume", {}))

    def wait(self, task: UUID | str, *, timeout: float | None = None) -> Task:
        """Return the task when it is COMPLETE; raise its error when it ended in ERROR.

        Raises: TransportTimeout when `timeout` seconds have passed; the task goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = 0.05
        while True:
            found = self.status(task)
            if found.error is not None:
                raise by_code(found.error.code, found.error.detail)
            if found.status.ended:
                return found
            if deadline is not None and time.monotonic() >= deadline:
                raise TransportTimeout(f"task {task} has not ended within {timeout:g} s; it goes on")
            time.sleep(pause)
            pause = min(pause * 1.5, POLL_MAX)

    # --- the service -------------------------------------------------------------------------------------------------

    def machines(self) -> list[MachineInfo]:
        """Return the configured machines, each just probed; takes some seconds when one does not answer."""
        return [MachineInfo.model_validate(item) for item in self._read("DM/machines").json()]

    def limit_machine(self, name: str, **limits: int | str | None) -> MachineLimits:
        """Change a machine's limits for all its transfers, those under way included; return those in force.

        `limits`: bandwidth (bytes per second, a number or like "50MB/s"), max_transfers; None lifts a limit, one that
        is not given stays as it is.
        """
        return MachineLimits.model_validate(self._changed(f"DM/machines/{quote(name, safe='')}", limits))

    def reset_machine(self, name: str) -> MachineLimits:
        """Set a machine's limits back to what machines.toml says, and return those."""
        return MachineLimits.model_validate(self._write("DELETE", f"DM/machines/{quote(name, safe='')}/limits", {}))

    def drain_machine(self, name: str) -> MachineHealth:
        """Hold a machine's transfers back, those that run go on; return its health."""
        return MachineHealth.model_validate(self._write("POST", f"DM/machines/{quote(name, safe='')}/drain", {}))

    def undrain_machine(self, name: str) -> MachineHealth:
        """Let a machine's transfers run again; return its health."""
        return MachineHealth.model_validate(self._write("POST", f"DM/machines/{quote(name, safe='')}/undrain", {}))

    def add_schedule(self, url: str, machine: str, filename: str, path: str = "", **fields: Any) -> dict[str, Any]:
        """Fetch a URL again and again; `url`, `path` and `filename` are templates of the time. Return the schedule.

        `fields`: interval ("6h") or cron, keep, skip_unchanged, options, group, …
        """
        return self._write("POST", "DM/schedules", _external(url, machine, filename, path, fields))

    def schedules(self) -> list[dict[str, Any]]:
        """Return every schedule, oldest first."""
        found: list[dict[str, Any]] = self._read("DM/schedules").json()
        return found

    def schedule(self, schedule: UUID | str) -> dict[str, Any]:
        """Return a schedule with its last runs."""
        found: dict[str, Any] = self._read(f"DM/schedules/{quote(str(schedule), safe='')}").json()
        return found

    def change_schedule(self, schedule: UUID | str, what: Literal["pause", "resume", "run"]) -> dict[str, Any]:
        """Let a schedule rest, go on, or run now besides; return it."""
        return self._write("POST", f"DM/schedules/{quote(str(schedule), safe='')}/{what}", {})

    def run_schedule(self, schedule: UUID | str, moment: datetime | str | None = None) -> dict[str, Any]:
        """Fetch besides the ordinary times: a moment that is over (an aware time), or now; return the schedule, with a
        named moment alone as its `runs`. A moment that was fetched is not fetched again; one that failed is.
        """
        return self._write("POST", f"DM/schedules/{quote(str(schedule), safe='')}/run", {"moment": moment})

    def remove_schedule(self, schedule: UUID | str) -> None:
        """Remove a schedule; its versions stay."""
        self._write("DELETE", f"DM/schedules/{quote(str(schedule), safe='')}", {})

    def health(self) -> dict[str, Any]:
        """Return what was checked. Raises: ServiceError when the service is not ready."""
        found: dict[str, Any] = self._read("DM/health/ready").json()
        return found

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # --- requests ----------------------------------------------------------------------------------------------------

    def _ended(self, method: str, path: str, fields: Mapping[str, Any]) -> str:
        """Send a request that waits; return the new identifier or message."""
        answer = self._write(method, path, fields, {"Prefer": f"wait={HOLD}"})
        if "task" in answer:
            return self.wait(answer["task"]).result or ""
        return str(answer.get("message") or answer["uuid"])

    def _started(self, path: str, fields: Mapping[str, Any]) -> UUID:
        return UUID(self._write("POST", path, fields)["task"])

    def _pages(self, path: str, query: Mapping[str, str | int]) -> Iterator[Any]:
        answer = self._read(path, query)
        while True:
            yield from answer.json()
            following = answer.links.get("next")
            if following is None:
                return
            answer = self._read(urljoin(answer.url, following["url"]))

    def _read(self, path: str, query: Mapping[str, str | int] | None = None) -> requests.Response:
        return self._send("GET", path, params=query)

    def _write(
        self, method: str, path: str, fields: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        given = {name: _plain(value) for name, value in fields.items() if value is not None}
        sent = {"Idempotency-Key": str(uuid4()), **(headers or {})}
        answer: dict[str, Any] = self._send(method, path, json=given, headers=sent).json()
        return answer

    def _changed(self, path: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Send changes; None is one of them."""
        sent = {"Idempotency-Key": str(uuid4())}
        answer: dict[str, Any] = self._send("PATCH", path, json=dict(changes), headers=sent).json()
        return answer

    def _send(self, method: str, path: str, **options: Any) -> requests.Response:
        url = urljoin(self._base, path)
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answer = self._session.request(method, url, timeout=(5, self._timeout + HOLD), **options)
            except requests.RequestException as exc:
                if attempt == ATTEMPTS or not isinstance(exc, requests.ConnectionError | requests.Timeout):
                    raise ServiceError(f"the Data Manager at {self._base} does not answer") from exc
                time.sleep(PAUSE)
                continue
            if not answer.ok:
                raise problem_error(answer)
            return answer
        raise AssertionError("the last attempt returns or raises")


def _plain(value: Any) -> Any:
    """Write times as JSON has them."""
    if isinstance(value, datetime):
        return value.isoformat()
    return f"PT{value.total_seconds():f}S" if isinstance(value, timedelta) else value


def problem_error(answer: requests.Response) -> DataManagerError:
    """Rebuild the error that a problem document (RFC 9457) describes, retryable or not as it says.

    An answer that is none (a proxy's page, say) is an InternalError that names the status.
    """
    try:
        document = answer.json()
        code, detail = str(document["code"]), str(document["detail"])
    except (ValueError, KeyError, TypeError):
        return InternalError(f"{answer.url} answered {answer.status_code} {answer.reason}")
    told = document.get("retryable")
    retryable = None if told is None else bool(told)
    if code == InvalidRequest.code:
        fields = {item["field"]: item["detail"] for item in document.get("errors", ())}
        return InvalidRequest(detail, fields, retryable=retryable)
    if code == RegisteredSizeMismatch.code and answer.status_code == 422:  # the code's other owner is a transfer's
        return RegisteredSizeMismatch(detail, retryable=retryable)
    return by_code(code, detail, retryable=retryable)


def _batch(items: Iterable[Mapping[str, Any]] | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    if items is None:
        return dict(fields)
    return {**fields, "items": [{**item, "uuid": str(item["uuid"])} for item in items]}


def _external(url: str, machine: str, filename: str, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"url": url, "machine": machine, "filename": filename, "path": path, **fields}
