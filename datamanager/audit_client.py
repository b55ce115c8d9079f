"""A client of the REST API for audits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import BaseModel, ConfigDict

from datamanager.client import Client
from datamanager.domain.audit.rules import AuditStatus, FindingKind

LOOK_EVERY = 1.0  # seconds between two looks at an audit that is waited for


class AuditError(BaseModel):
    """Why an audit ended in ERROR."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    code: str
    detail: str
    retryable: bool


class Audit(BaseModel):
    """An audit of a machine. `counts` says what was looked at and found; empty until it is done."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    audit: UUID
    machine: str
    status: AuditStatus
    counts: dict[str, int]
    scrubbed_objects: int
    scrubbed_bytes: int
    suspicious: bool
    error: AuditError | None
    created: datetime
    begun: datetime | None
    ended: datetime | None


class AuditFinding(BaseModel):
    """A difference that two looks have found; see docs/audit.md."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    number: int
    kind: FindingKind
    place: str
    object: UUID | None
    expected: dict[str, Any]
    found: dict[str, Any]
    applied: bool


class AuditClient(Client):
    """What a client asks about audits."""

    def start_audit(self, machine: str, **terms: Any) -> Audit:
        """Ask for an audit; terms are `scrub_share`, `scrub_bytes`, `second_look`, `most_lost`, `accept_losses`."""
        return Audit.model_validate(self._write("POST", "DM/audits", {"machine": machine, **terms}))

    def audit(self, audit: UUID | str) -> Audit:
        """Return how an audit fares. Raises: AuditNotFound."""
        return Audit.model_validate(self._read(f"DM/audits/{audit}").json())

    def wait_for_audit(self, audit: UUID | str) -> Audit:
        """Return an audit when it has ended, well or not."""
        while not (found := self.audit(audit)).status.ended:
            time.sleep(LOOK_EVERY)
        return found

    def audits(self, machine: str | None = None, **query: str | int) -> Iterator[Audit]:
        """Yield audits, the newest first."""
        wanted = query if machine is None else {"machine": machine, **query}
        return map(Audit.model_validate, self._pages("DM/audits", wanted))

    def audit_findings(self, audit: UUID | str, kind: str | None = None) -> Iterator[AuditFinding]:
        """Yield what an audit found. Raises: AuditNotFound, InvalidRequest."""
        query = {} if kind is None else {"kind": kind}
        return map(AuditFinding.model_validate, self._pages(f"DM/audits/{audit}/findings", query))
