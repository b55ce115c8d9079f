"""Measure lists of a large catalogue: `make bench-scale`, or `python -m benchmarks.scale --help`."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from rich.console import Console
from sqlalchemy.engine import make_url

from benchmarks.command import Course, parser_of, run
from benchmarks.race import Outcome
from benchmarks.scale.figures import GROUPS, Scale
from benchmarks.scale.queries import FILTERS
from tests.support.postgres import Databases

MARKS = "<!-- scale figures: written by `make bench-scale` -->", "<!-- end of scale figures -->"


def main() -> int:
    """Measure, show, and write what came out; return the exit status."""
    parser = parser_of("python -m benchmarks.scale", __doc__, GROUPS, "scale.json")
    parser.add_argument("--sqlite", type=int, default=10**6, help="objects in SQLite's catalogue")
    parser.add_argument("--postgresql", type=int, default=10**7, help="objects in PostgreSQL's catalogue")
    parser.add_argument("--folder", type=Path, help="where SQLite's catalogue is kept for the next time")
    parser.add_argument(
        "--server", type=make_url, help="a PostgreSQL server where the catalogue is kept; its superuser"
    )
    parser.add_argument("--filters", default="", help="only those whose names fit this regular expression")
    options, console = parser.parse_args(), Console()
    server = None if options.server is None else Databases(options.server.set(drivername="postgresql+psycopg"))
    filters = [name for name in FILTERS if re.search(options.filters, name)]
    scale = Scale(options.sqlite, options.postgresql, filters, options.folder, server)
    course = Course("bench-scale", options, console)

    def measure(name: str) -> Outcome:
        with tempfile.TemporaryDirectory(prefix="dm-bench-") as folder, console.status(name) as status:
            return GROUPS[name](Path(folder), scale, options.rounds, status.update)

    course.take(measure)
    return course.conclude(MARKS)


if __name__ == "__main__":
    run(main)
