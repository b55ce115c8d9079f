"""Many small files to a machine, on a short path and on a long one."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import programs
from benchmarks.figures.scale import Scale
from benchmarks.libraries import StockParamiko
from benchmarks.ours import Ours
from benchmarks.race import Claim, Contender, Race, WrongResult
from benchmarks.servers import Stage
from datamanager.machines import Machine

SMALL = 10 * 1024
"""Bytes of a file."""
PER_FOLDER = 100
OURS, TAR = "ours, pipelined", "ours, tar"
SCP = "scp -r, aes128-gcm"


@dataclass(frozen=True, slots=True)
class Tree:
    """A directory of small files, and the directory that it is to be copied into."""

    source: Path
    directory: Path
    size: int = SMALL

    def fill(self, count: int, per_folder: int = PER_FOLDER) -> None:
        """Write `count` files, so many in each folder."""
        for number in range(count):
            folder = self.source / f"{number // per_folder:04}"
            if number % per_folder == 0:
                folder.mkdir(parents=True)
            (folder / f"{number:06}.dat").write_bytes(os.urandom(self.size))

    @property
    def target(self) -> Path:
        """The copy."""
        return self.directory / self.source.name

    @property
    def names(self) -> list[str]:
        """The files' paths below `source`, in order."""
        return sorted(os.fspath(path.relative_to(self.source)) for path in self.source.rglob("*.dat"))

    def reset(self) -> None:
        """Remove the copy."""
        shutil.rmtree(self.target, ignore_errors=True)

    def check(self, thoroughly: bool) -> None:
        """Count the files, and compare all bytes too when `thoroughly`. Raises: WrongResult."""
        arrived = [path for path in self.target.rglob("*") if path.is_file()]
        if len(arrived) != len(self.names) or any(path.stat().st_size != self.size for path in arrived):
            raise WrongResult(f"{self.target.name}: not all files arrived whole")
        if thoroughly and subprocess.run(["diff", "-rq", self.source, self.target]).returncode:
            raise WrongResult(f"{self.target.name}: other bytes arrived")


@contextmanager
def near(stage: Stage, scale: Scale) -> Iterator[Race]:
    """Send files on a short path."""
    with _tree(stage, scale.files) as tree, Ours([stage.here, stage.machine], stage.control) as engine:
        contenders = [*_ours(engine, stage.here, tree, stage.machine), *_programs(stage.machine, tree)]
        with StockParamiko(stage.machine) as stock:
            contenders.append(
                Contender("paramiko, one by one", lambda: stock.put_tree(tree.source, tree.target), stock.connect)
            )
            claims = [
                Claim("small files, pipelined", OURS, SCP, 2.0),
                Claim("small files, with tar", TAR, SCP, 3.5),
            ]
            yield Race("small", scale.files, "files", contenders, claims, tree.reset, tree.check, baseline=SCP)


@contextmanager
def distant(stage: Stage, scale: Scale) -> Iterator[Race]:
    """Send files over a long path. No warming up: scp takes more than a minute."""
    with _tree(stage, scale.distant_files) as tree, Ours([stage.here, stage.distant], stage.control) as engine:
        contenders = [*_ours(engine, stage.here, tree, stage.distant), *_programs(stage.distant, tree)]
        claims = [Claim("small files, pipelined, round trip 20 ms", OURS, SCP, 50.0)]
        yield Race(
            "small-20ms", scale.distant_files, "files", contenders, claims, tree.reset, tree.check, False, baseline=SCP
        )


@contextmanager
def _tree(stage: Stage, count: int) -> Iterator[Tree]:
    tree = Tree(stage.near / "tree", stage.far)
    tree.fill(count)
    try:
        yield tree
    finally:
        shutil.rmtree(tree.source)
        tree.reset()


def _ours(engine: Ours, here: Machine, tree: Tree, machine: Machine) -> list[Contender]:
    names, name = tree.names, tree.source.name

    def ours(packed: bool) -> Callable[[], None]:
        return lambda: engine.copy_tree((here, name), (machine, name), names, packed=packed)

    return [Contender(OURS, ours(False), engine.connect), Contender(TAR, ours(True), engine.connect)]


def _programs(machine: Machine, tree: Tree) -> list[Contender]:
    source, there = os.fspath(tree.source), programs.remote(machine, tree.directory)
    found = [
        Contender(SCP, lambda: programs.scp(machine, source, there, "-r")),
        Contender("tar | ssh tar", lambda: programs.tar(machine, tree.source, tree.directory)),
    ]
    if programs.installed("rsync"):
        found.append(Contender("rsync -rW, aes128-gcm", lambda: programs.rsync(machine, source, there, "-r")))
    return found
