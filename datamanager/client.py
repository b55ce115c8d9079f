"""A client of the REST API, for scripts and other services.

    with Client("http://127.0.0.1:5000") as dm:
        weather = dm.register("archer2", "june.nc", "weather", group="fire")
        copy = dm.copy(weather, "cirrus", "weather/june.nc")

What the service refuses is raised as the error it was there (`datamanager.errors`). Writing calls carry an
`Idempotency-Key`, so one whose connection broke is repeated and still done once.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, Self
from urllib.parse import urljoin, urlsplit
from uuid import UUID, uuid4

import requests
from pydantic import BaseModel, ConfigDict, Field

from datamanager.domain.states import ObjectStatus, TransferStatus
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


class TaskError(_Answer):
    """Why a task ended in ERROR."""

    code: str
    detail: str
    retryable: bool


class Task(_Answer):
    """How a transfer fares. `result` is a new object's identifier or a message; null until the end."""

    task: UUID
    kind: str
    status: TransferStatus
    result: str | None
    phase: str
    bytes_done: int
    bytes_total: int | None
    error: TaskError | None
    flow_run_url: str | None
    faults: list[dict[str, Any]] = Field(default_factory=list)


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

    def info(self, object_id: UUID | str) -> ObjectInfo:
        """Return what the catalogue knows of an object."""
        return ObjectInfo.model_validate(self._read(f"DM/info/{object_id}").json())

    def objects(self, **filters: str | int) -> Iterator[ObjectInfo]:
        """Yield the objects that fit, page by page.

        `filters`: machine, group, status, filename (glob), path, since, until, sort, …
        """
        query = {"limit": 1000, **filters}
        answer = self._read("DM/info", query)
        while True:
            for item in answer.json():
                yield ObjectInfo.model_validate(item)
            following = answer.links.get("next")
            if following is None:
                return
            answer = self._read(urljoin(answer.url, following["url"]))

    # --- transfers: wait for the end ---------------------------------------------------------------------------------

    def copy(self, object_id: UUID | str, machine: str, dest: str, **fields: Any) -> UUID:
        """Copy an object to `dest` (directory and name) on `machine`; return the copy's identifier.

        `fields`: overwrite, verify. So with every transfer.
        """
        return UUID(self._ended("POST", f"DM/copy/{object_id}", {"machine": machine, "dest": dest, **fields}))

    def move(self, object_id: UUID | str, machine: str, dest: str, **fields: Any) -> None:
        """Move an object to `dest` on `machine`; it keeps its identifier."""
        self._ended("POST", f"DM/move/{object_id}", {"machine": machine, "dest": dest, **fields})

    def delete(self, object_id: UUID | str) -> None:
        """Delete an object's file; its row stays as DELETED."""
        self._ended("DELETE", f"DM/delete/{object_id}", {})

    def getexternal(self, url: str, machine: str, filename: str, path: str = "", **fields: Any) -> UUID:
        """Fetch a URL to a machine; return the new object's identifier."""
        return UUID(self._ended("PUT", "DM/getexternal", _external(url, machine, filename, path, fields)))

    # --- transfers: as tasks -----------------------------------------------------------------------------------------

    def start_copy(self, object_id: UUID | str, machine: str, dest: str, **fields: Any) -> UUID:
        """Begin a copy; return its task."""
        return self._started(f"DM/async/copy/{object_id}", {"machine": machine, "dest": dest, **fields})

    def start_move(self, object_id: UUID | str, machine: str, dest: str, **fields: Any) -> UUID:
        """Begin a move; return its task."""
        return self._started(f"DM/async/move/{object_id}", {"machine": machine, "dest": dest, **fields})

    def start_getexternal(self, url: str, machine: str, filename: str, path: str = "", **fields: Any) -> UUID:
        """Begin a download; return its task."""
        return self._started("DM/async/getexternal", _external(url, machine, filename, path, fields))

    def status(self, task: UUID | str) -> Task:
        """Return how a task fares."""
        return Task.model_validate(self._read(f"DM/async/status/{task}").json())

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

    def _read(self, path: str, query: Mapping[str, str | int] | None = None) -> requests.Response:
        return self._send("GET", path, params=query)

    def _write(
        self, method: str, path: str, fields: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        given = {name: value for name, value in fields.items() if value is not None}
        sent = {"Idempotency-Key": str(uuid4()), **(headers or {})}
        answer: dict[str, Any] = self._send(method, path, json=given, headers=sent).json()
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


def problem_error(answer: requests.Response) -> DataManagerError:
    """Rebuild the error that a problem document (RFC 9457) describes, retryable or not as it says.

    An answer that is none (a proxy's page, say) is an InternalError that names the status.
    """
    try:
        document = answer.json()
        code, detail = str(document["code"]), str(document["detail"])
    except (ValueError, KeyError, TypeError):
        return InternalError(f"{answer.url} answered {answer.status_code} {answer.reason}")
    error = by_code(code, detail)
    if code == InvalidRequest.code:
        error = InvalidRequest(detail, {item["field"]: item["detail"] for item in document.get("errors", ())})
    elif code == RegisteredSizeMismatch.code and answer.status_code == 422:  # the code's other owner is a transfer's
        error = RegisteredSizeMismatch(detail)
    error.retryable = bool(document.get("retryable", error.retryable))
    return error


def _external(url: str, machine: str, filename: str, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"url": url, "machine": machine, "filename": filename, "path": path, **fields}
