"""Identifiers in addresses: one that can't exist is one that was not found."""

from __future__ import annotations

import re
from collections.abc import Callable
from uuid import UUID

from datamanager.errors import (
    AuditNotFound,
    DataManagerError,
    ObjectNotFound,
    RetentionRunNotFound,
    ScheduleNotFound,
    TaskNotFound,
)

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _reader(thing: str, not_found: type[DataManagerError]) -> Callable[[str], UUID]:
    def read(text: str) -> UUID:
        if not _UUID.fullmatch(text):
            raise not_found(f"no {thing} has the identifier {text[:64]!r}")
        return UUID(text)

    return read


object_id_of = _reader("object", ObjectNotFound)
task_id_of = _reader("task", TaskNotFound)
audit_id_of = _reader("audit", AuditNotFound)
schedule_id_of = _reader("schedule", ScheduleNotFound)
retention_run_id_of = _reader("run of retention", RetentionRunNotFound)
