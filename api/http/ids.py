"""Identifiers in addresses: one that can't exist is one that was not found."""

from __future__ import annotations

import re
from uuid import UUID

from datamanager.errors import ObjectNotFound, RetentionRunNotFound, TaskNotFound

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def object_id_of(text: str) -> UUID:
    """Read an object's identifier. Raises: ObjectNotFound."""
    if not _UUID.fullmatch(text):
        raise ObjectNotFound(f"no object has the identifier {text[:64]!r}")
    return UUID(text)


def task_id_of(text: str) -> UUID:
    """Read a task's identifier. Raises: TaskNotFound."""
    if not _UUID.fullmatch(text):
        raise TaskNotFound(f"no task has the identifier {text[:64]!r}")
    return UUID(text)


def retention_run_of(text: str) -> UUID:
    """Read the identifier of a run of retention. Raises: RetentionRunNotFound."""
    if not _UUID.fullmatch(text):
        raise RetentionRunNotFound(f"no run of retention has the identifier {text[:64]!r}")
    return UUID(text)
