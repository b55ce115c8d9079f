"""Measure how fast requests start and end: `make bench-control`, or `python -m benchmarks.control --help`."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from rich.console import Console

from benchmarks import report
from benchmarks.control.figures import GROUPS, Scale
from benchmarks.race import Outcome

ROOT = Path(__file__).parents[2]
MARKS = "<!-- control figures: written by `make bench-control` -->", "<!-- end of control figures -->"


def main() -> int:
    """Measure, show, and write what came out.

    Return 1 when a group could not be measured, or with `--strict` when a figure is short; else 0.
    """
    options = _options()
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console()
    scale = Scale(options.copies, options.queued, options.stock_queued, options.waiting, options.runs)
    began, outcomes, failed = datetime.now(UTC), list[Outcome](), list[str]()
    for name in options.only:
        # a short folder, on memory: the databases' disk is not what is measured
        with tempfile.TemporaryDirectory(prefix="dm-bench-", dir="/dev/shm") as folder, console.status(name) as status:
            try:
                outcomes.append(GROUPS[name](Path(folder), scale, options.rounds, status.update))
            except Exception:  # noqa: BLE001  # whatever one group met, the others' minutes are not lost
                console.print_exception()
                failed.append(name)
                continue
        console.print(report.figures(outcomes[-1:]))
        console.print(report.timings(outcomes[-1:]))
    command = f'make bench-control ARGS="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else "make bench-control"
    run = report.Run(began, command, options.rounds, tuple(outcomes), tuple(failed))
    console.print(report.figures(outcomes))
    report.write_json(run, options.json)
    if failed:
        console.print(f"not measured, see above: {', '.join(failed)}", style="bold red")
        return 1
    if options.write_docs:
        report.write_markdown(run, ROOT / "docs/performance.md", MARKS)
    short = [figure for outcome in outcomes for figure in outcome.figures if not figure.ok]
    return 1 if short and options.strict else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.control", description=__doc__)
    parser.add_argument("--copies", type=int, default=10, help="copies one by one in a round")
    parser.add_argument("--queued", type=int, default=200, help="copies in the queue, ours")
    parser.add_argument("--stock-queued", type=int, default=20, help="runs in the queue of the stock worker")
    parser.add_argument("--waiting", type=int, default=1000, help="transfers that wait for a machine that is away")
    parser.add_argument("--runs", type=int, default=2000, help="runs that the mover's memory must not grow by")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=_groups, default=list(GROUPS), help=f"some of {','.join(GROUPS)}")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/control.json")
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/performance.md")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a figure is short")
    return parser.parse_args()


def _groups(text: str) -> list[str]:
    names = text.split(",")
    if unknown := sorted(set(names) - set(GROUPS)):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(GROUPS)}")
    return names


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt  # what was started is ended on the way out


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing is left behind")
