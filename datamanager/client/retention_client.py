"""The client's calls for retention: holds, lifetimes, plans and runs.

with RetentionClient("http://127.0.0.1:5000") as dm:
    dm.hold(weather, "figures of a paper")
    for line in dm.plan().lines:
        print(line["verdict"], line["object"], line["reason"])
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from pydantic import Field

from datamanager.client.answers import ObjectInfo, ServiceAnswer
from datamanager.client.connection import at
from datamanager.client.rest_client import Client
from datamanager.errors import TransferError


class RetentionPlan(ServiceAnswer):
    """What a run would do. `counts` are all objects, by rule, action, verdict and reason; `lines` the first ones."""

    time: datetime
    rules: list[str]
    counts: list[dict[str, Any]]
    lines: list[dict[str, Any]]
    truncated: bool


class RetentionRunInfo(ServiceAnswer):
    """A run. `lines` are there in the answer for one run."""

    run: UUID
    status: str
    dry_run: bool
    rule: str
    created: datetime
    started: datetime | None
    ended: datetime | None
    bytes_freed: int
    pending: int
    counts: list[dict[str, Any]]
    error: str | None
    flow_run_id: UUID | None
    lines: list[dict[str, Any]] = Field(default_factory=list)
    truncated: bool = False


class RetentionClient(Client):
    """A client with the calls for retention."""

    def hold(self, object_id: UUID | str, reason: str, by: str = "") -> ObjectInfo:
        """Keep an object from being deleted until `release`. Raises: ObjectBusy when its delete is under way."""
        return self._ask(ObjectInfo, "PUT", at("objects", object_id, "hold"), {"reason": reason, "by": by})

    def release(self, object_id: UUID | str) -> ObjectInfo:
        """End an object's hold; fine when it has none."""
        return self._ask(ObjectInfo, "DELETE", at("objects", object_id, "hold"))

    def set_lifetime(self, object_id: UUID | str, lifetime: str | timedelta | datetime | None) -> ObjectInfo:
        """Set the lifetime of an object: from now on ("30d", a timedelta), a time with a zone, None for ever."""
        if lifetime is None or isinstance(lifetime, datetime):
            given = {"expires_at": "" if lifetime is None else lifetime}
        else:
            given = {"lifetime": lifetime}  # type: ignore[dict-item]
        return self._ask(ObjectInfo, "PUT", at("objects", object_id, "lifetime"), given)

    def restore(self, object_id: UUID | str, spare_for: str | timedelta | None = None) -> UUID | None:
        """Take an object back from the rule that marked or archived it; return the task that activates it, if any.

        Raises: NotMarked, ObjectDeleted.
        """
        task = self._write("POST", at("retention", "restore", object_id), {"spare_for": spare_for})["task"]
        return None if task is None else UUID(task)

    def plan(self, rule: str = "", **caps: int | str) -> RetentionPlan:
        """Return what a run would do now; `caps`: max_objects, max_bytes."""
        query = {name: value for name, value in {"rule": rule, **caps}.items() if value != ""}
        return self._get(RetentionPlan, at("retention", "plan"), query)

    def start_retention(self, *, rule: str = "", dry_run: bool = False, **caps: int | str | None) -> RetentionRunInfo:
        """Start a run; `caps`: max_objects, max_bytes."""
        fields = {"rule": rule, "dry_run": dry_run, **caps}
        return self._ask(RetentionRunInfo, "POST", at("retention", "run"), fields)

    def retention_run(self, run: UUID | str) -> RetentionRunInfo:
        """Return a run with its lines."""
        return self._get(RetentionRunInfo, at("retention", "runs", run))

    def retention_runs(self) -> Iterator[RetentionRunInfo]:
        """Yield the runs that are kept, the newest first."""
        return self._list(RetentionRunInfo, at("retention", "runs"), {"limit": 100})

    def wait_for_retention(self, run: UUID | str, *, timeout: float | None = None) -> RetentionRunInfo:
        """Return a run when it is COMPLETE. Raises: TransferError with what it ended with; TransportTimeout when
        `timeout` seconds have passed.
        """
        found = self._until(lambda: self.retention_run(run), lambda one: one.ended is not None, f"run {run}", timeout)
        if found.error is not None:
            raise TransferError(f"run {run}: {found.error}")
        return found
