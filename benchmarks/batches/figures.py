"""Batches of small files beside scp, rsync and tar: what is compared, by the name that `--only` takes."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from benchmarks import programs
from benchmarks.batches import registering
from benchmarks.batches.accepting import Given, accepting, repeating
from benchmarks.batches.ours import Batches
from benchmarks.figures.small import Tree
from benchmarks.race import Claim, Contender, Figure, Outcome, Race, Tell, Timing
from benchmarks.servers import Stage
from datamanager.machines import Machine

SIZE = 1024
"""Bytes of a file."""
OURS, SCP, RSYNC, TAR = "ours, POST to COMPLETE", "scp -r, aes128-gcm", "rsync -a, aes128-gcm", "tar | ssh tar"
TREE = "tree"
_PER_FILE = 16 * 1024
"""Bytes of memory for a file: two pages, and its rows in the catalogue."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How many files a batch has, and how many are copied while memory is watched."""

    files: int
    many: int

    def needed(self, groups: list[str]) -> int:
        """Bytes of memory that the groups need."""
        return (self.many * 2 if groups == ["memory"] else self.files * 5) * _PER_FILE + (1 << 30)


@dataclass(slots=True)
class Copies:
    """A directory of small files, and a new directory for each copy of it."""

    source: Path
    base: Path
    made: int = 0
    tree: Tree = field(init=False)

    def __post_init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self.tree = Tree(self.source, self.base / str(self.made), SIZE)

    def ready(self) -> None:
        """Make the directory of the next copy."""
        self.made += 1
        self._begin()
        self.tree.directory.mkdir()

    def reset(self) -> None:
        """Remove the last copy."""
        shutil.rmtree(self.tree.directory, ignore_errors=True)

    def check(self, thoroughly: bool) -> None:
        """Compare the last copy with the source. Raises: WrongResult."""
        self.tree.check(thoroughly)

    @property
    def dest(self) -> str:
        """The copy, below the machine's base directory."""
        return os.fspath(self.tree.target.relative_to(self.base))


@dataclass(frozen=True, slots=True)
class Way:
    """From which machine to which, and the folders that these have here."""

    source: Machine
    source_folder: Path
    target: Machine
    target_folder: Path


def put(stage: Stage) -> Way:
    """From this host to an SSH server."""
    return Way(stage.here, stage.near, stage.machine, stage.far)


def get(stage: Stage) -> Way:
    """From an SSH server to this host."""
    return Way(stage.machine, stage.far, stage.here, stage.near)


def relay(stage: Stage) -> Way:
    """From one SSH server to another one, through this host."""
    return Way(stage.machine, stage.far, stage.second_machine, stage.other)


def put_distant(stage: Stage) -> Way:
    """From this host to an SSH server, a round trip of 20 ms away."""
    return Way(stage.here, stage.near, stage.distant, stage.far)


def race(
    group: str,
    way_of: Callable[[Stage], Way],
    wanted: dict[str, float],
    stage: Stage,
    scale: Scale,
    rounds: int,
    tell: Tell,
) -> Outcome:
    """Copy the files by each contender in turn. `wanted`: at least how many times as fast as whom."""
    count = scale.files // 10 if group.endswith("ms") else scale.files
    with _running(stage, way_of(stage), count) as (way, files, service):
        ours = Contender(OURS, partial(_ours, service, way, files, count), files.ready)
        contenders = [ours, *_rivals(way, files)]
        names = {one.name for one in contenders}
        claims = [Claim(f"{group}, {count:,} × 1 KiB", OURS, rival, least) for rival, least in wanted.items()]
        claims = [claim for claim in claims if claim.against in names]
        distant = group.endswith("ms")
        course = Race(group, count, "files", contenders, claims, files.reset, files.check, not distant, baseline=SCP)
        found = course.measure(rounds, tell)
    cpu = [
        Timing(group, f"CPU of {name}", tuple(seconds[-rounds:]), count, "files")
        for name, seconds in service.cpu.items()
    ]
    return Outcome(found.figures, (*found.timings, *cpu), found.baseline)


def memory(stage: Stage, scale: Scale, rounds: int, tell: Tell) -> Outcome:  # noqa: ARG001 - one round tells it
    """Copy one directory of very many files in one batch; the mover's memory must not grow."""
    with _running(stage, put(stage), scale.many, scale.many) as (way, files, service):
        before = most = service.mover_memory()
        ended = threading.Event()

        def watch() -> None:
            nonlocal most
            while not ended.wait(0.05):
                most = max(most, service.mover_memory())
                tell(f"memory: {most:.0f} MiB")

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            files.ready()
            _ours(service, way, files, scale.many)
            files.check(False)
        finally:
            ended.set()
            watcher.join()
    what = f"growth of the mover by {scale.many:,} files in one directory"
    return Outcome((Figure("memory", what, OURS, "–", 64, (most - before,), "MiB"),))


def accept(stage: Stage, scale: Scale, rounds: int, tell: Tell) -> Outcome:
    """Time the answer to a batch, before anything is copied."""
    with _running(stage, put(stage), scale.files) as (way, _, service):
        return accepting(Given(service.client, way.source, TREE, way.target, scale.files), rounds, tell)


def repeat(stage: Stage, scale: Scale, rounds: int, tell: Tell) -> Outcome:
    """Copy again what is there already."""
    with _running(stage, put(stage), scale.files) as (way, files, service):

        def rsync() -> None:
            programs.rsync(
                way.target, f"{files.source}/", programs.remote(way.target, way.target_folder / "rsync"), "-a"
            )

        given = Given(service.client, way.source, TREE, way.target, scale.files)
        return repeating(given, rsync, rounds, tell)


@contextmanager
def _running(stage: Stage, way: Way, count: int, per_folder: int = 100) -> Iterator[tuple[Way, Copies, Batches]]:
    files = Copies(way.source_folder / TREE, way.target_folder)
    files.tree.fill(count, per_folder)
    machines = {machine.name: machine for machine in (stage.here, way.source, way.target)}
    home = stage.folder / "service"
    try:
        with Batches(home, list(machines.values()), stage.sshd_pids) as service:
            service.register(way.source, TREE)
            yield way, files, service
    finally:
        shutil.rmtree(files.source)
        files.reset()
        shutil.rmtree(home, ignore_errors=True)


def _ours(service: Batches, way: Way, files: Copies, count: int) -> None:
    service.copy((way.source, TREE), (way.target, files.dest), count)


def _rivals(way: Way, files: Copies) -> list[Contender]:
    """Return what a user types. Between two machines it is typed on the source, but for scp, which has `-3`."""
    far_source = way.source.host is not None
    far_target = way.target.host is not None
    through = way.target if far_target else way.source

    def ends() -> tuple[str, str]:
        source, target = os.fspath(files.source), files.tree.directory
        if far_source and not far_target:
            source = programs.remote(way.source, files.source)
        return source, programs.remote(way.target, target) if far_target else os.fspath(target)

    def rsync() -> None:
        programs.rsync(through, *ends(), "-a")

    def scp() -> None:
        programs.scp(through, *ends(), "-r")

    def tar() -> None:
        if far_source and not far_target:
            programs.untar(through, files.source, files.tree.directory)
        else:
            programs.tar(through, files.source, files.tree.directory)

    found = [Contender(SCP, scp, files.ready), Contender(TAR, tar, files.ready)]
    if programs.installed("rsync"):
        found.append(Contender(RSYNC, rsync, files.ready))
    return found


_NEAR = {SCP: 8.0, RSYNC: 0.8}
_DISTANT = {SCP: 8.0, RSYNC: 1.2}

GROUPS: dict[str, Callable[[Stage, Scale, int, Tell], Outcome]] = {
    "put": partial(race, "put", put, _NEAR),
    "get": partial(race, "get", get, _NEAR),
    "relay": partial(race, "relay", relay, _NEAR),
    "put-20ms": partial(race, "put-20ms", put_distant, _DISTANT),
    "accept": accept,
    "repeat": repeat,
    "trees": registering.here,
    "trees-ssh": registering.over_ssh,
    "memory": memory,
}
