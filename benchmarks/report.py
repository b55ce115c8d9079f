"""What came out, for people (a table on the terminal, Markdown in the docs) and for programs (JSON)."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import statistics
import subprocess
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.race import Figure, Outcome, Timing

_FIGURES = ("figure", "ours", "against", "target", "reached", "rounds", "")
LINE_MAX = 120
_TIMINGS = ("group", "contender", "rate", "seconds", "ratio")


@dataclass(frozen=True, slots=True)
class Run:
    """One run of the benchmarks: when (UTC), by which command, how many rounds, what came out, and what could not be
    measured."""

    began: datetime
    command: str
    rounds: int
    outcomes: tuple[Outcome, ...]
    failed: tuple[str, ...] = ()


def figures(outcomes: Sequence[Outcome]) -> Table:
    """Return the table of targets and what was reached."""
    return _rich("Wanted and reached", _FIGURES, _figure_rows(outcomes))


def timings(outcomes: Sequence[Outcome]) -> Table:
    """Return the table of all contenders."""
    return _rich("", _TIMINGS, _timing_rows(outcomes))


def write_json(run: Run, path: Path) -> None:
    """Write everything, every round's ratio and seconds included."""
    found = {
        "began": run.began.isoformat(timespec="seconds"),
        "command": run.command,
        "rounds": run.rounds,
        "machine": machine_facts(),
        "failed": list(run.failed),
        "figures": [_as_json(figure) for outcome in run.outcomes for figure in outcome.figures],
        "timings": [dataclasses.asdict(timing) for outcome in run.outcomes for timing in outcome.timings],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_markdown(run: Run, path: Path, marks: tuple[str, str]) -> None:
    """Put the tables between the markers of a document, which stays as it is otherwise.

    Raises: RuntimeError when it has no markers.
    """
    before, begin, rest = path.read_text(encoding="utf-8").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not begin or not end:
        raise RuntimeError(f"{path} has no markers to write between")
    facts = "; ".join(f"{name} {value}" for name, value in machine_facts().items())
    text = "\n".join(
        [
            *_paragraph(f"Measured on {run.began:%Y-%m-%d} by `{run.command}`, {run.rounds} rounds."),
            "",
            *_paragraph(f"Environment: {facts}."),
            "",
            *_markdown(_FIGURES, _figure_rows(run.outcomes)),
            "",
            "All contenders (rate of the median; ratio to the group's first-named yardstick, the one with 1.00):",
            "",
            *_markdown(_TIMINGS, _timing_rows(run.outcomes)),
        ]
    )
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def _paragraph(text: str) -> list[str]:
    return textwrap.wrap(text, LINE_MAX, break_long_words=False, break_on_hyphens=False)


def machine_facts() -> dict[str, str]:
    """Return what the figures depend on: processor, kernel and versions."""
    ssh = subprocess.run(["ssh", "-V"], capture_output=True, text=True, check=True).stderr
    return {
        "cores": str(os.cpu_count()),
        "CPU": _cpu(),
        "kernel": platform.release(),
        "SSH": ssh.split(",")[0].strip(),
        "Python": platform.python_version(),
        "paramiko": version("paramiko"),
        "Prefect": version("prefect"),
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _as_json(figure: Figure) -> dict[str, Any]:
    return dataclasses.asdict(figure) | {"reached": figure.reached, "ok": figure.ok}


def _figure_rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    found = [figure for outcome in outcomes for figure in outcome.figures]
    return [
        [
            figure.what,
            figure.ours,
            figure.against,
            f"{'≥' if figure.at_least else '<'} {figure.wanted:g} {figure.unit.strip('×')}".rstrip(),
            f"{figure.reached:.2f}" if figure.unit == "×" else f"{figure.reached:.0f} {figure.unit}",
            _spread(figure),
            "ok" if figure.ok else "short",
        ]
        for figure in found
    ]


def _spread(figure: Figure) -> str:
    low, high = min(figure.values), max(figure.values)
    form = "{:.2f}" if figure.unit == "×" else "{:.0f}"
    return form.format(low) if len(figure.values) == 1 else f"{form.format(low)} – {form.format(high)}"


def _timing_rows(outcomes: Sequence[Outcome]) -> list[list[str]]:
    rows = []
    for outcome in outcomes:
        beside = next((one for one in outcome.timings if one.contender == outcome.baseline), None)
        for one in outcome.timings:
            rate = f"{one.rate:,.{0 if one.rate >= 10 else 2}f} {one.unit}/s"
            rows.append([one.group, one.contender, rate, f"{statistics.median(one.seconds):.2f}", _ratio(one, beside)])
    return rows


def _ratio(one: Timing, beside: Timing | None) -> str:
    if beside is None:
        return "–"
    return f"{statistics.median(b / a for a, b in zip(one.seconds, beside.seconds, strict=True)):.2f}"


def _rich(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(*heads, title=title or None, title_justify="left")
    for row in rows:
        table.add_row(*row, style="yellow" if row[-1] == "short" else None)
    return table


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(heads), "|" + "---|" * len(heads), *(line(row) for row in rows)]
