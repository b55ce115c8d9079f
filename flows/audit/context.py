"""What the parts of an audit share: the machine, the catalogue, the lease, and the counts. All of it blocks.

A session is borrowed for a page, so that an audit never keeps transfers from a machine's connections.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy.orm import Session as CatalogueSession

from datamanager.domain.audit_rules import AuditTerms, Expected, Finding, FindingKind, Look
from datamanager.engine.control import CancellableStorage, Control
from datamanager.engine.inspection import storage_scan
from datamanager.errors import DataManagerError, RemoteFailure
from datamanager.transports.port import Session
from flows.runtime.services import Services
from models.audit import findings as audit_findings
from models.audit import scan_queries
from models.audit.runs import AuditLease

PAGE = 500
"""Rows, entries or candidates in one go."""
PAUSES = (1.0, 4.0)
"""Seconds between the tries of a page whose connection breaks."""

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


class Examination:
    """One audit of one machine under a lease. Used by one thread at a time.

    Every method may raise what `control` was stopped with, LeaseLost and CatalogueUnavailable.
    """

    def __init__(self, parts: Services, hold: AuditLease, terms: AuditTerms, control: Control) -> None:
        self._database = parts.database
        self._hold = hold
        self._control = control
        self.terms = terms
        self.machine = parts.machines[hold.machine]
        self.name = self.machine.name
        self.audit = hold.audit
        self.storage = CancellableStorage(parts.storages.get(hold.machine), control)
        self.begun = math.floor(time.time())  # machines report whole seconds
        """When it began, in seconds since 1970 by our clock: younger files are nobody's fault yet."""
        names = ("objects", "left_out", "unseen", "bundles", "directories", "unlisted")
        self.counts: dict[str, int] = dict.fromkeys(names, 0)
        self.seen = 0
        """ACTIVE objects of which the machine said whether their file is there."""
        self.lost_not_kept = 0

    def look_at_base(self) -> bool:
        """Say whether the base directory is empty. Raises: RemoteFailure when it is missing, PermissionDenied."""
        return self.patiently(lambda session: storage_scan.look_at_base(session, self.machine)).empty

    def require_mounted(self) -> None:
        """Refuse a base directory that is empty, unless that is accepted. Raises: RemoteFailure."""
        if self.look_at_base() and not self.terms.accept_losses:
            where = f"base_dir {self.machine.base_dir} of {self.name}"
            raise RemoteFailure(f"{where} is empty although there are objects: is its file system mounted?")

    def look_at(self, rows: Sequence[Expected]) -> list[Look]:
        """Look at the files of some rows."""
        return self.patiently(lambda session: storage_scan.look_at(session, self.machine, rows)) if rows else []

    def look_at_paths(self, paths: Sequence[str]) -> list[Look]:
        """Look at files that no row knows."""
        return self.patiently(lambda session: storage_scan.look_at_paths(session, self.machine, paths)) if paths else []

    def hashes(self, looks: Sequence[Look]) -> list[Look]:
        """Hash files that were looked at; return the looks with what that gave."""

        def hash_all(session: Session) -> list[Look]:
            found = list(looks)
            for index, look in storage_scan.digests(session, looks, self._control.watch):
                found[index] = look
            return found

        return self.patiently(hash_all) if looks else []

    def unclaimed(self, rows: Sequence[Expected]) -> list[Expected]:
        """Return the rows that no transfer under way has to do with."""
        objects = self.reading(audit_findings.claimed, [row.object_id for row in rows])
        places = self.reading(scan_queries.claimed_places, self.name, [row.place for row in rows])
        return [row for row in rows if row.object_id not in objects and row.place not in places]

    def known(self, paths: Sequence[str]) -> set[str]:
        """Return those of the places that the catalogue knows; what is not valid UTF-8 it can't."""
        return self.reading(scan_queries.known_places, self.name, [path for path in paths if is_text(path)])

    def add(self, findings: Sequence[Finding | None]) -> None:
        """Note candidates."""
        some = [one for one in findings if one is not None]
        if some:
            left = self.writing(audit_findings.add, some)
            self.lost_not_kept += sum(one.kind is FindingKind.LOST for one in left)

    def note(self, **further: int) -> None:
        """Note the counts in the audit's row."""
        self.counts |= further
        self.writing(scan_queries.note_counts, self.counts)

    def patiently(self, call: Callable[[Session], T]) -> T:
        """Do something on the machine, again when its connection breaks."""
        for pause in PAUSES:
            try:
                return self._once(call)
            except DataManagerError as exc:
                if not exc.retryable or self._control.stopping is not None:
                    raise
                log.info("%s: %s; retrying", self.name, exc.detail)
            until = time.monotonic() + pause
            while time.monotonic() < until:
                self.check()
                time.sleep(0.1)
        return self._once(call)

    def check(self) -> None:
        """Raise what the audit is to stop with."""
        self._control.check()

    def reading(self, look: Callable[Concatenate[CatalogueSession, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read the catalogue."""
        self.check()
        with self._database.read() as session:
            return look(session, *args, **kwargs)

    def writing(
        self, change: Callable[Concatenate[CatalogueSession, AuditLease, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Change the catalogue under the lease, in one transaction."""
        self.check()
        with self._database.write() as session:
            return change(session, self._hold, *args, **kwargs)

    def _once(self, call: Callable[[Session], T]) -> T:
        self.check()
        with self.storage.session() as session:
            return call(session)


def is_text(path: str) -> bool:
    """Say whether a path is valid UTF-8, as all are that the catalogue knows."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
