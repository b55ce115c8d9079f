"""Archives of an engine's test: files of one machine that go into a bundle on another one, and come back."""

from __future__ import annotations

import dataclasses
import os
import random
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from datamanager.domain.bundle_model import Manifest, Member, Pack, VerifyLevel, WantedMember, bundle_place
from datamanager.domain.location import Place
from datamanager.domain.states import Phase, TransferKind
from datamanager.engine.attempt import Attempt, Endpoint, Restart
from datamanager.engine.bulk import bulk_publish
from datamanager.engine.bulk.bulk_chunk import SMALL, BulkEndpoints, BulkRules, Outcome
from datamanager.engine.bulk.bulk_chunk import Staged as StagedFile
from datamanager.engine.bundles import bundle_upload, recall
from datamanager.engine.bundles.bundle_content import ArchiveAttempt
from datamanager.engine.bundles.bundle_upload import ReadyBundle, StagedBundle
from datamanager.engine.control import Control
from datamanager.engine.single import staged_file
from datamanager.machines import Machine
from tests.contract.test_transport import NAMES
from tests.support.ends import Ends
from tests.support.sshd import PrivateSshd

MIB = 2**20
MTIME = 1_500_000_000


@dataclass
class Archive:
    """Files of machine `a` that go into a bundle on `b`, and come back to `a`."""

    ends: Ends
    pack: Pack = Pack.TAR
    transfer: UUID = field(default_factory=uuid4)
    bundle: UUID = field(default_factory=uuid4)
    wanted: list[WantedMember] = field(default_factory=list)
    data: dict[UUID, bytes] = field(default_factory=dict)
    marker: Restart | None = None

    def add(self, path: str, data: bytes) -> UUID:
        """Write a file and have it archived."""
        file = self.ends.folder("a") / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        file.chmod(0o640)
        os.utime(file, (MTIME, MTIME))
        uuid = self.ask(path, len(data))
        self.data[uuid] = data
        return uuid

    def ask(self, path: str, size: int = 0) -> UUID:
        """Have a file archived, whatever is there."""
        self.wanted.append(WantedMember(uuid4(), Place.of(self.ends.machines["a"], path), size))
        return self.wanted[-1].uuid

    def file(self, uuid: UUID) -> Path:
        """Return an object's file."""
        [place] = [one.source for one in self.wanted if one.uuid == uuid]
        return self.ends.folder("a") / place.path

    def job(self, level: VerifyLevel = VerifyLevel.CHECKSUMS, **rules: Any) -> ArchiveAttempt:
        """Describe an attempt."""
        place = bundle_place(self.ends.machines["b"], "long/term", self.bundle, self.pack)
        machine, storages = self.ends.machines["a"], self.ends.storages
        end = Endpoint(place, self.ends.machines["b"], storages.get("b"))
        wanted = tuple(self.wanted)
        job = ArchiveAttempt(
            self.transfer, 1, self.bundle, self.pack, level, machine, storages.get("a"), wanted, end, "ann"
        )
        return dataclasses.replace(job, **rules)

    def remember(self, marker: Restart) -> None:
        """Record the restart marker, as the catalogue does."""
        self.marker = marker

    def stage(self, control: Control | None = None, **rules: Any) -> StagedBundle:
        """Do an attempt, all but the names."""
        return bundle_upload.stage(self.job(restart=self.marker, **rules), control or Control(), self.remember)

    def make(self, **rules: Any) -> Manifest:
        """Make the bundle, without a failure."""
        staged = self.stage(**rules)
        assert not staged.failed
        bundle_upload.publish(ready(staged))
        return ready(staged).manifest

    @property
    def stored(self) -> Path:
        """The bundle's file."""
        return self.ends.folder("b") / "long/term" / f"{self.bundle}{self.pack.suffix}"

    @property
    def beside(self) -> Path:
        """Its manifest."""
        return self.stored.with_name(f"{self.bundle}.manifest.json")

    def recall(self, made: Manifest, uuid: UUID, to: str, control: Control | None = None, **rules: Any) -> Path:
        """Bring a member back by itself."""
        job = dataclasses.replace(self.recall_job(made, to), **rules)
        ready = recall.stage_large(job, made.bundle, member(made, uuid), control or Control(), self.remember)
        staged_file.publish(ready, Control())
        return self.ends.folder("a") / to

    def recall_job(self, made: Manifest, to: str) -> Attempt:
        """Describe a recall."""
        ends = (self.ends.end("b", made.bundle.place.path), self.ends.end("a", to))
        return Attempt(uuid4(), 1, TransferKind.COPY, *ends)

    def recall_many(self, made: Manifest, uuids: Sequence[UUID], to: str, **rules: Any) -> dict[UUID, Outcome]:
        """Bring members back together, into a directory."""
        machines = self.ends.machines
        items = [
            recall.RecallItem(number, member(made, uuid), Place.of(machines["a"], f"{to}/{uuid}"))
            for number, uuid in enumerate(uuids)
        ]
        with ExitStack() as stack:
            source = stack.enter_context(self.ends.storages.get("b").session())
            target = stack.enter_context(self.ends.storages.get("a").session())
            ends = BulkEndpoints(source, target, machines["b"], machines["a"])
            outcomes = recall.stage_small(ends, made.bundle, items, BulkRules(uuid4(), 1, **rules), Control())
            staged = [one for one in outcomes if isinstance(one, StagedFile)]
            assert set(bulk_publish.publish(target, staged, overwrite=False)) <= {None}
        return {uuids[one.number]: one for one in outcomes}

    def parts(self) -> list[Path]:
        """Return the partial files."""
        return [file for name in self.ends.machines for file in self.ends.folder(name).rglob("*.dmpart")]

    def assert_back(self, file: Path, uuid: UUID) -> None:
        """Compare a file that came back."""
        assert file.read_bytes() == self.data[uuid]
        assert (file.stat().st_mode & 0o7777, int(file.stat().st_mtime)) == (0o640, MTIME)


def ready(staged: StagedBundle) -> ReadyBundle:
    """Return the bundle that waits for its name."""
    assert staged.ready is not None
    return staged.ready


def member(made: Manifest, uuid: UUID) -> Member:
    """Return an object's member."""
    [found] = [one for one in made.members if one.uuid == uuid]
    return found


def flip(file: Path, at: int) -> None:
    """Change one bit."""
    with file.open("r+b") as opened:
        opened.seek(at)
        byte = opened.read(1)[0]
        opened.seek(at)
        opened.write(bytes([byte ^ 4]))


class Acting(Control):
    """Does something once when a phase begins, or so many bytes are done."""

    def __init__(self, act: Callable[[], object], phase: Phase | None = None, at: int = 0, *, times: int = 1) -> None:
        super().__init__()
        self.act, self.at_phase, self.at, self.times = act, phase, at, times

    def enter(self, phase: Phase, total: int | None = None) -> None:
        super().enter(phase, total)
        if phase is self.at_phase:
            self._do()

    def advance(self, count: int) -> None:
        super().advance(count)
        if self.at_phase is None and self.bytes_done >= self.at:
            self._do()

    def _do(self) -> None:
        if self.times:
            self.times -= 1
            self.act()


def machines(folder: Path, connection: str, servers: Callable[[], tuple[PrivateSshd, PrivateSshd]]) -> Ends:
    """Make machines `a` and `b` of one kind."""
    made: dict[str, Machine] = {}
    for number, name in enumerate("ab"):
        (folder / name).mkdir()
        if connection == "local":
            table = {"name": name, "transport": "local", "base_dir": str(folder / name)}
            made[name] = Machine.model_validate(table)
        else:
            made[name] = servers()[number].machine(name, str(folder / name), connection=connection)
    return Ends(made, folder / "run")


def some_files(store: Archive, count: int = 60) -> list[UUID]:
    """Add files of many sizes, hostile names among them."""
    rng = random.Random(7)
    sizes = [0, 1, 511, 512, 513, 65536, SMALL, SMALL + 1, 3 * MIB, *(rng.randrange(40_000) for _ in range(count))]
    names = [os.fsdecode(raw) for raw in NAMES if raw.isascii() or os.fsdecode(raw).isprintable()]
    return [
        store.add(f"dir{n % 5}/{n}/{names[n % len(names)]}", rng.randbytes(size) if n % 3 else bytes(size))
        for n, size in enumerate(sizes)
    ]


def assert_debians_tar_agrees(store: Archive, made: Manifest) -> None:
    with tempfile.TemporaryDirectory() as folder:
        argv = ["tar", "--extract", "--preserve-permissions", "--file", str(store.stored), "--directory", folder]
        subprocess.run(argv, check=True)
        for one in made.members:
            store.assert_back(Path(folder) / one.name, one.uuid)
