"""Registering trees of small files beside what only lists them: `POST /DM/register/tree`, from the request to the end
of its answer. Every file becomes an object: compared with those that are there, claimed, entered, told in an event.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Protocol, Self

from sqlalchemy import func, select

from benchmarks import programs
from benchmarks.race import Contender, Figure, Outcome, Race, Tell, WrongResult
from benchmarks.servers import Stage
from datamanager.machines import Machine
from models.tables import DataObject
from tests.support.api_process import ApiProcess

OURS, LISTED = "ours, POST to the answer's end", "find | sqlite3 .import"
TREES = 2
"""Trees that a run registers, one after the other; a request takes 10,000 files at most."""
WANTED = 5000
"""Files a second."""
PER_DIRECTORY = 500
TABLE = "CREATE TABLE files (path TEXT PRIMARY KEY, size INTEGER, mtime REAL)"


class Files(Protocol):
    """What says how many files a tree has."""

    @property
    def files(self) -> int:
        """Files of one tree."""


def here(stage: Stage, scale: Files, rounds: int, tell: Tell) -> Outcome:
    """Register files of this host."""
    return _race("trees", stage, stage.near, None, scale.files, rounds, tell)


def over_ssh(stage: Stage, scale: Files, rounds: int, tell: Tell) -> Outcome:
    """Register files of an SSH machine."""
    return _race("trees-ssh", stage, stage.far, stage.machine, scale.files, rounds, tell)


def _race(
    group: str, stage: Stage, folder: Path, machine: Machine | None, files: int, rounds: int, tell: Tell
) -> Outcome:
    trees = [_fill(folder / f"{group}-{number}", files) for number in range(TREES)]
    with ExitStack() as stack:
        ours = stack.enter_context(_Ours(stage.folder / group, folder, machine))
        listing = _Listing(stage.folder / f"{group}.db", machine)
        contenders = [
            Contender(OURS, lambda: ours.register(trees), ours.ready),
            Contender(LISTED, lambda: listing.import_found(trees), listing.ready),
        ]

        def check(_: bool) -> None:
            if TREES * files not in (ours.count(), listing.count()):
                raise WrongResult("not all files were entered")

        def reset() -> None:
            ours.forget()
            listing.forget()

        race = Race(group, TREES * files, "files", contenders, [], reset, check, baseline=LISTED)
        outcome = race.measure(rounds, tell)
        (seconds,) = (timing.seconds for timing in outcome.timings if timing.contender == OURS)
        rates = tuple(TREES * files / one for one in seconds)
        where = "this host" if machine is None else "an SSH machine"
        figure = Figure(group, f"files of {where} registered by trees", OURS, "–", WANTED, rates, "/s")
        return replace(outcome, figures=(figure,))


class _Ours:
    """An API process of its own for each run: it begins with an empty catalogue."""

    def __init__(self, home: Path, folder: Path, machine: Machine | None) -> None:
        self._homes = (home / str(number) for number in itertools.count())
        self._table = _table(folder, machine)
        self._api: ApiProcess | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.forget()

    def ready(self) -> None:
        """Start it, and have it look at the machine once: it is connected then, as it is at work."""
        home = next(self._homes)
        home.mkdir(parents=True)
        self._api = self._stack.enter_context(ApiProcess(home, machines=self._table))
        self._api.ask("POST", "/DM/register/tree", json={"machine": "there", "path": "nothing"})

    def register(self, trees: list[Path]) -> None:
        """Register all of the trees. Raises: WrongResult."""
        assert self._api is not None
        for tree in trees:
            answer = self._api.ask("POST", "/DM/register/tree", json={"machine": "there", "path": tree.name})
            found = answer.json()
            if answer.status_code != 201 or "error" in found:
                raise WrongResult(f"a tree was not registered: {answer.text[-500:]}")

    def count(self) -> int:
        """Return how many objects there are."""
        if self._api is None:
            return 0
        with self._api.database.read() as session:
            return session.scalar(select(func.count()).select_from(DataObject)) or 0

    def forget(self) -> None:
        """End it."""
        self._api = None
        self._stack.close()


class _Listing:
    """What others make of a tree: a table of names, sizes and times, and no more."""

    def __init__(self, database: Path, machine: Machine | None) -> None:
        self._database = database
        self._machine = machine

    def ready(self) -> None:
        """Make an empty table."""
        programs.run("sqlite3", self._database, TABLE)

    def forget(self) -> None:
        """Remove it."""
        self._database.unlink(missing_ok=True)

    def import_found(self, trees: list[Path]) -> None:
        """List with find, there, and import the lines into SQLite, here."""
        for tree in trees:
            words = ["find", os.fspath(tree), "-type", "f", "-printf", r"%P\t%s\t%T@\n"]
            if self._machine is not None:
                words = programs.ssh_words(self._machine, *words)
            with subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as find:
                lines = [".mode tabs", ".import /dev/stdin files"]
                subprocess.run(
                    ["sqlite3", self._database, *lines], stdin=find.stdout, stdout=subprocess.DEVNULL, check=True
                )
            if find.returncode:
                raise subprocess.CalledProcessError(find.returncode, "find")

    def count(self) -> int:
        """Return how many files were listed."""
        if not self._database.exists():
            return 0
        words = ["sqlite3", os.fspath(self._database), "SELECT count(*) FROM files"]
        return int(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)


def _fill(tree: Path, files: int) -> Path:
    """Make a tree of small files, if it is not there."""
    for number in range(0 if tree.exists() else files):
        directory = tree / f"{number // PER_DIRECTORY:04}"
        if not number % PER_DIRECTORY:
            directory.mkdir(parents=True)
        (directory / f"{tree.name}-{number:06}.dat").write_bytes(b"small")
    return tree


def _table(folder: Path, machine: Machine | None) -> str:
    """Return a machine's table in machines.toml: it is named `there`."""
    values = {"transport": "local", "base_dir": os.fspath(folder)}
    if machine is not None:
        values = machine.model_dump(
            mode="json", include={"transport", "base_dir", "host", "username", "identity_file", "known_hosts"}
        )
    lines = [f'{name} = "{value}"' for name, value in values.items()]
    port = [] if machine is None else [f"port = {machine.port}"]
    return "\n".join(["[machines.there]", *lines, *port, ""])
