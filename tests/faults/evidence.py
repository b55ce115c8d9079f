"""What is kept of a trial that violated: the diary, the rows, the events, the logs of every process."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from datamanager.errors import CatalogueUnavailable
from tests.faults.trial import Trial

KEPT = Path(__file__).parents[2] / ".cache" / "faults"


def keep(trial: Trial, broken: Mapping[str, Sequence[str]]) -> str:
    """Keep all of it; return the text that a person reads first."""
    folder = KEPT / trial.folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for log in trial.plant.logs():
        if log.exists():
            shutil.copyfile(log, folder / f"{log.parent.name}-{log.name}")
    text = report(trial, broken) + f"\nlogs: {folder}"
    (folder / "report.txt").write_text(text, encoding="utf-8")
    return text


def report(trial: Trial, broken: Mapping[str, Sequence[str]]) -> str:
    """Say what was violated, what is in the catalogue, and what was done and seen when."""
    lines = [f"{trial.fault.name}, {trial.moment}; again with DM_TEST_FAULT_SEED={trial.seed}", ""]
    for name, sentences in broken.items():
        lines += [f"VIOLATED {name}: {sentence}" for sentence in sentences]
    for cell in trial.cells:
        with contextlib.suppress(CatalogueUnavailable):
            row = cell.row() if cell.task else None
            lines.append(f"\n{cell.name} {cell.task}, {cell.size} bytes")
            if row is not None:
                facts = {key: value for key, value in vars(row).items() if not key.startswith("_")}
                lines.append(json.dumps(facts, default=str, indent=1))
    return "\n".join([*lines, "", *trial.diary])
