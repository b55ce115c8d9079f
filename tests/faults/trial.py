"""One trial: copies, moves and downloads begin together, a fault strikes at a random moment, all are looked at."""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import requests

from datamanager.domain.states import TransferKind
from datamanager.errors import CatalogueUnavailable
from models.database import now
from models.tables import Transfer
from tests.faults.cells import KINDS, Cell
from tests.faults.judging import Facts
from tests.faults.moments import Mark, Moment
from tests.faults.plant import DESTINATION, Plant
from tests.support.hearing import Ear

EACH = 2
"""Transfers of a kind in one trial."""
TOGETHER = 18
"""Transfers in the trial of a shared run: more than a mover has slots."""
MEMBER = 400 * 2**10
"""Bytes of each of them."""
SECONDS = 2.5
"""How long the bytes of all of them take, when nothing happens."""
SMALL, LARGE = 12 * 2**20, 160 * 2**20
"""Bytes of a transfer; the large one is gone on with where it was cut off, the small one begins anew."""
STARTED = 60.0
"""Seconds until the fault strikes although the bytes that it waits for have not passed."""
PATIENCE = 300.0
"""Seconds until a transfer that has not ended violates."""
ORPHANED = timedelta(seconds=30)
"""How long a transfer may be RUNNING after its lease ran out, until another mover has it (issue: 30 s)."""
TIDY = 90.0
"""Seconds after the end until partial files must be gone and events must have come."""
LOOK = 0.1
"""Seconds between two looks."""


@dataclass(frozen=True)
class Fault:
    """What happens to the transfers; `strike` returns when it is over."""

    name: str
    strike: Callable[[Trial], None]
    may: frozenset[str] = frozenset()
    """Error codes in which a transfer may end, besides COMPLETE."""
    move_may: frozenset[str] = frozenset()
    """Further ones, for a move."""
    machine: str = DESTINATION
    around: Callable[[Plant], AbstractContextManager[object]] = lambda _plant: nullcontext()
    begin: Callable[[Trial], None] | None = None
    """How the transfers are asked for, when not over HTTP."""
    sizes: tuple[int, ...] = (SMALL, SMALL, LARGE)
    """Sizes of which one transfer's is drawn; the others are small."""

    def allowed(self, kind: TransferKind) -> frozenset[str]:
        """Return how a transfer of this kind may end."""
        return frozenset({"COMPLETE"}) | self.may | (self.move_may if kind is TransferKind.MOVE else frozenset())


@dataclass
class Trial:
    """The state of one trial, and its diary: what was done and seen, with seconds since the requests."""

    plant: Plant
    ear: Ear
    fault: Fault
    seed: int
    shared: bool = False
    """The transfers share a run: they are small copies, or moves."""
    cells: list[Cell] = field(default_factory=list)
    diary: list[str] = field(default_factory=list)

    together: dict[UUID, set[str]] = field(default_factory=dict)
    """The transfers that were seen in a shared run, by run."""

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{self.fault.name} {self.seed}")
        self.moment = Moment.draw(self.chance)
        self.folder = f"{re.sub(r'[^A-Za-z0-9]+', '-', self.fault.name)}-{self.seed}{'-shared' * self.shared}"
        if self.shared:
            kind = self.chance.choice([TransferKind.COPY, TransferKind.MOVE])
            for number in range(TOGETHER):
                path = f"{self.folder}/{kind}{number}.bin"
                self.cells.append(Cell(self.plant, kind, path, self.fault.machine, MEMBER, shared=True))
        else:
            self._draw_cells()
        self.struck = list(self.cells)
        """What the fault can have touched: those that it left alone are judged, but not counted as runs of it."""
        self._begun = time.monotonic()
        self._sent = 0

    def _draw_cells(self) -> None:
        for number in range(EACH):
            for kind in KINDS:
                path = f"{self.folder}/{kind}{number}.bin"
                self.cells.append(Cell(self.plant, kind, path, self.fault.machine, SMALL))
        self.chance.choice(self.cells).size = self.chance.choice(self.fault.sizes)

    def say(self, what: str) -> None:
        """Write a line of the diary."""
        self.diary.append(f"{time.monotonic() - self._begun:7.3f}  {what}")

    def run(self) -> list[tuple[Cell, Facts]]:
        """Do it all; return what was found, the plant being whole again."""
        self.plant.mend()  # after a trial that broke off
        for cell in self.cells:
            cell.prepare(self.chance)
        total = sum(cell.size for cell in self.cells)
        way = self.plant.destination.way
        way.rate = total / SECONDS
        try:
            with self.fault.around(self.plant), ThreadPoolExecutor(1) as beside:
                self._begun, self._sent = time.monotonic(), way.sent
                self._begin()
                self._watch(beside.submit(self._strike, total))
                self.say("all have ended, or patience has")
                way.rate = None
                self.plant.mend()
        finally:
            way.rate = None
        return [(cell, self._facts(cell)) for cell in self.cells]

    def works(self) -> str | None:
        """Copy a small file; return what is wrong, None when it arrives."""
        site, name = self.plant.site, f"{self.folder}/after.bin"
        uuid = site.register("archer2", name, self.chance.randbytes(1000))
        answer = site.ask("POST", f"async/copy/{uuid}", data={"machine": self.fault.machine, "dest": name})
        end = site.wait(answer.text)
        return None if end["status"] == "COMPLETE" else f"a small copy afterwards ended {end}"

    def clear(self) -> None:
        """Remove the files."""
        for folder in [*self.plant.site.folders.values(), self.plant.parts.web.root]:
            shutil.rmtree(folder / self.folder, ignore_errors=True)

    def held(self) -> dict[str, list[Cell]]:
        """Return who holds which transfers now."""
        found: dict[str, list[Cell]] = {}
        for cell in self.cells:
            if (owner := cell.row().owner) is not None:
                found.setdefault(owner, []).append(cell)
        return found

    # --- inside ------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self.fault.begin is not None:
            self.fault.begin(self)
        elif self.shared:
            machine = f"machines/{self.fault.machine}"
            assert self.plant.site.ask("POST", f"{machine}/drain").ok
            for cell in self.cells:
                cell.request()
            assert self.plant.site.ask("POST", f"{machine}/undrain").ok
        else:
            for cell in self.cells:
                cell.request()

    def _strike(self, total: int) -> None:
        self._await_moment(total)
        self.say(f"{self.fault.name}, {self.moment}")
        self.fault.strike(self)
        self.say("the fault is over")

    def _await_moment(self, total: int) -> None:
        mark, value = self.moment.mark, self.moment.value
        if mark is Mark.REQUEST:
            time.sleep(value)
            return
        share = value if mark is Mark.BYTES else 1.0
        deadline = time.monotonic() + STARTED
        while self.plant.destination.way.sent - self._sent < share * total and time.monotonic() < deadline:
            time.sleep(0.002)
        if mark is Mark.END:
            time.sleep(value)

    def _watch(self, strike: Future[None]) -> None:
        """Look at the transfers until all have ended and the fault is over. Raises: what the fault raised."""
        deadline = time.monotonic() + PATIENCE
        told: dict[str, str] = {}
        while time.monotonic() < deadline:
            ended = True
            for cell in self.cells:
                with contextlib.suppress(CatalogueUnavailable):
                    row = cell.row()
                    self._look_at(cell, row)
                    line = f"{cell.name} {row.status} {row.phase} {row.bytes_done} #{row.attempts} {row.owner}"
                    if told.get(cell.task) != line:
                        self.say(line)
                    told[cell.task] = line
                    if row.ended is not None:
                        continue
                ended = False
            self._ask_api()
            if ended and strike.done():
                break
            time.sleep(LOOK)
        strike.result(timeout=PATIENCE)

    def _look_at(self, cell: Cell, row: Transfer) -> None:
        if row.shared_run is not None:
            self.together.setdefault(row.shared_run, set()).add(cell.path)
        if row.status == "RUNNING" and (row.owner is None or row.lease_until is None):
            self._blame(cell, "it was RUNNING without a lease")
        if row.status == "RUNNING" and row.lease_until is not None:
            with self.plant.database.read() as session:
                overdue = now(session) - row.lease_until
            # read the row again: it may have been renewed meanwhile
            if overdue > ORPHANED and cell.row().lease_until == row.lease_until:
                self._blame(cell, "it was RUNNING 30 s after its lease had run out")
        if cell.kind is TransferKind.MOVE and not cell.source.exists():
            # a source goes last, so what must have happened before can be seen now
            if not cell.destination.exists():
                self._blame(cell, "its source was gone before the destination was there")
            if cell.live(cell.machine) != 1:
                self._blame(cell, "its source was gone before the catalogue knew of the destination")

    def _blame(self, cell: Cell, sentence: str) -> None:
        if sentence not in cell.seen:
            self.say(f"{cell.name}: {sentence}")
            cell.seen.append(sentence)

    def _ask_api(self) -> None:
        """Ask for the states as a client does: it may hear that we are away, never that we are at fault."""
        for cell in self.cells:
            with contextlib.suppress(requests.RequestException):
                answer = self.plant.site.ask("GET", f"async/status/{cell.task}")
                if answer.status_code not in (200, 503, 504):
                    self._blame(cell, f"its status was answered {answer.status_code}: {answer.text[:300]}")

    def _facts(self, cell: Cell) -> Facts:
        row = cell.row()
        heard = self.ear.wait_for(cell.task, row.sequence, TIDY)
        deadline = time.monotonic() + TIDY
        while cell.parts() and time.monotonic() < deadline:
            time.sleep(LOOK)
        return cell.facts(self.fault.allowed(cell.kind), heard)
