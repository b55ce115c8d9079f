"""Plant each fault of the table and print which test caught it; the exit status is 1 when one was not caught."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.mutations.faults import FAULTS
from tests.mutations.planting import copy_of_checkout, try_fault


def main() -> int:
    """Try the faults whose names hold the word of `-k`; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutations", description=__doc__)
    parser.add_argument("-k", default="", metavar="WORD", help="only faults whose names hold it")
    word = parser.parse_args().k
    survivors = []
    print("| fault | file | caught by | s |\n|---|---|---|---|")  # noqa: T201
    with tempfile.TemporaryDirectory() as folder, copy_of_checkout(Path(folder)) as copy:
        for fault in (fault for fault in FAULTS if word in fault.name):
            verdict = try_fault(copy, fault)
            if verdict.caught_by is None:
                survivors.append(fault.name)
            caught = f"`{verdict.caught_by}`" if verdict.caught_by else "**nothing**"
            print(f"| {fault.name} | `{fault.file}` | {caught} | {verdict.seconds:.0f} |", flush=True)  # noqa: T201
    if survivors:
        print(f"not caught: {', '.join(survivors)}", file=sys.stderr)  # noqa: T201
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
