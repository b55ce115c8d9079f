"""Retention in tests: a catalogue, real files on machines, rules, and a mover that performs what runs submit."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import select, update

from datamanager.domain.location import Place
from datamanager.domain.requests import RegisterRequest
from datamanager.domain.retention_rules import RetentionRules, parse_rules
from datamanager.domain.states import TransferKind, Verified
from datamanager.engine.attempt import Endpoint, KnownFile
from datamanager.engine.control import Control
from datamanager.engine.single.source_removal import remove_file
from datamanager.errors import DataManagerError
from datamanager.identity.grant import Grant
from datamanager.machines import Machine, Machines, parse_machines
from datamanager.settings import load_settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from flows.retention.run import Retaining
from flows.runtime.services import Services
from models.access.visibility import ALL
from models.database import Database, now
from models.objects.catalogue import Facts, get_object, register_object
from models.retention import runs as retention_runs
from models.retention.report import Report, make_decider, plan
from models.retention.runs import RetentionTerms
from models.tables import DataObject, RetentionMark, RetentionRun, Transfer
from models.transfers import outcomes, queue
from models.transfers.items import KNOWN
from tests.support import archiving
from tests.support.bookkeeping import LEASE
from tests.support.sshd import PrivateSshd

LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
COPIES = """
[[rule]]
name = "copies"
action = "delete-copies"
group = "scratch"
grace = "0s"
"""
MONTH = timedelta(days=30)
ARCHIVE = """
[[rule]]
name = "to tape"
action = "archive"
group = "scratch"
archive_to = "tape"
grace = "0s"
"""
WITH_GRACE = COPIES.replace('"0s"', '"7d"')
LAST = """
[[rule]]
name = "expired"
action = "delete"
expired = true
even_last_copy = true
grace = "0s"
"""


@dataclass
class Keeper:
    """What a test works with; `folders` are the base directories of the machines."""

    parts: Services
    folders: dict[str, Path]
    _age: int = field(default=0)

    def object(self, path: str, data: bytes = b"some bytes", machine: str = "here", **fields: Any) -> UUID:
        """Put a file on a machine and register it as verified; each is a minute younger than the one before.

        `fields`: those of a request, and `verified`.
        """
        verified = fields.pop("verified", Verified.SHA256)
        file = self.folders[machine] / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        directory, _, name = path.rpartition("/")
        request = RegisterRequest(filename=name, path=directory, machine=machine, **fields)
        facts = Facts(len(data), f"sha256:{hashlib.sha256(data).hexdigest()}", verified)
        with self.parts.database.write() as session:
            new = register_object(session, request, Place(machine, path), facts, by=None)
        self._age += 1
        self.change(new, date_registered=LONG_AGO + timedelta(minutes=self._age))
        return new

    def change(self, uuid: UUID, **columns: Any) -> None:
        """Write columns of an object behind everybody's back."""
        with self.parts.database.write() as session:
            session.execute(update(DataObject).where(DataObject.id == uuid).values(**columns))

    def get(self, uuid: UUID) -> DataObject:
        """Return an object."""
        with self.parts.database.read() as session:
            return get_object(session, uuid, ALL)

    def status(self, *uuids: UUID) -> list[str]:
        """Return the objects' statuses."""
        return [self.get(uuid).status for uuid in uuids]

    def there(self, path: str, machine: str = "here") -> bool:
        """Say whether a file is on a machine."""
        return (self.folders[machine] / path).exists()

    def marks(self) -> list[RetentionMark]:
        """Return all marks, oldest first."""
        with self.parts.database.read() as session:
            return list(session.scalars(select(RetentionMark).order_by(RetentionMark.id)))

    def make_due(self) -> None:
        """Let the grace of all marks be over."""
        with self.parts.database.write() as session:
            session.execute(update(RetentionMark).values(due=now(session)))

    def transfers(self) -> list[Transfer]:
        """Return all transfers, oldest first."""
        with self.parts.database.read() as session:
            return list(session.scalars(select(Transfer).order_by(Transfer.created, Transfer.id)))

    def plan(self, text: str | RetentionRules, by: Grant | None = None, **terms: Any) -> Report:
        """Return what a run would do."""
        return plan(self.parts.database, _rules(text), self.parts.machines, RetentionTerms(True, **terms), by)[1]

    def begin(self, text: str | RetentionRules, by: Grant | None = None, **terms: Any) -> tuple[UUID, Retaining]:
        """Enter a run, which somebody may have requested, and return what works on it."""
        asked, rules = RetentionTerms(False, **terms), _rules(text)
        with self.parts.database.write() as session:
            wanted = None if by is None else retention_runs.ask_for_run(session, asked, by)
            run = retention_runs.begin_run(session, asked, wanted, "test", None).id
            decider = make_decider(session, rules, self.parts.machines, asked)
        return run, Retaining(self.parts, run, rules, decider, Control())

    def run(self, text: str | RetentionRules, *, judge: Judge | None = None, **terms: Any) -> RetentionRun:
        """Do a whole run, with a mover that performs what it submits, and return its report."""
        run, work = self.begin(text, **terms)
        with moving(self.parts, judge):
            asyncio.run(work.work())
        return self.end(run, work.report)

    def end(self, run: UUID, report: Report) -> RetentionRun:
        """End a run as its flow does."""
        with self.parts.database.write() as session:
            return retention_runs.end_run(session, run, counts=report.counts, lines=report.lines)


Judge = Callable[[Transfer], DataManagerError | None]


@contextlib.contextmanager
def moving(parts: Services, judge: Judge | None = None) -> Iterator[None]:
    """Perform queued transfers in a thread: deletes with the files, archives in the catalogue alone."""
    stop, broken = threading.Event(), list[BaseException]()

    def work() -> None:
        try:
            while not stop.wait(0.05):
                perform_all(parts, judge)
        except BaseException as exc:  # noqa: BLE001 - raised again in the test
            broken.append(exc)

    thread = threading.Thread(target=work, name="mover-of-the-test")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if broken:
        raise broken[0]


def perform_all(parts: Services, judge: Judge | None = None) -> None:
    """Perform every queued transfer."""
    with parts.database.read() as session:
        queued = list(session.scalars(select(Transfer).where(Transfer.status == "QUEUED", Transfer.owner.is_(None))))
    for row in queued:
        error = None if judge is None else judge(row)
        if row.kind in (TransferKind.ARCHIVE_MANY.value, TransferKind.ACTIVATE.value) and error is None:
            archiving.perform(parts.database, row.id, parts.machines["tape"])
            continue
        with parts.database.write() as session:
            (hold,) = queue.take(session, "mover", LEASE, 1, only=row.id)
        with parts.database.write() as session:
            queue.begin(session, hold, uuid4())
        if error is None and row.source_machine is not None:
            place = outcomes.source(row)
            end = Endpoint(place, parts.machines[place.machine], parts.storages.get(place.machine))
            remove_file(end, KnownFile(**row.notes[KNOWN]), row.id)
        with parts.database.write() as session:
            if error is None:
                outcomes.complete_delete(session, hold)
            else:
                outcomes.fail(session, hold, error)


def reasons(report: Report | RetentionRun) -> dict[str, str]:
    """Return for each object that a report tells of what became of it: the reason, or the verdict."""
    return {line["object"]: line["reason"] or line["verdict"] for line in report.lines}


def _rules(text: str | RetentionRules) -> RetentionRules:
    return parse_rules(text) if isinstance(text, str) else text


def kept_objects(database: Database, home: Path, server: PrivateSshd | None = None) -> Iterator[Keeper]:
    """Machines: `here`; `twin`, its directory by another name; `far`; the archive `tape`.

    With a server, `far` is reached by SSH, and `near` is one more name of the directory of `here`, by SSH.
    """
    folders = {name: home / name for name in ("here", "far", "tape")}
    for folder in folders.values():
        folder.mkdir()
    folders["twin"] = folders["near"] = folders["here"]
    text = "".join(
        f'[machines.{name}]\ntransport = "local"\nbase_dir = "{folders[name]}"\n'
        for name in ("here", "twin", "far", "tape")
    )
    machines: dict[str, Machine] = {**parse_machines(f"{text}archive = true\n", "test")}
    if server is not None:
        machines |= {name: server.machine(name, folders[name]) for name in ("far", "near")}
    storages = Storages(Machines(machines), home / "run")
    settings = load_settings(home=home / "home")
    services = Services(
        settings, Machines(machines), database, storages, EgressGuard(()), "mover", notify=lambda _: None
    )
    yield Keeper(services, folders)
    storages.close()
