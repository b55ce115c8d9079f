"""Measure how fast requests start and end: `make bench-control`, or `python -m benchmarks.control --help`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.command import Course, parser_of, run
from benchmarks.control.figures import GROUPS, Scale
from benchmarks.race import Outcome

MARKS = "<!-- control figures: written by `make bench-control` -->", "<!-- end of control figures -->"


def main() -> int:
    """Measure, show, and write what came out; return the exit status."""
    parser = parser_of("python -m benchmarks.control", __doc__, GROUPS, "control.json")
    parser.add_argument("--copies", type=int, default=10, help="copies one by one in a round")
    parser.add_argument("--queued", type=int, default=200, help="copies in the queue, ours")
    parser.add_argument("--stock-queued", type=int, default=20, help="runs in the queue of the stock worker")
    parser.add_argument("--waiting", type=int, default=1000, help="transfers that wait for a machine that is away")
    parser.add_argument("--runs", type=int, default=5000, help="runs that memory must not grow by")
    parser.add_argument("--shared", type=int, default=2000, help="copies in the queue that may share runs, ours")
    parser.add_argument("--requests", type=int, default=2000, help="requests of many clients at once in a round")
    options, console = parser.parse_args(), Console()
    lone = options.copies, options.queued, options.stock_queued, options.waiting, options.runs
    scale = Scale(*lone, options.shared, options.requests)
    course = Course("bench-control", options, console)

    def measure(name: str) -> Outcome:
        # a short folder, on memory: the databases' disk is not what is measured
        with tempfile.TemporaryDirectory(prefix="dm-bench-", dir="/dev/shm") as folder, console.status(name) as status:
            return GROUPS[name](Path(folder), scale, options.rounds, status.update)

    course.take(measure)
    return course.conclude(MARKS)


if __name__ == "__main__":
    run(main)
