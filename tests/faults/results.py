"""The matrix's results: a file to which runs are added, and the table of docs/reliability.md that is made of it."""

from __future__ import annotations

import fcntl
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.cells import COLUMNS

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- the fault matrix's table, written by `make faults` -->", "<!-- its end -->"

Cell = dict[str, Any]


class Results:
    """Counts of each cell (fault × column: a kind of transfer, or shared) in a JSON file, written after each run.

    Test processes that run beside each other add to one file in turn.
    """

    def __init__(self, file: Path, document: Path = DOCUMENT) -> None:
        self._file = file
        self._document = document

    def add(self, fault: str, kind: str, seed: int, outcome: str, violations: Sequence[str]) -> None:
        """Count a run."""
        with self._in_turn():
            table = self.read()
            cell = table.setdefault(fault, {}).setdefault(
                kind, {"runs": 0, "violations": 0, "outcomes": {}, "last_seed": 0, "violated": []}
            )
            cell["runs"] += 1
            cell["violations"] += bool(violations)
            cell["outcomes"] = dict(sorted((Counter(cell["outcomes"]) + Counter([outcome])).items()))
            cell["last_seed"] = seed
            cell["violated"] += [f"seed {seed}: {sentence}" for sentence in violations]
            self._file.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def read(self) -> dict[str, dict[str, Cell]]:
        """Return all cells: fault → kind → counts."""
        text = self._file.read_text(encoding="utf-8") if self._file.exists() else ""
        table: dict[str, dict[str, Cell]] = json.loads(text or "{}")
        return table

    def publish(self) -> None:
        """Write the table into the document."""
        with self._in_turn():
            before, _, rest = self._document.read_text(encoding="utf-8").partition(BEGIN)
            _, _, after = rest.partition(END)
            self._document.write_text(f"{before}{BEGIN}\n{table_of(self.read())}{END}{after}", encoding="utf-8")

    @contextmanager
    def _in_turn(self) -> Iterator[None]:
        """Let no other process read or write in between."""
        with self._file.open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def table_of(results: dict[str, dict[str, Cell]]) -> str:
    """Return a Markdown table: a row for each fault, a column for each kind of transfer, and for shared runs."""
    lines = ["| fault | " + " | ".join(COLUMNS) + " | last seed |", "|---" * (len(COLUMNS) + 2) + "|"]
    for fault, cells in results.items():
        columns = [_said(cells[kind]) if kind in cells else "not run" for kind in COLUMNS]
        last = max(cell["last_seed"] for cell in cells.values())
        lines.append(f"| {fault} | {' | '.join(columns)} | {last} |")
    everything = [cell for cells in results.values() for cell in cells.values()]
    runs, violations = (sum(cell[what] for cell in everything) for what in ("runs", "violations"))
    lines.append(f"\n{runs} runs, {violations} of them with a violation.\n")
    return "\n".join(lines)


def _said(cell: Cell) -> str:
    ends = ", ".join(f"{count} {outcome}" for outcome, count in cell["outcomes"].items())
    broken = f"**{cell['violations']} violations**" if cell["violations"] else "0 violations"
    return f"{cell['runs']} runs, {broken}: {ends}"
