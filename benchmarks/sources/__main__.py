"""Measure what fetching from outside reaches: `make bench-sources`, or `python -m benchmarks.sources --help`."""

from __future__ import annotations

from rich.console import Console

from benchmarks.command import Course, parser_of, run
from benchmarks.race import Outcome
from benchmarks.servers import staged
from benchmarks.sources.figures import GROUPS, Scale

MARKS = "<!-- source figures: written by `make bench-sources` -->", "<!-- end of source figures -->"


def main() -> int:
    """Measure, show, and write what came out; return the exit status."""
    parser = parser_of("python -m benchmarks.sources", __doc__, GROUPS, "sources.json")
    parser.add_argument("--size", type=int, default=1024, help="MiB of the large file")
    parser.add_argument("--at-once", type=int, default=64, help="downloads at the same time")
    parser.add_argument("--each", type=int, default=8, help="MiB of each of these; then four times as much")
    options, console = parser.parse_args(), Console()
    scale = Scale(options.size << 20, options.at_once, options.each << 20)
    course = Course("bench-sources", options, console)
    with staged(scale.needed()) as stage:

        def measure(name: str) -> Outcome:
            with console.status(f"{name} …") as status, GROUPS[name](stage, scale) as measurement:
                return measurement.measure(options.rounds, status.update)

        course.take(measure)
    return course.conclude(MARKS)


if __name__ == "__main__":
    run(main)
