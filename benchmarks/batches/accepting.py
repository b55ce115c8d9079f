"""Batches before and after the mover has them: how long the answer to a batch takes, and a repeat that skips all.

The service runs and the files below the source's directory are registered (`Given`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from uuid import UUID

from benchmarks.race import Claim, Contender, Figure, Outcome, Race, Tell, Timing, WrongResult
from datamanager.client import Client
from datamanager.machines import Machine

ANSWER, REPEAT = 250, 500
"""Milliseconds in which a batch of 10,000 items is to be accepted, and in which its repeat is to end."""
DIRECTORY, ITEMS = "ours, a directory", "ours, items"
AGAIN, RSYNC = "ours, POST to COMPLETE", "rsync -a, aes128-gcm"
PATIENCE = 300.0  # seconds


@dataclass(frozen=True, slots=True)
class Given:
    """A service, and `count` registered files below `directory` of `source`."""

    client: Client
    source: Machine
    directory: str
    target: Machine
    count: int

    def start(self, dest: str) -> UUID:
        """Submit the copy of the directory."""
        below = {"machine": self.source.name, "path": self.directory}
        return self.client.copy_many(directory=below, machine=self.target.name, dest=dest)

    def copy(self, dest: str, skipped: int) -> None:
        """Copy the directory; return when it is COMPLETE. Raises: WrongResult, also if it skips another number."""
        items = self.client.wait(self.start(dest), timeout=PATIENCE).items
        if items is None or (items.complete, items.skipped) != (self.count, skipped):
            raise WrongResult(f"a batch ended otherwise: {items}")


def accepting(given: Given, rounds: int, tell: Tell) -> Outcome:
    """Submit the files as a directory and as items; the target is drained meanwhile, and what was accepted is
    cancelled.
    """
    client, target = given.client, given.target.name
    objects = list(client.objects(machine=given.source.name, path=given.directory, status="ACTIVE", limit=1000))

    def items(dest: str) -> UUID:
        wanted = [{"uuid": str(one.id), "dest": f"{dest}/{number}"} for number, one in enumerate(objects)]
        return client.copy_many(wanted, machine=target)

    ways: dict[str, Callable[[str], UUID]] = {DIRECTORY: given.start, ITEMS: items}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    client.drain_machine(target)
    try:
        for number in range(rounds + 1):
            for name, submit in ways.items():
                begin = time.perf_counter()
                task = submit("accepted")
                took = time.perf_counter() - begin
                found = client.cancel(task)
                if found.items is None or found.items.total != given.count:
                    raise WrongResult(f"{found.items} of {given.count} items")
                tell(f"accept: {name}: {took:.2f} s" + ("" if number else " (warming up)"))
                if number:
                    seconds[name].append(took)
    finally:
        client.undrain_machine(target)
    what = f"answer to a batch of {given.count:,} items"
    figures = [
        Figure("accept", what, name, "–", ANSWER, tuple(one * 1000 for one in took), "ms")
        for name, took in seconds.items()
    ]
    timings = [Timing("accept", name, tuple(took), given.count, "items") for name, took in seconds.items()]
    return Outcome(tuple(figures), tuple(timings))


def repeating(given: Given, rsync: Callable[[], None], rounds: int, tell: Tell) -> Outcome:
    """Repeat a copy of which nothing is missing; `rsync` copies the same files to a directory of its own."""
    dest = "repeated"
    given.copy(dest, skipped=0)
    rsync()
    again = Contender(AGAIN, partial(given.copy, dest, given.count))
    what = f"repeat that skips all of {given.count:,} files"
    claims = [Claim(what, AGAIN, RSYNC, 0.5)]
    contenders = [again, Contender(RSYNC, rsync)]
    race = Race("repeat", given.count, "files", contenders, claims, _nothing, _trust, baseline=RSYNC)
    found = race.measure(rounds, tell)
    (ours,) = (timing.seconds for timing in found.timings if timing.contender == AGAIN)
    limit = Figure("repeat", what, AGAIN, "–", REPEAT, tuple(one * 1000 for one in ours), "ms")
    return Outcome((*found.figures, limit), found.timings, found.baseline)


def _nothing() -> None:
    """Leave what the run before made: that nothing is missing is the work."""


def _trust(_thoroughly: bool) -> None:
    """Look at nothing: a repeat writes nothing, and says how many it skipped."""
