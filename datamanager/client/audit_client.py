"""The client's calls for audits."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

from datamanager.client.answers import ServiceAnswer, TaskError
from datamanager.client.connection import at
from datamanager.client.rest_client import Client
from datamanager.domain.audit_rules import AuditStatus, FindingKind


class AuditInfo(ServiceAnswer):
    """An audit of a machine. `counts` says what was examined and found; empty until it is done."""

    audit: UUID
    machine: str
    status: AuditStatus
    counts: dict[str, int]
    scrubbed_objects: int
    scrubbed_bytes: int
    suspicious: bool
    error: TaskError | None
    created: datetime
    begun: datetime | None
    ended: datetime | None


class AuditFindingInfo(ServiceAnswer):
    """A difference that both passes found; see docs/audit.md."""

    number: int
    kind: FindingKind
    place: str
    object: UUID | None
    expected: dict[str, Any]
    found: dict[str, Any]
    applied: bool


class AuditClient(Client):
    """A client with the calls for audits."""

    def start_audit(self, machine: str, **terms: Any) -> AuditInfo:
        """Start an audit; terms are `scrub_share`, `scrub_bytes`, `second_look`, `most_lost`, `accept_losses`."""
        return self._ask(AuditInfo, "POST", at("audits"), {"machine": machine, **terms})

    def audit(self, audit: UUID | str) -> AuditInfo:
        """Return the status of an audit. Raises: AuditNotFound."""
        return self._get(AuditInfo, at("audits", audit))

    def wait_for_audit(self, audit: UUID | str) -> AuditInfo:
        """Return an audit when it has ended, well or not."""
        return self._until(lambda: self.audit(audit), lambda one: one.status.ended, f"audit {audit}")

    def audits(self, machine: str | None = None, **query: str | int) -> Iterator[AuditInfo]:
        """Yield audits, the newest first."""
        wanted = query if machine is None else {"machine": machine, **query}
        return self._list(AuditInfo, at("audits"), wanted)

    def audit_findings(self, audit: UUID | str, kind: str | None = None) -> Iterator[AuditFindingInfo]:
        """Yield what an audit found. Raises: AuditNotFound, InvalidRequest."""
        query = {} if kind is None else {"kind": kind}
        return self._list(AuditFindingInfo, at("audits", audit, "findings"), query)
