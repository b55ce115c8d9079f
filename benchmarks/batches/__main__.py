"""Measure batches of small files from the request to COMPLETE: `make bench-batches`, or
`python -m benchmarks.batches --help`."""

from __future__ import annotations

from rich.console import Console

from benchmarks.batches.figures import GROUPS, Scale
from benchmarks.command import Course, parser_of, run
from benchmarks.race import Outcome
from benchmarks.servers import staged

MARKS = "<!-- batch figures: written by `make bench-batches` -->", "<!-- end of batch figures -->"


def main() -> int:
    """Measure, show, and write what came out; return the exit status."""
    parser = parser_of("python -m benchmarks.batches", __doc__, GROUPS, "batches.json")
    parser.add_argument("--files", type=int, default=10_000, help="number of files (a tenth of it at 20 ms)")
    parser.add_argument("--many", type=int, default=100_000, help="files that memory must not grow by")
    options, console = parser.parse_args(), Console()
    scale = Scale(options.files, options.many)
    course = Course("bench-batches", options, console)
    with staged(scale.needed(options.only)) as stage:

        def measure(name: str) -> Outcome:
            with console.status(f"{name} …") as status:
                return GROUPS[name](stage, scale, options.rounds, status.update)

        course.take(measure)
    return course.conclude(MARKS)


if __name__ == "__main__":
    run(main)
