"""What the benchmarks' command lines share: their options, groups that may fail, and what is made of the outcomes."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import NoReturn

from rich.console import Console

from benchmarks import report
from benchmarks.race import Outcome

ROOT = Path(__file__).parents[1]


def parser_of(prog: str, about: str | None, groups: Iterable[str], results: str) -> argparse.ArgumentParser:
    """Return a parser with the common options; `results` is the JSON file's name."""
    names = list(groups)

    def some(text: str) -> list[str]:
        wanted = text.split(",")
        if unknown := sorted(set(wanted) - set(names)):
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; there are {', '.join(names)}")
        return wanted

    parser = argparse.ArgumentParser(prog=prog, description=about)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", type=some, default=names, help=f"some of {','.join(names)}")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results" / results)
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/performance.md")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a figure is short")
    return parser


class Course:
    """One run of a benchmark: its groups in turn, then the tables."""

    def __init__(self, target: str, options: argparse.Namespace, console: Console) -> None:
        self._command = f'make {target} ARGS="{" ".join(sys.argv[1:])}"' if sys.argv[1:] else f"make {target}"
        self._options = options
        self._console = console
        self._began = datetime.now(UTC)
        self._outcomes: list[Outcome] = []
        self._failed: list[str] = []

    def take(self, measure: Callable[[str], Outcome]) -> None:
        """Measure every group that was asked for and show its times; one that fails is named in the end."""
        for name in self._options.only:
            try:
                self._outcomes.append(measure(name))
            except Exception:  # noqa: BLE001  # whatever one group met, the others' half hour is not lost
                self._console.print_exception()
                self._failed.append(name)
            else:
                self._console.print(report.timings(self._outcomes[-1:]))

    def conclude(self, marks: tuple[str, str]) -> int:
        """Show and write what came out; `marks` enclose the tables in the docs.

        Return 1 when a group could not be measured, or with `--strict` when a figure is short; else 0.
        """
        options, outcomes = self._options, self._outcomes
        run = report.Run(self._began, self._command, options.rounds, tuple(outcomes), tuple(self._failed))
        self._console.print(report.figures(outcomes))
        report.write_json(run, options.json)
        if self._failed:
            self._console.print(f"not measured, see above: {', '.join(self._failed)}", style="bold red")
            return 1
        if options.write_docs:
            report.write_markdown(run, ROOT / "docs/performance.md", marks)
        short = [figure for outcome in outcomes for figure in outcome.figures if not figure.ok]
        return 1 if short and options.strict else 0


def run(main: Callable[[], int]) -> NoReturn:
    """Run a benchmark's `main` and exit; SIGTERM and Ctrl-C end all that was started."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing is left behind")


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt
