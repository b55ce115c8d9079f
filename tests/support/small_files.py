"""Batches of small files that are staged and published as a mover does it, on storages that may do damage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

from datamanager.domain.location import Place
from datamanager.engine.bulk import bulk_publish, bulk_staging
from datamanager.engine.bulk.bulk_chunk import (
    BulkEndpoints,
    BulkRules,
    Failed,
    Outcome,
    SmallItem,
    Staged,
    item_id,
)
from datamanager.engine.bulk.bulk_removal import Removal
from datamanager.engine.control import Control
from datamanager.errors import (
    DataManagerError,
)
from datamanager.machines import VerifyPolicy
from datamanager.transports.bulk_port import Bulk, Results
from datamanager.transports.port import Session
from datamanager.transports.values import NewFile
from tests.support.ends import Ends

MTIME = 1_500_000_000


@dataclass
class Batch:
    """Files of machine `a` that are to go to machine `b`, and how."""

    ends: Ends
    verify: VerifyPolicy = VerifyPolicy.SHA256
    packed: bool = False
    by_program: bool = False
    target: str = "b"
    transfer: UUID = field(default_factory=uuid4)
    items: list[SmallItem] = field(default_factory=list)
    data: dict[int, bytes] = field(default_factory=dict)

    def add(self, source: str, data: bytes, destination: str | None = None) -> int:
        """Write a source and have it carried; return its number."""
        path = self.ends.folder("a") / source
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        path.chmod(0o640)
        os.utime(path, (MTIME, MTIME))
        number = self.ask(source, destination or f"new/{source}")
        self.data[number] = data
        return number

    def ask(self, source: str, destination: str) -> int:
        """Have a file carried, whatever is there."""
        number = len(self.items)
        places = (Place.of(self.ends.machines["a"], source), Place.of(self.ends.machines[self.target], destination))
        self.items.append(SmallItem(number, *places))
        return number

    def out(self, number: int) -> Path:
        return self.ends.folder(self.target) / self.items[number].destination.path

    def source(self, number: int) -> Path:
        return self.ends.folder("a") / self.items[number].source.path

    @contextmanager
    def sessions(self) -> Iterator[tuple[Session, Session]]:
        with self.ends.storages.get("a").session() as source, self.ends.storages.get(self.target).session() as target:
            if self.by_program:
                assert source.begin_many()
                assert target.begin_many()
            yield source, target

    def stage(
        self,
        control: Control | None = None,
        *,
        wrap: Callable[[Session], Session] = lambda target: target,
        **rules: Any,
    ) -> dict[int, Outcome]:
        given: dict[str, Any] = {"epoch": 1, "verify": self.verify, "packed": self.packed, **rules}
        machines = self.ends.machines
        with self.sessions() as (source, target):
            ends = BulkEndpoints(source, wrap(target), machines["a"], machines[self.target])
            outcomes = bulk_staging.stage(ends, self.items, BulkRules(self.transfer, **given), control or Control())
        assert [outcome.number for outcome in outcomes] == [item.number for item in self.items]
        return {outcome.number: outcome for outcome in outcomes}

    def publish(self, outcomes: dict[int, Outcome], *, overwrite: bool = False) -> dict[int, DataManagerError | None]:
        ready = staged(outcomes)
        with self.ends.storages.get(self.target).session() as target:
            results = bulk_publish.publish(target, ready, overwrite=overwrite)
        return {one.number: result for one, result in zip(ready, results, strict=True)}

    def removals(self, outcomes: dict[int, Outcome]) -> list[Removal]:
        """Return what a move removes in the end."""
        return [
            Removal(one.source_path, one.intent, one.canonical, item_id(self.transfer, one.number))
            for one in staged(outcomes)
        ]

    def assert_published(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            found = self.out(number).stat()
            assert self.out(number).read_bytes() == self.data[number]
            assert (found.st_mode & 0o7777, int(found.st_mtime)) == (0o640, MTIME)


def staged(outcomes: dict[int, Outcome]) -> list[Staged]:
    """Return what was staged."""
    return [outcome for outcome in outcomes.values() if isinstance(outcome, Staged)]


def failed(outcomes: dict[int, Outcome]) -> dict[int, type[DataManagerError]]:
    """Return the errors of what failed, by number."""
    return {number: type(one.error) for number, one in outcomes.items() if isinstance(one, Failed)}


def parts(ends: Ends) -> list[Path]:
    """Return the partial files on all machines."""
    return [file for name in ends.machines for file in ends.folder(name).rglob("*.dmpart")]


class Faulty:
    """A storage that damages one file when it is written: what no real one does when asked to."""

    def __init__(self, session: Session, name: str, times: int, damage: Callable[[Path], None]) -> None:
        self._session = session
        self._name = name
        self._times = times
        self._damage = damage

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    @property
    def bulk(self) -> Bulk:
        """The storage's own, but for writing."""
        return cast("Bulk", _FaultyBulk(self._session.bulk, self))

    def written(self, path: str) -> None:
        if f".{self._name}." in path and self._times:
            self._times -= 1
            self._damage(Path(path))


class _FaultyBulk:
    def __init__(self, bulk: Bulk, faulty: Faulty) -> None:
        self._bulk = bulk
        self._faulty = faulty

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bulk, name)

    def write(self, files: Iterable[NewFile]) -> Results[Any]:
        """Write, then damage."""
        paths: list[str] = []

        def noted() -> Iterator[NewFile]:
            for file in files:
                paths.append(file.path)
                yield file

        for index, result in self._bulk.write(noted()):
            self._faulty.written(paths[index])
            yield index, result

    def unpack(self, files: Iterable[NewFile], directory: str) -> None:
        """Unpack, then damage."""
        paths: list[str] = []

        def noted() -> Iterator[NewFile]:
            for file in files:
                paths.append(file.path)
                yield file

        self._bulk.unpack(noted(), directory)
        for path in paths:
            self._faulty.written(path)
