"""The client's calls: objects, transfers, tasks, machines, schedules."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from datamanager.client.answers import ItemInfo, MachineHealthInfo, MachineInfo, MachineLimits, ObjectInfo, Task, Tree
from datamanager.client.connection import WAIT, RestConnection, at
from datamanager.domain.states import TransferStatus
from datamanager.errors import InvalidRequest, by_code


class Client(RestConnection):
    """One service's client: objects, transfers, tasks, machines and schedules."""

    # --- objects -----------------------------------------------------------------------------------------------------

    def register(self, machine: str, filename: str, path: str = "", **fields: Any) -> UUID:
        """Register a file that is on a machine; return the new object's identifier.

        `fields`: size, description, originator, group, metadata, verify.
        """
        given = {"machine": machine, "filename": filename, "path": path, **fields}
        return UUID(self._write("PUT", at("register"), given)["uuid"])

    def register_tree(self, machine: str, path: str = "", **fields: Any) -> Tree:
        """Register every regular file below a directory.

        `fields`: description, originator, group, metadata, verify, max_files.
        """
        return self._ask(Tree, "POST", at("register", "tree"), {"machine": machine, "path": path, **fields})

    def info(self, object_id: UUID | str) -> ObjectInfo:
        """Return what the catalogue knows of an object."""
        return self._get(ObjectInfo, at("info", object_id))

    def objects(self, **filters: str | int) -> Iterator[ObjectInfo]:
        """Yield the objects that fit, page by page.

        `filters`: machine, group, status, filename (glob), path, since, until, sort, …
        """
        return self._list(ObjectInfo, at("info"), {"limit": 1000, **filters})

    # --- transfers: wait for the end ---------------------------------------------------------------------------------

    def copy(self, object_id: UUID | str, machine: str, dest: str, **fields: Any) -> UUID:
        """Copy an object to `dest` (directory and name) on `machine`; return the copy's identifier.

        `fields`: overwrite, verify, bandwidth, priority (high, normal, low), deadline and not_before (a time with a
        zone, or a timedelta from now). So with every transfer.
        """
        return UUID(self._ended("POST", at("copy", object_id), {"machine": machine, "dest": dest, **fields}))

    def move(self, object_id: UUID | str, machine: str, dest: str, **fields: Any) -> None:
        """Move an object to `dest` on `machine`; it keeps its identifier."""
        self._ended("POST", at("move", object_id), {"machine": machine, "dest": dest, **fields})

    def archive(self, object_id: UUID | str, **fields: Any) -> None:
        """Archive an object, which frees its place.

        `fields`: archive_to (the archive machine), verify (sizes, checksums, paranoid), keep_source, pack (tar, none),
        compress (none, zstd), and those of every transfer.
        """
        self._ended("POST", at("archive", object_id), fields)

    def activate(self, object_id: UUID | str, **fields: Any) -> None:
        """Activate an archived object where it was; `fields`: machine and dest for another place, overwrite."""
        self._ended("POST", at("activate", object_id), fields)

    def delete(self, object_id: UUID | str, **fields: Any) -> None:
        """Delete an object's file; its row stays as DELETED. `fields`: force, priority, deadline, not_before.

        Raises: SourceChanged when the file is not the object's any more: `force=True` deletes it nevertheless.
        """
        self._ended("DELETE", at("delete", object_id), fields)

    def getexternal(self, url: str, machine: str, filename: str, path: str = "", **fields: Any) -> UUID:
        """Fetch a URL to a machine; return the new object's identifier.

        With the option `extract` there are many: begin it with `start_getexternal`, whose `items` name them.
        """
        options = fields.get("options")
        if isinstance(options, Mapping) and options.get("extract"):
            why = "creates many objects: use start_getexternal"
            raise InvalidRequest.of({"options.extract": why})
        return UUID(self._ended("PUT", at("getexternal"), _external(url, machine, filename, path, fields)))

    # --- transfers: as tasks -----------------------------------------------------------------------------------------

    def start_copy(self, object_id: UUID | str, machine: str, dest: str, **fields: Any) -> UUID:
        """Begin a copy; return its task."""
        return self._started(at("async", "copy", object_id), {"machine": machine, "dest": dest, **fields})

    def start_move(self, object_id: UUID | str, machine: str, dest: str, **fields: Any) -> UUID:
        """Begin a move; return its task."""
        return self._started(at("async", "move", object_id), {"machine": machine, "dest": dest, **fields})

    def start_getexternal(self, url: str, machine: str, filename: str, path: str = "", **fields: Any) -> UUID:
        """Begin a download; return its task. With the option `extract` its `items` are the files of an archive."""
        return self._started(at("async", "getexternal"), _external(url, machine, filename, path, fields))

    def start_archive(self, object_id: UUID | str, **fields: Any) -> UUID:
        """Begin to archive an object; return the task. `fields` are those of `archive`."""
        return self._started(at("async", "archive", object_id), fields)

    def start_activate(self, object_id: UUID | str, **fields: Any) -> UUID:
        """Begin to activate an archived object; return the task. `fields` are those of `activate`."""
        return self._started(at("async", "activate", object_id), fields)

    def archive_many(self, objects: Iterable[UUID | str] | None = None, **fields: Any) -> UUID:
        """Begin to archive up to 10,000 objects, many in a bundle; return the task. A failing one fails alone.

        `fields` are those of `archive`; directory (machine, path) instead of `objects` for all that lies below it.
        """
        items = None if objects is None else [{"uuid": uuid} for uuid in objects]
        return self._started(at("async", "archive"), _batch(items, fields))

    def activate_many(self, items: Iterable[Mapping[str, Any]] | None = None, **fields: Any) -> UUID:
        """Begin to activate up to 10,000 archived objects; return the task. A failing one fails alone.

        `items` have uuid each, and machine and dest for another place than it had. `fields`: machine (of items that
        name none), overwrite; directory (machine, path) instead of `items` for all that was below it.
        """
        return self._started(at("async", "activate"), _batch(items, fields))

    def copy_many(self, items: Iterable[Mapping[str, Any]] | None = None, **fields: Any) -> UUID:
        """Begin to copy up to 10,000 objects; return the task. A failing item fails alone (see `items`).

        `items` have uuid, dest and machine each. `fields`: machine (of items that name none), overwrite, verify;
        directory (machine, path) with machine and dest instead of `items` for all that lies below it, up to 100,000
        objects.
        """
        return self._started(at("async", "copy"), _batch(items, fields))

    def move_many(self, items: Iterable[Mapping[str, Any]] | None = None, **fields: Any) -> UUID:
        """Begin to move up to 10,000 objects; return the task. Arguments are those of `copy_many`."""
        return self._started(at("async", "move"), _batch(items, fields))

    def items(self, task: UUID | str, status: TransferStatus | None = None) -> Iterator[ItemInfo]:
        """Yield a batch's items in the order of the request, page by page; with `status` only those."""
        query: dict[str, str | int] = {"limit": 1000}
        if status is not None:
            query["status"] = status.value
        return self._list(ItemInfo, at("async", "status", task, "items"), query)

    def status(self, task: UUID | str, *, wait: int = 0) -> Task:
        """Return the status of a task: when it has ended, or after `wait` seconds."""
        prefer = f"wait={wait}" if wait else None
        return Task.model_validate(self._read(at("async", "status", task), prefer=prefer))

    def set_bandwidth(self, task: UUID | str, bandwidth: int | str | None) -> Task:
        """Set the bandwidth of a task (bytes per second, a number or like "50MB/s"), or lift its limit with None.

        Raises: TaskEnded.
        """
        return self._ask(Task, "PATCH", at("async", "status", task), {"bandwidth": bandwidth})

    def tasks(self, **filters: str | int) -> Iterator[Task]:
        """Yield the tasks that fit, the newest first, page by page.

        `filters`: status, kind, phase, priority, machine, group, object, since, until, sort (created: oldest first).
        """
        return self._list(Task, at("async", "status"), {"limit": 1000, **filters})

    def cancel(self, task: UUID | str) -> Task:
        """End a task as `cancelled`; one that a mover works on ends within seconds. Raises: TaskEnded."""
        return self._ask(Task, "DELETE", at("async", "status", task))

    def pause(self, task: UUID | str) -> Task:
        """Pause a task until `resume`; one that a mover works on stops soon. Raises: TaskEnded."""
        return self._ask(Task, "POST", at("async", task, "pause"))

    def resume(self, task: UUID | str) -> Task:
        """Resume a paused task where it was. Raises: TaskEnded."""
        return self._ask(Task, "POST", at("async", task, "resume"))

    def wait(self, task: UUID | str, *, timeout: float | None = None) -> Task:
        """Return the task when it is COMPLETE; raise its error when it ended in ERROR.

        Raises: TransportTimeout when `timeout` seconds have passed; the task continues.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout

        def look() -> Task:
            return self.status(task, wait=int(min(WAIT, max(0.0, deadline - time.monotonic()))))

        found = self._until(look, lambda one: one.error is not None or one.status.ended, f"task {task}", timeout)
        if found.error is not None:
            raise by_code(found.error.code, found.error.detail)
        return found

    # --- the service -------------------------------------------------------------------------------------------------

    def machines(self) -> list[MachineInfo]:
        """Return the configured machines, each just probed; takes some seconds when one does not answer."""
        return list(self._list(MachineInfo, at("machines"), {}))

    def limit_machine(self, name: str, **limits: int | str | None) -> MachineLimits:
        """Change a machine's limits for all its transfers, those under way included; return those in force.

        `limits`: bandwidth (bytes per second, a number or like "50MB/s"), max_transfers; None lifts a limit, one that
        is not given stays as it is.
        """
        return self._ask(MachineLimits, "PATCH", at("machines", name), limits)

    def reset_machine(self, name: str) -> MachineLimits:
        """Set a machine's limits back to what machines.toml says, and return those."""
        return self._ask(MachineLimits, "DELETE", at("machines", name, "limits"))

    def drain_machine(self, name: str) -> MachineHealthInfo:
        """Begin no more transfers of a machine, running ones continue; return its health."""
        return self._ask(MachineHealthInfo, "POST", at("machines", name, "drain"))

    def undrain_machine(self, name: str) -> MachineHealthInfo:
        """Begin transfers of a machine again; return its health."""
        return self._ask(MachineHealthInfo, "POST", at("machines", name, "undrain"))

    def add_schedule(self, url: str, machine: str, filename: str, path: str = "", **fields: Any) -> dict[str, Any]:
        """Schedule a recurring download; `url`, `path` and `filename` are templates of the time. Return the schedule.

        `fields`: interval ("6h") or cron, keep, skip_unchanged, options, group, …
        """
        return self._write("POST", at("schedules"), _external(url, machine, filename, path, fields))

    def schedules(self) -> list[dict[str, Any]]:
        """Return every schedule, oldest first."""
        return [one for page in self._pages(at("schedules")) for one in page]

    def schedule(self, schedule: UUID | str) -> dict[str, Any]:
        """Return a schedule with its last runs."""
        return self._read(at("schedules", schedule))

    def change_schedule(self, schedule: UUID | str, what: Literal["pause", "resume", "run"]) -> dict[str, Any]:
        """Pause or resume a schedule, or run it now; return it."""
        return self._write("POST", at("schedules", schedule, what))

    def run_schedule(self, schedule: UUID | str, moment: datetime | str | None = None) -> dict[str, Any]:
        """Run a schedule besides its times: for a moment in the past (an aware time), or now; return the schedule, with
        that moment alone as its `runs`. A moment that was fetched is not fetched again; one that failed is.
        """
        return self._write("POST", at("schedules", schedule, "run"), {"moment": moment})

    def remove_schedule(self, schedule: UUID | str) -> None:
        """Remove a schedule; its versions stay."""
        self._write("DELETE", at("schedules", schedule))

    def health(self) -> dict[str, Any]:
        """Return what was checked. Raises: ServiceError when the service is not ready."""
        return self._read(at("health", "ready"))

    # --- requests ----------------------------------------------------------------------------------------------------

    def _ended(self, method: str, path: str, fields: Mapping[str, Any]) -> str:
        """Send a request that waits; return the new identifier or message."""
        answer = self._write(method, path, fields, prefer=f"wait={WAIT}")
        if "task" in answer:
            return self.wait(answer["task"]).result or ""
        return str(answer.get("message") or answer["uuid"])

    def _started(self, path: str, fields: Mapping[str, Any]) -> UUID:
        return UUID(self._write("POST", path, fields)["task"])


def _batch(items: Iterable[Mapping[str, Any]] | None, fields: Mapping[str, Any]) -> dict[str, Any]:
    if items is None:
        return dict(fields)
    return {**fields, "items": [{**item, "uuid": str(item["uuid"])} for item in items]}


def _external(url: str, machine: str, filename: str, path: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"url": url, "machine": machine, "filename": filename, "path": path, **fields}
