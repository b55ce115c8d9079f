"""Measure what archiving reaches: `make bench-archive`, or `python -m benchmarks.archive --help`."""

from __future__ import annotations

from rich.console import Console

from benchmarks.archive.figures import GROUPS
from benchmarks.archive.scale import Scale
from benchmarks.command import Course, parser_of, run
from benchmarks.race import Outcome
from benchmarks.servers import staged

MARKS = "<!-- archive figures: written by `make bench-archive` -->", "<!-- end of archive figures -->"


def main() -> int:
    """Measure, show, and write what came out; return the exit status."""
    parser = parser_of("python -m benchmarks.archive", __doc__, GROUPS, "archive.json")
    parser.add_argument("--size", type=int, default=64, help="MiB of a large file; there are five")
    parser.add_argument("--files", type=int, default=5000, help="number of the other files")
    options, console = parser.parse_args(), Console()
    scale = Scale(options.size << 20, options.files)
    course = Course("bench-archive", options, console)
    with staged(scale.needed(options.only)) as stage:

        def measure(name: str) -> Outcome:
            with console.status(f"{name} …") as status, GROUPS[name](stage, scale) as race:
                return race.measure(options.rounds, status.update)

        course.take(measure)
    return course.conclude(MARKS)


if __name__ == "__main__":
    run(main)
