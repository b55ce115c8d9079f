"""Contenders in turn: the same work by several programs, in one run, on one machine.

Machines are noisy and never the same twice, so seconds mean little and ratios inside one round mean something: every
round runs each contender once, begins with another one each time, and a figure is the median of its rounds' ratios.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Tell = Callable[[str], None]
"""Hears what is being done."""


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do the work. `ready` is called before each run and not timed: libraries connect there, as a pool has
    done before a transfer comes; a program's `run` holds its own start and connection, as whoever types it has them.
    """

    name: str
    run: Callable[[], None]
    ready: Callable[[], None] = _nothing


@dataclass(frozen=True, slots=True)
class Claim:
    """What is wanted: contender `ours` does it at least `wanted` times as fast as contender `against`, or, where that
    has two ways, as the one that was faster in the same round."""

    what: str
    ours: str
    against: str
    wanted: float
    or_against: str = ""

    @property
    def rivals(self) -> list[str]:
        """The contenders that it is compared with."""
        return [name for name in (self.against, self.or_against) if name]


@dataclass(frozen=True, slots=True)
class Figure:
    """What was wanted and what was reached: `reached` is the median of `values`, one per round.

    `unit` is `×` for ratios or `/s` for rates (at least `wanted`), or such as `MiB` (at most `wanted`).
    """

    group: str
    what: str
    ours: str
    against: str
    wanted: float
    values: tuple[float, ...]
    unit: str = "×"

    @property
    def reached(self) -> float:
        """The median."""
        return statistics.median(self.values)

    @property
    def ok(self) -> bool:
        """Whether what is wanted is reached."""
        return self.reached >= self.wanted if self.at_least else self.reached <= self.wanted

    @property
    def at_least(self) -> bool:
        """Whether more is better."""
        return self.unit in ("×", "/s")


@dataclass(frozen=True, slots=True)
class Timing:
    """One contender's seconds, a value per round, for `amount` of `unit` (MB, files) each."""

    group: str
    contender: str
    seconds: tuple[float, ...]
    amount: float
    unit: str

    @property
    def rate(self) -> float:
        """Amount per second, of the median."""
        return self.amount / statistics.median(self.seconds)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one group of figures brought. `baseline` names the contender that the others are shown beside."""

    figures: tuple[Figure, ...]
    timings: tuple[Timing, ...] = ()
    baseline: str = ""


class Measurement(Protocol):
    """Something that can be measured, once its servers and files are there."""

    def measure(self, rounds: int, tell: Tell) -> Outcome:
        """Do the work in `rounds` rounds and return what came out."""
        ...


@dataclass(frozen=True, slots=True)
class Race:
    """The same work by several contenders.

    `reset` takes away what the run before made; `check` raises WrongResult unless all bytes are there, looked at one by
    one when it is called with True. `warm_up`: one round is run first that does not count.
    """

    group: str
    amount: float
    unit: str
    contenders: Sequence[Contender]
    claims: Sequence[Claim]
    reset: Callable[[], None]
    check: Callable[[bool], None]
    warm_up: bool = True
    baseline: str = ""
    _checked: set[str] = field(default_factory=set)

    def measure(self, rounds: int, tell: Tell) -> Outcome:
        """Run all contenders in turn. Raises: WrongResult, and what a contender raises."""
        seconds: dict[str, list[float]] = {one.name: [] for one in self.contenders}
        for number in range(0 if self.warm_up else 1, rounds + 1):
            first = number % len(self.contenders)
            for one in [*self.contenders[first:], *self.contenders[:first]]:
                took = self._run(one)
                tell(f"{self.group}: {one.name}: {took:.2f} s" + ("" if number else " (warming up)"))
                if number:
                    seconds[one.name].append(took)
        self.reset()
        figures = [self._figure(claim, seconds) for claim in self.claims]
        timings = [Timing(self.group, name, tuple(took), self.amount, self.unit) for name, took in seconds.items()]
        return Outcome(tuple(figures), tuple(timings), self.baseline)

    def _run(self, one: Contender) -> float:
        self.reset()
        one.ready()
        begin = time.perf_counter()
        one.run()
        took = time.perf_counter() - begin
        self.check(one.name not in self._checked)
        self._checked.add(one.name)
        return took

    def _figure(self, claim: Claim, seconds: dict[str, list[float]]) -> Figure:
        theirs = zip(*(seconds[name] for name in claim.rivals), strict=True)
        ratios = tuple(min(one) / ours for one, ours in zip(theirs, seconds[claim.ours], strict=True))
        return Figure(self.group, claim.what, claim.ours, " or ".join(claim.rivals), claim.wanted, ratios)


class WrongResult(Exception):
    """A contender did not do its work: bytes are missing or others."""
