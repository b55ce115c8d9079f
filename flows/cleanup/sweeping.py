"""Partial files that nobody needs any more: found below the directories that audits search, and removed.

Only names of our exact form go, old ones by the machine's own clock, whose transfer has ended in the catalogue or is
not known there any more. Whose they are is looked up after the directory was read: a transfer that begins later makes
names that are young.
"""

from __future__ import annotations

import logging
import posixpath
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from uuid import UUID

from datamanager.domain.audit_rules import Expected, below_any
from datamanager.domain.location import PART_SUFFIX, read_part, spared
from datamanager.domain.states import ObjectStatus
from datamanager.engine.control import CancellableStorage, Control
from datamanager.engine.inspection import storage_scan
from datamanager.engine.inspection.directory_walk import DEPTH_MAX
from datamanager.engine.single.source_removal import machine_time
from datamanager.errors import (
    DataManagerError,
    PathMissing,
    PathNotAllowed,
    PathReplaced,
    PermissionDenied,
    RemoteFailure,
)
from datamanager.machines import Machine
from datamanager.transports.port import Session
from datamanager.transports.values import shown
from flows.audit.first_pass import Holders
from flows.runtime.services import Services
from models.audit import scan_queries
from models.database import storable
from models.objects.bulk_claims import chunks

PAGE = 500
JUDGED = 2000
"""Partial files, of all directories, whose owners are looked up together: that may read every item of every open batch.
"""
LINES = 1000
"""Files that a report names; all are counted."""
DAY = 86_400.0
MEANWHILE = 300.0
"""Seconds: a partial file younger than that is never removed, whatever the request says."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Swept:
    """What a sweep of one machine did: `lines` for the report, the first LINES; sizes in bytes."""

    machine: str
    removed: int = 0
    freed: int = 0
    spared: int = 0
    unlisted: int = 0
    lines: list[dict[str, object]] = field(default_factory=list)

    def say(self, place: str, size: int, age: float, what: str) -> None:
        """Note one file for the report."""
        if len(self.lines) < LINES:
            hours = f"{age / 3600:.1f} h"
            self.lines.append(
                {"machine": self.machine, "place": storable(place), "size": size, "age": hours, "what": what}
            )


@dataclass(frozen=True, slots=True)
class _PartialFile:
    """A partial file: the directories that it is in, on the machine and below base_dir, and what was seen of it."""

    real: str
    directory: str
    file: storage_scan.ScannedFile


class Sweeper:
    """Sweeps one machine; blocks. Every method may raise what `control` was stopped with."""

    def __init__(
        self, parts: Services, machine: Machine, older_than: float, control: Control, *, dry_run: bool
    ) -> None:
        self._parts = parts
        self._machine = machine
        self._older_than = max(older_than, MEANWHILE)
        self._control = control
        self._dry_run = dry_run
        self._storage = CancellableStorage(parts.storages.get(machine.name), control)
        self._found = list[_PartialFile]()
        self.swept = Swept(machine.name)

    def sweep(self) -> Swept:
        """Remove what nobody needs. Raises: what breaks the connection; RemoteFailure without the base directory."""
        with self._storage.session() as session:
            base = storage_scan.look_at_base(session, self._machine)
            seen = machine_time(session, base.path)  # ours may differ by hours
            clock = time.time() - DAY if seen is None else seen
        for directory, pending in self._directories():
            self._control.check()
            try:
                with self._storage.session() as session:
                    self._look_into(session, base.path, directory, pending)
            except (PermissionDenied, PathNotAllowed, PathReplaced, RemoteFailure) as exc:
                if self._control.stopping is not None:
                    raise
                self.swept.unlisted += 1
                log.info("%s:%s can't be swept: %s", self._machine.name, shown(directory), exc.detail)
            if len(self._found) >= JUDGED:
                self._judge_found(clock)
        self._judge_found(clock)
        return self.swept

    def _directories(self) -> Iterator[tuple[str, list[str] | None]]:
        """Yield the registered directories, with all below them; and elsewhere those that hold objects or bundles, and
        where transfers failed.
        """
        prefixes = self._machine.audit_prefixes
        for prefix in dict.fromkeys(prefixes):
            if not below_any(prefix, [other for other in prefixes if other != prefix]):
                pending = [prefix]
                while pending:
                    yield pending.pop(), pending
        if "" in prefixes:
            return
        for directory in chain(self._holders(), self._further_directories()):
            if not below_any(directory, prefixes):
                yield directory, None

    def _holders(self) -> Iterator[str]:
        after, holders = None, Holders()
        while rows := self._page(after):
            after = rows[-1].place, rows[-1].object_id
            yield from holders.new(row.place for row in rows if row.status == ObjectStatus.ACTIVE.value)

    def _page(self, after: tuple[str, UUID] | None) -> list[Expected]:
        with self._parts.database.read() as session:
            return scan_queries.objects_by_place(session, self._machine.name, after, PAGE)

    def _further_directories(self) -> Iterator[str]:
        name = self._machine.name
        with self._parts.database.read() as session:
            found = scan_queries.bundle_directories(session, name) | scan_queries.failed_directories(session, name)
            further = sorted(one for one in found if not scan_queries.holds_objects(session, name, one))
        yield from further

    def _look_into(self, session: Session, base: str, directory: str, pending: list[str] | None) -> None:
        def below(name: str) -> None:
            if pending is None:
                return
            if directory.count("/") < DEPTH_MAX:
                pending.append(posixpath.join(directory, name))
            else:
                self.swept.unlisted += 1

        canonical = storage_scan.canonical_directory(session, self._machine, directory)
        if canonical is None:
            return
        real = posixpath.join(base, canonical)
        for one in storage_scan.files_of(session, self._machine, canonical, below):
            if one.name.endswith(PART_SUFFIX):
                self._found.append(_PartialFile(real, canonical, one))

    def _judge_found(self, clock: float) -> None:
        found, self._found = self._found, []
        for some in chunks(found, JUDGED):
            owners = {part.owner for one in some if (part := read_part(one.file.name)) is not None}
            with self._parts.database.read() as catalogue:
                open_ones = scan_queries.open_owners(catalogue, owners)
            with self._storage.session() as session:
                self._judge(session, some, open_ones, clock)

    def _judge(self, session: Session, some: Sequence[_PartialFile], open_ones: set[str], clock: float) -> None:
        for found in some:
            self._control.check()
            one, part = found.file, read_part(found.file.name)
            age = clock - one.mtime
            why = spared(part, age, self._older_than, open_owner=part is not None and part.owner in open_ones)
            place = posixpath.join(found.directory, one.name)
            if why is None and not self._dry_run:
                why = _removed(session, posixpath.join(found.real, one.name), one)
            if why is None:
                self.swept.removed += 1
                self.swept.freed += one.size
            else:
                self.swept.spared += 1
            done = "would be removed" if self._dry_run else "removed"
            self.swept.say(place, one.size, age, done if why is None else f"stays: {why}")


def _removed(session: Session, path: str, seen: storage_scan.ScannedFile) -> str | None:
    """Remove a file that still is what it was; say why it stays."""
    try:
        now = session.lstat(path)
        if (now.size, now.mtime) != (seen.size, seen.mtime):
            return "it is being written"
        session.remove(path)
    except PathMissing:
        return "it no longer exists"
    except DataManagerError as exc:
        if exc.retryable:
            raise
        return f"{exc.code}: {exc.detail}"
    return None
