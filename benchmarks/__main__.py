"""Measure the figures of moving bytes: `make bench-bytes`, or `python -m benchmarks --help`."""

from __future__ import annotations

import argparse
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

from rich.console import Console

from benchmarks import report
from benchmarks.figures import GROUPS
from benchmarks.figures.scale import Scale
from benchmarks.race import Outcome
from benchmarks.servers import Stage, staged

ROOT = Path(__file__).parents[1]


def main() -> int:
    """Measure, show, and write what came out.

    Return 1 when a group could not be measured, or with `--strict` when a figure is short; else 0.
    """
    options = _options()
    signal.signal(signal.SIGTERM, _interrupt)
    console = Console()
    scale = Scale(options.size << 20, options.files, options.memory << 20)
    began, outcomes, failed = datetime.now(UTC), list[Outcome](), list[str]()
    with staged(scale.needed(options.only)) as stage:
        for name in options.only:
            try:
                outcomes.append(_measure(name, stage, scale, options.rounds, console))
            except Exception:  # noqa: BLE001  # whatever one group met, the others' half hour is not lost
                console.print_exception()
                failed.append(name)
            else:
                console.print(report.timings(outcomes[-1:]))
    command = f'make bench-bytes ARGS="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else "make bench-bytes"
    run = report.Run(began, command, options.rounds, tuple(outcomes), tuple(failed))
    console.print(report.figures(outcomes))
    report.write_json(run, options.json)
    if failed:
        console.print(f"not measured, see above: {', '.join(failed)}", style="bold red")
        return 1
    if options.write_docs:
        report.write_markdown(run, ROOT / "docs/performance.md")
    short = [figure for outcome in outcomes for figure in outcome.figures if not figure.ok]
    return 1 if short and options.strict else 0


def _measure(name: str, stage: Stage, scale: Scale, rounds: int, console: Console) -> Outcome:
    with console.status(f"{name} …") as status, GROUPS[name](stage, scale) as measurement:
        return measurement.measure(rounds, status.update)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--size", type=int, default=1024, help="MiB of a large file (at 20 ms at most 256)")
    parser.add_argument("--files", type=int, default=10_000, help="number of small files (a tenth of it at 20 ms)")
    parser.add_argument("--memory", type=int, default=8192, help="MiB of the file that memory is measured with")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=_groups, default=list(GROUPS), help=f"some of {','.join(GROUPS)}")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/bytes.json")
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
