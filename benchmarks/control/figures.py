"""The groups of figures, by the name that `--only` takes; each starts what it needs and ends it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.control import authentication, certificates, rates
from benchmarks.control.ours import Ours
from benchmarks.control.stock import Stock
from benchmarks.race import Figure, Outcome, Tell, Timing
from tests.support.rabbitmq import RabbitMq

OURS, STOCK = "the Data Manager", "stock process worker, poll 1 s"
WARM_UP = 5
"""Copies before the first that counts: connections are made, modules imported."""
EACH_WAY = 100
"""Copies that are timed beside what waits for the machine that is away."""


@dataclass(frozen=True, slots=True)
class Scale:
    """`copies` one by one a round, by each contender; `queued` ones of ours and `stock_queued` of the stock worker,
    which is slower; `waiting` for a machine that is away; `runs` that memory must not grow by; `requests` of many
    clients at once."""

    copies: int
    queued: int
    stock_queued: int
    waiting: int
    runs: int
    shared: int
    """Copies in the queue that may share runs, ours."""
    requests: int


def start(folder: Path, scale: Scale, rounds: int, tell: Tell) -> Outcome:
    """Time single copies from request to end; without a broker a socket wakes the mover."""
    what = "1 KiB copy, request to COMPLETE, p50, no broker"
    return _by_turns("start", what, 0.7, folder, scale, rounds, tell)


def start_by_broker(folder: Path, scale: Scale, rounds: int, tell: Tell) -> Outcome:
    """Time single copies from request to end, with RabbitMQ."""
    what = "1 KiB copy, request to COMPLETE, p50, with a broker"
    (folder / "rabbitmq").mkdir()
    with RabbitMq(folder / "rabbitmq") as node:
        return _by_turns("start-broker", what, 0.5, folder, scale, rounds, tell, node.fresh_vhost())


def first(folder: Path, scale: Scale, rounds: int, tell: Tell) -> Outcome:
    """Time single copies from request to the first change of their status that a client sees."""
    what = "1 KiB copy, request to its first change of status, p50, nothing queued"
    return _by_turns("first", what, 0.12, folder, scale, rounds, tell, act=lambda contender: contender.first_change())


def _by_turns(
    group: str,
    what: str,
    most: float,
    folder: Path,
    scale: Scale,
    rounds: int,
    tell: Tell,
    amqp_url: str | None = None,
    act: Callable[[Ours | Stock], float] = lambda contender: contender.copy(),
) -> Outcome:
    """Time what `act` does, `most` seconds of ours at most."""
    ours_took, stock_took = list[float](), list[float]()
    with Ours(folder / "ours", amqp_url) as ours, Stock(folder / "stock") as stock:
        for contender in (ours, stock):
            for _ in range(WARM_UP):
                act(contender)
        for number in range(1, rounds + 1):
            one, other = list[float](), list[float]()
            for _ in range(scale.copies):  # by turns: what else runs on this host meets both
                one.append(act(ours))
                other.append(act(stock))
            ours_took.append(statistics.median(one))
            stock_took.append(statistics.median(other))
            tell(f"{group} {number}: {ours_took[-1]:.2f} s, stock {stock_took[-1]:.2f} s")
    ratios = tuple(theirs / mine for mine, theirs in zip(ours_took, stock_took, strict=True))
    milliseconds = tuple(took * 1000 for took in ours_took)
    return Outcome(
        (
            Figure(group, what, OURS, "–", most * 1000, milliseconds, "ms"),
            Figure(group, what, OURS, STOCK, 6, ratios),
        ),
        (
            Timing(group, OURS, tuple(ours_took), 1, "copies"),
            Timing(group, STOCK, tuple(stock_took), 1, "copies"),
        ),
        STOCK,
    )


def queued(folder: Path, scale: Scale, rounds: int, tell: Tell) -> Outcome:
    """Time a queue of copies that one mover works off, each with a run of its own: they have a bandwidth each."""
    ours_took, stock_took = list[float](), list[float]()
    with Ours(folder / "ours") as ours, Stock(folder / "stock") as stock:
        ours.run_queued(WARM_UP)
        stock.run_queued(WARM_UP)
        for number in range(1, rounds + 1):
            ours_took.append(ours.run_queued(scale.queued) / scale.queued)
            stock_took.append(stock.run_queued(scale.stock_queued) / scale.stock_queued)
            tell(f"queued {number}: {1 / ours_took[-1]:.1f} runs/s, stock {1 / stock_took[-1]:.2f} runs/s")
    ratios = tuple(theirs / mine for mine, theirs in zip(ours_took, stock_took, strict=True))
    milliseconds = tuple(took * 1000 for took in ours_took)
    return Outcome(
        (
            Figure("queued", f"flow runs per second, {scale.queued} queued tiny copies", OURS, STOCK, 8, ratios),
            Figure("queued", "the same, time of a run", OURS, "–", 125, milliseconds, "ms"),
        ),
        (
            Timing("queued", OURS, tuple(ours_took), 1, "runs"),
            Timing("queued", STOCK, tuple(stock_took), 1, "runs"),
        ),
        STOCK,
    )


def shared(folder: Path, scale: Scale, rounds: int, tell: Tell) -> Outcome:
    """Time a queue of copies that one mover works off in shared runs."""
    ours_took, stock_took = list[float](), list[float]()
    with Ours(folder / "ours") as ours, Stock(folder / "stock") as stock:
        ours.run_queued(EACH_WAY, shared=True)
        stock.run_queued(WARM_UP)
        for number in range(1, rounds + 1):
            ours_took.append(ours.run_queued(scale.shared, shared=True) / scale.shared)
            stock_took.append(stock.run_queued(scale.stock_queued) / scale.stock_queued)
            tell(f"shared {number}: {1 / ours_took[-1]:.1f} transfers/s, stock {1 / stock_took[-1]:.2f} runs/s")
    ratios = tuple(theirs / mine for mine, theirs in zip(ours_took, stock_took, strict=True))
    rates = tuple(1 / took for took in ours_took)
    what = f"{scale.shared} queued tiny copies that share runs"
    return Outcome(
        (
            Figure("shared", f"{what}, transfers per second", OURS, "–", 150, rates, "/s"),
            Figure("shared", f"{what}, transfers per second", OURS, STOCK, 300, ratios),
        ),
        (
            Timing("shared", OURS, tuple(ours_took), 1, "transfers"),
            Timing("shared", STOCK, tuple(stock_took), 1, "runs"),
        ),
        STOCK,
    )


def away(folder: Path, scale: Scale, rounds: int, tell: Tell) -> Outcome:
    """Time a machine's copies alone, and while many transfers wait for another machine that can't be reached."""
    delays, alone_took, beside_took = list[float](), list[float](), list[float]()
    with Ours(folder / "ours") as ours:
        ours.run_queued(WARM_UP)
        for number in range(1, rounds + 1):
            alone = ours.run_queued(EACH_WAY)
            ours.queue_for_away(scale.waiting)
            beside = ours.run_queued(EACH_WAY)
            ours.forget_queued()
            alone_took.append(alone)
            beside_took.append(beside)
            delays.append(100 * (beside / alone - 1))
            tell(f"away {number}: {alone:.2f} s alone, {beside:.2f} s beside what waits")
    what = f"delay of a machine's {EACH_WAY} copies while {scale.waiting} wait for one that is away"
    return Outcome(
        (Figure("away", what, OURS, "nothing waits", 10, tuple(delays), "%"),),
        (
            Timing("away", "nothing waits", tuple(alone_took), EACH_WAY, "copies"),
            Timing("away", f"{scale.waiting} wait", tuple(beside_took), EACH_WAY, "copies"),
        ),
        "nothing waits",
    )


def memory(folder: Path, scale: Scale, rounds: int, tell: Tell) -> Outcome:  # noqa: ARG001  # memory hardly varies
    """Read the memory of the mover and of the Prefect server when they have just started, after the first runs, and
    after many.
    """
    with Ours(folder / "ours") as ours:
        idle = ours.mover_memory()
        ours.run_queued(100)  # what every run needs once: pools of threads, caches
        before = ours.mover_memory()
        server = [ours.prefect_memory()]
        for done in range(0, scale.runs, 100):
            ours.run_queued(min(100, scale.runs - done))
            server.append(ours.prefect_memory())
            tell(f"memory: {ours.mover_memory():.0f} MiB, Prefect {server[-1]:.0f} MiB after {done + 100} runs")
        after = ours.mover_memory()
    growth = 100 * (after / before - 1)
    return Outcome(
        (
            Figure("memory", "an idle mover", OURS, "–", 250, (idle,), "MiB"),
            Figure("memory", f"growth by {scale.runs} runs, after 100", OURS, "–", 10, (growth,), "%"),
            Figure(
                "memory", f"the Prefect server, most within {scale.runs} runs", OURS, "–", 1024, (max(server),), "MiB"
            ),
        )
    )


GROUPS: dict[str, Callable[[Path, Scale, int, Tell], Outcome]] = {
    "start": start,
    "start-broker": start_by_broker,
    "start-certificate": lambda folder, scale, rounds, tell: certificates.start(folder, scale.copies, rounds, tell),
    "access": lambda folder, scale, rounds, tell: authentication.access(folder, scale.requests, rounds, tell),
    "first": first,
    "queued": queued,
    "shared": shared,
    "away": away,
    "memory": memory,
    "submit": lambda folder, scale, rounds, tell: rates.submit(folder, scale.requests, rounds, tell),
    "register": lambda folder, scale, rounds, tell: rates.register(folder, scale.requests, rounds, tell),
}
