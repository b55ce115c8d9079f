"""How many requests a second are accepted from 16 clients at once."""

from __future__ import annotations

from pathlib import Path

from benchmarks.control.clients import CLIENTS
from benchmarks.control.ours import HERE, Ours
from benchmarks.control.tutorial import Tutorial
from benchmarks.race import Figure, Outcome, Tell, Timing

OURS, TUTORIAL = "the Data Manager", "FastAPI's tutorial application"
WARM_UP = 100
"""Requests before the first that counts."""


def submit(folder: Path, requests: int, rounds: int, tell: Tell) -> Outcome:
    """Time submissions of single copies: while they wait in the queue, and while the mover works at them."""
    waiting, working = list[float](), list[float]()
    with Ours(folder / "ours") as ours:
        ours.client.drain_machine(HERE)
        ours.submit_at_once(WARM_UP)
        for number in range(1, rounds + 1):
            waiting.append(ours.submit_at_once(requests) / requests)
            ours.forget_queued()
            ours.client.undrain_machine(HERE)
            working.append(ours.submit_at_once(requests) / requests)
            ours.client.drain_machine(HERE)
            ours.forget_queued()
            ours.wait_idle()
            tell(f"submit {number}: {1 / waiting[-1]:.0f}/s, with the mover at work {1 / working[-1]:.0f}/s")
    what = f"single async copies submitted, {CLIENTS} clients"
    return Outcome(
        (
            Figure("submit", f"{what}, which wait", OURS, "–", 400, _per_second(waiting), "/s"),
            Figure("submit", f"{what}, the mover at work", OURS, "–", 400, _per_second(working), "/s"),
        ),
        (
            Timing("submit", OURS, tuple(waiting), 1, "requests"),
            Timing("submit", f"{OURS}, the mover at work", tuple(working), 1, "requests"),
        ),
        OURS,
    )


def register(folder: Path, requests: int, rounds: int, tell: Tell) -> Outcome:
    """Time registrations of files on the service's own host."""
    took, tutorial_took = list[float](), list[float]()
    with Ours(folder / "ours") as ours, Tutorial(folder / "tutorial") as tutorial:
        for contender in (ours, tutorial):
            contender.register_at_once(WARM_UP)
        for number in range(1, rounds + 1):
            took.append(ours.register_at_once(requests) / requests)
            tutorial_took.append(tutorial.register_at_once(requests) / requests)
            tell(f"register {number}: {1 / took[-1]:.0f}/s, the tutorial's {1 / tutorial_took[-1]:.0f}/s")
    what = f"files registered, {CLIENTS} clients"
    ratios = tuple(theirs / mine for mine, theirs in zip(took, tutorial_took, strict=True))
    return Outcome(
        (
            Figure("register", what, OURS, "–", 1000, _per_second(took), "/s"),
            Figure("register", what, OURS, TUTORIAL, 1, ratios),
        ),
        (
            Timing("register", OURS, tuple(took), 1, "requests"),
            Timing("register", TUTORIAL, tuple(tutorial_took), 1, "requests"),
        ),
        TUTORIAL,
    )


def _per_second(took: list[float]) -> tuple[float, ...]:
    return tuple(1 / seconds for seconds in took)
