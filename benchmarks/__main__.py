"""Measure the figures of moving bytes: `make bench-bytes`, or `python -m benchmarks --help`."""

from __future__ import annotations

from rich.console import Console

from benchmarks.command import Course, parser_of, run
from benchmarks.figures import GROUPS
from benchmarks.figures.scale import Scale
from benchmarks.race import Outcome
from benchmarks.servers import staged

MARKS = "<!-- figures: written by `make bench-bytes` -->", "<!-- end of figures -->"


def main() -> int:
    """Measure, show, and write what came out; return the exit status."""
    parser = parser_of("python -m benchmarks", __doc__, GROUPS, "bytes.json")
    parser.add_argument("--size", type=int, default=1024, help="MiB of a large file")
    parser.add_argument("--files", type=int, default=10_000, help="number of small files (a tenth of it at 20 ms)")
    parser.add_argument("--memory", type=int, default=8192, help="MiB of the file that memory is measured with")
    options, console = parser.parse_args(), Console()
    scale = Scale(options.size << 20, options.files, options.memory << 20)
    course = Course("bench-bytes", options, console)
    with staged(scale.needed(options.only)) as stage:

        def measure(name: str) -> Outcome:
            with console.status(f"{name} …") as status, GROUPS[name](stage, scale) as measurement:
                return measurement.measure(options.rounds, status.update)

        course.take(measure)
    return course.conclude(MARKS)


if __name__ == "__main__":
    run(main)
