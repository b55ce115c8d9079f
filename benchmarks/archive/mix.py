"""Files of many sizes on one machine, copied to another one or archived there; both are reached by SSH."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.archive.ours import Archiving
from benchmarks.race import WrongResult
from benchmarks.servers import Stage, fill
from datamanager.domain.bundle_model import Manifest, Pack
from datamanager.engine.bulk.bulk_chunk import SMALL

PER_FOLDER = 100


@dataclass(frozen=True, slots=True)
class Mix:
    """Files of one machine: where they are copied to, or archived, on another one."""

    stage: Stage
    engine: Archiving
    sizes: Sequence[int]
    made: list[Manifest] = field(default_factory=list)
    """What was archived last; empty when the files were copied."""

    FILES, COPIES, BUNDLES = "files", "copies", "bundles"

    @property
    def names(self) -> list[str]:
        """The files' paths, in order; no two have one name."""
        return [f"{number // PER_FOLDER:04}/{number:06}.dat" for number in range(len(self.sizes))]

    def write(self) -> None:
        """Make the files, of random bytes."""
        for name, size in zip(self.names, self.sizes, strict=True):
            file = self.stage.far / self.FILES / name
            file.parent.mkdir(parents=True, exist_ok=True)
            fill(file, size)

    def copy(self, at_once: int) -> None:
        """Copy them."""
        small = [name for name, size in zip(self.names, self.sizes, strict=True) if size <= SMALL]
        large = [name for name, size in zip(self.names, self.sizes, strict=True) if size > SMALL]
        source, target = (self.stage.machine, self.FILES), (self.stage.second_machine, self.COPIES)
        self.engine.copy_files(source, target, small, large, at_once)

    def archive(self, pack: Pack) -> None:
        """Archive them."""
        source, target = (self.stage.machine, self.FILES), (self.stage.second_machine, self.BUNDLES)
        self.made.extend(self.engine.archive(source, target, self.names, pack))

    def reset(self) -> None:
        """Remove what was made of them."""
        self.made.clear()
        for name in (self.COPIES, self.BUNDLES):
            shutil.rmtree(self.stage.other / name, ignore_errors=True)

    def remove(self) -> None:
        """Remove everything."""
        self.reset()
        shutil.rmtree(self.stage.far / self.FILES)

    def check(self, thoroughly: bool) -> None:
        """Count what arrived, and compare all bytes too when `thoroughly`. Raises: WrongResult."""
        if self.made:
            self._check_bundles(thoroughly)
        else:
            self._check_copies(thoroughly)

    def _check_copies(self, thoroughly: bool) -> None:
        source, copies = self.stage.far / self.FILES, self.stage.other / self.COPIES
        arrived = {os.fspath(file.relative_to(copies)): file.stat().st_size for file in copies.rglob("*.*")}
        if arrived != dict(zip(self.names, self.sizes, strict=True)):
            raise WrongResult("not all files arrived whole")
        if thoroughly and subprocess.run(["diff", "-rq", source, copies]).returncode:
            raise WrongResult("other bytes arrived")

    def _check_bundles(self, thoroughly: bool) -> None:
        if [one.size for made in self.made for one in made.members] != list(self.sizes):
            raise WrongResult("not all files were archived whole")
        there = sorted((self.stage.other / self.BUNDLES).glob("*.tar*"))
        if [file.stat().st_size for file in there] != [
            made.bundle.size for made in sorted(self.made, key=lambda one: str(one.bundle.uuid))
        ]:
            raise WrongResult("the bundles are not as long as their manifests say")
        if not thoroughly:
            return
        stored: dict[str, str] = {}
        for made in self.made:
            stored |= self.engine.sums(made, self.stage.second_machine)
        for name in self.names:
            file = self.stage.far / self.FILES / name
            if stored.get(file.name) != hashlib.sha256(file.read_bytes()).hexdigest():
                raise WrongResult(f"{name}: other bytes were archived")
