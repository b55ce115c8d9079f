"""Audits without Prefect: what `flows.audit_machine` does in its order, and what tests ask of the report."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from datamanager.domain.audit_rules import AuditTerms
from datamanager.domain.location import Place
from datamanager.domain.requests import RegisterRequest
from datamanager.domain.states import Verified
from datamanager.engine.control import Control
from datamanager.errors import DataManagerError
from datamanager.machines import Machine, Machines
from datamanager.settings import Settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from flows.audit.context import Examination
from flows.audit.first_pass import first_look
from flows.audit.scrub import scrub
from flows.audit.second_pass import conclude, second_look
from flows.runtime.services import Services
from models.access.visibility import ALL
from models.audit import findings
from models.audit import runs as audit_runs
from models.database import Database
from models.objects import catalogue
from models.objects.catalogue import Facts
from models.tables import Audit, AuditFinding, DataObject
from tests.support.site import sha256

OLD = 1_600_000_000
"""The mtime of files that are older than any audit."""


@dataclass
class Audited:
    """An audit that has ended: its row, and its findings as (kind, place)."""

    row: Audit
    rows: list[AuditFinding]

    @property
    def found(self) -> set[tuple[str, str]]:
        """The findings, confirmed ones only."""
        return {(row.kind, row.place) for row in self.rows}

    def of(self, place: str) -> AuditFinding:
        """Return the one finding at a place."""
        (row,) = [row for row in self.rows if row.place == place]
        return row


class Plant:
    """A catalogue and one machine whose files are below `folder`."""

    def __init__(self, database: Database, machine: Machine, folder: Path, home: Path) -> None:
        self.database, self.machine, self.folder = database, machine, folder
        machines = Machines({machine.name: machine})
        self.services = Services(
            settings=Settings(home=home),
            machines=machines,
            database=database,
            storages=Storages(machines, home),
            guard=EgressGuard(()),
            owner="mover-of-the-test",
            notify=lambda _: None,
        )

    def write(self, path: str, data: bytes = b"some bytes") -> Path:
        """Put an old file on the machine."""
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        os.utime(file, (OLD, OLD))
        return file

    def register(self, path: str, data: bytes = b"some bytes", *, canonical: str | None = None) -> UUID:
        """Put a file on the machine and register it with its checksum."""
        self.write(path, data)
        directory, _, name = path.rpartition("/")
        place = Place.of(self.machine, path)
        request = RegisterRequest(filename=name, path=directory, machine=self.machine.name)
        facts = Facts(len(data), sha256(data), Verified.SHA256)
        other = None if canonical is None else Place.of(self.machine, canonical)
        with self.database.write() as session:
            return catalogue.register_object(session, request, place, facts, canonical=other, by=None)

    def get(self, object_id: UUID) -> DataObject:
        """Return an object's row."""
        with self.database.read() as session:
            return catalogue.get_object(session, object_id, ALL)

    def audit(
        self,
        between: Callable[[], Any] = lambda: None,
        *,
        after: Callable[[], Any] = lambda: None,
        lease: timedelta = timedelta(minutes=10),
        **terms: Any,
    ) -> Audited:
        """Audit the machine; `between` is done between the two looks, `after` when both are over and nothing is applied
        yet. Errors end it as they do in the flow.
        """
        asked = AuditTerms.model_validate({"scrub_share": 0, **terms})
        with self.database.write() as session:
            audit = audit_runs.submit(session, self.machine.name, asked, None).id
        with self.database.write() as session:
            (hold,) = audit_runs.take(session, 1)
        with self.database.write() as session:
            audit_runs.renew(session, hold, lease)
        error: DataManagerError | None = None
        try:
            exam = Examination(self.services, hold, asked, Control())
            first_look(exam)
            scrub(exam)
            between()
            second_look(exam)
            after()
            conclude(exam)
        except DataManagerError as exc:
            error = exc
        with self.database.write() as session:
            audit_runs.end(session, hold, error)
        with self.database.read() as session:
            return Audited(audit_runs.get_audit(session, audit, ALL), findings.page(session, audit, limit=100_000))
