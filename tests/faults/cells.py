"""A transfer that a fault hits, with bytes of its own, and what is found of it."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from sqlalchemy import func, select

from datamanager.domain.states import TransferKind
from models.tables import Claim, DataObject, Transfer
from tests.faults.judging import Facts
from tests.faults.plant import SOURCE, Plant
from tests.support.hearing import Heard

KINDS = (TransferKind.COPY, TransferKind.MOVE, TransferKind.GETEXTERNAL)
SHARED, BATCH = "shared", "batch"
COLUMNS = (*KINDS, SHARED, BATCH)
"""The table's columns: transfers that go alone, by kind, those that share a run, and the items of a batch."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of fcntl.h and linux/fs.h
OLD = 3600.0
"""Seconds since a source was last changed: SFTP tells whole seconds, so a change must be seen to be one."""


@dataclass
class Cell:
    """One transfer: from `path` on the source machine, or from the web, to the same path on `machine`."""

    plant: Plant
    kind: TransferKind
    path: str
    machine: str
    size: int
    shared: bool = False
    """It is to share its run with others."""
    uuid: str = ""
    url: str = ""
    task: str = ""
    versions: set[str] = field(default_factory=set)
    seen: list[str] = field(default_factory=list)
    """What was wrong while it ran, in sentences."""

    @property
    def name(self) -> str:
        """What it is called in the diary."""
        return self.path.rpartition("/")[2].removesuffix(".bin")

    @property
    def column(self) -> str:
        """Where it is counted."""
        return SHARED if self.shared else self.kind.value

    @property
    def source(self) -> Path:
        """The file that is transferred."""
        if self.kind is TransferKind.GETEXTERNAL:
            return self.plant.parts.web.root / self.path
        return self.plant.site.folders[SOURCE] / self.path

    @property
    def destination(self) -> Path:
        """Where it is to go."""
        return self.plant.site.folders[self.machine] / self.path

    def prepare(self, chance: random.Random) -> None:
        """Write and register the source; make the destination's directory."""
        self.destination.parent.mkdir(parents=True, exist_ok=True)
        self.source.parent.mkdir(parents=True, exist_ok=True)
        self.write(chance.randbytes(self.size), time.time() - OLD)
        if self.kind is TransferKind.GETEXTERNAL:
            self.url = f"{self.plant.parts.web.url}/{self.path}"
        else:
            self.uuid = self.plant.site.register(SOURCE, self.path)

    def write(self, data: bytes, mtime: float) -> None:
        """Write the source."""
        self.versions.add(_hex(data))
        self.source.write_bytes(data)
        os.utime(self.source, (mtime, mtime))

    def change(self, data: bytes) -> None:
        """Give the source other bytes in one moment, as another file under its name; not if it has been moved away."""
        self.versions.add(_hex(data))
        new = self.source.with_name(f"{self.source.name}.new")
        new.write_bytes(data)
        _exchange(new, self.source)
        new.unlink()

    @property
    def fields(self) -> dict[str, Any]:
        """The request's fields."""
        if self.kind is not TransferKind.GETEXTERNAL:
            return {"machine": self.machine, "dest": self.path}
        directory, _, name = self.path.rpartition("/")
        return {"machine": self.machine, "path": directory, "filename": name, "url": self.url, "protocol": "http"}

    def request(self) -> None:
        """Ask for the transfer over HTTP."""
        method, tail = ("PUT", "") if self.kind is TransferKind.GETEXTERNAL else ("POST", f"/{self.uuid}")
        answer = self.plant.site.ask(method, f"async/{self.kind}{tail}", data=self.fields)
        assert answer.status_code == 200, answer.text
        self.task = answer.text

    def row(self) -> Transfer:
        """Read the transfer's row. Raises: CatalogueUnavailable."""
        with self.plant.database.read() as session:
            return session.scalars(select(Transfer).where(Transfer.id == UUID(self.task))).one()

    def live(self, machine: str) -> int:
        """Count the ACTIVE objects at the cell's path on a machine."""
        where = (DataObject.machine == machine, DataObject.place == self.path, DataObject.status == "ACTIVE")
        with self.plant.database.read() as session:
            return session.scalar(select(func.count()).select_from(DataObject).where(*where)) or 0

    def facts(self, allowed: frozenset[str], heard: list[Heard]) -> Facts:
        """Look at everything, after the end."""
        row = self.row()
        with self.plant.database.read() as session:
            held = select(func.count()).select_from(Claim).where(Claim.transfer_id == row.id)
            claims = session.scalar(held) or 0
        fetched = self.kind is TransferKind.GETEXTERNAL
        return Facts(
            kind=self.kind,
            allowed=allowed,
            versions=frozenset(self.versions),
            status=row.status,
            code=row.error_code,
            detail=row.error_detail,
            sequence=row.sequence,
            source=None if fetched else _digest(self.source),
            destination=_digest(self.destination),
            live_at_source=0 if fetched else self.live(SOURCE),
            live_at_destination=self.live(self.machine),
            claims=claims,
            owner=row.owner,
            leftovers=[str(part) for part in self.parts()],
            heard=heard,
            seen=self.seen,
        )

    def parts(self) -> list[Path]:
        """Return the partial files of this name, on any machine, whoever wrote them."""
        directory, _, name = self.path.rpartition("/")
        folders = [folder / directory for folder in self.plant.site.folders.values()]
        return [part for folder in folders for part in folder.glob(f".{name}.*.dmpart")]


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _exchange(one: Path, other: Path) -> None:
    """Let two files take each other's name; do nothing when one is missing. (An os.replace would make it anew.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        code = ctypes.get_errno()
        if code != errno.ENOENT:
            raise OSError(code, os.strerror(code), str(other))


def _digest(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
