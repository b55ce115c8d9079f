"""Our contender: a Data Manager as `dm up` starts it, on SQLite, that copies a registered directory as one batch.

Counted from the POST to COMPLETE: every file verified by sha256, named atomically, and in the catalogue.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.control.ours import resident
from benchmarks.race import WrongResult
from datamanager.domain.requests import DIRECTORY_MAX
from datamanager.machines import Machine
from tests.support.process import children_of
from tests.support.service import DataManagerService

PATIENCE = 600.0
"""Seconds after which a batch that has not ended fails the benchmark."""
_TICK = os.sysconf("SC_CLK_TCK")


class Batches:
    """A running service with some machines, whose `sshds` are watched."""

    def __init__(self, folder: Path, machines: Sequence[Machine], sshds: Sequence[int]) -> None:
        file = folder / "machines.toml"
        folder.mkdir()
        file.write_text("\n".join(map(_table, machines)))
        self._sshds = sshds
        self.service = DataManagerService(folder / "dm", {"DM_MACHINES": str(file)}, tree=True)
        self.cpu = dict[str, list[float]]()
        """Seconds of CPU that each kind of process took for a batch, one per batch."""

    def __enter__(self) -> Self:
        self.service.__enter__()
        self.client = self.service.client()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.client.close()
        self.service.stop()

    def register(self, machine: Machine, directory: str) -> None:
        """Register all files below a directory."""
        self.client.register_tree(machine.name, directory, max_files=DIRECTORY_MAX)

    def copy(self, source: tuple[Machine, str], target: tuple[Machine, str], count: int) -> None:
        """Copy a registered directory; return when it is COMPLETE. Raises: WrongResult when it ends otherwise."""
        before = self._seconds()
        directory = {"machine": source[0].name, "path": source[1]}
        task = self.client.copy_many(directory=directory, machine=target[0].name, dest=target[1])
        found = self.client.wait(task, timeout=PATIENCE)
        if found.items is None or found.items.complete != count:
            raise WrongResult(f"a batch ended otherwise: {found}")
        for name, seconds in self._seconds().items():
            self.cpu.setdefault(name, []).append(max(seconds - before[name], 1 / _TICK))

    def mover_memory(self) -> float:
        """Return the MiB that the mover has resident."""
        (pid,) = self.service.mover_pids()
        return resident(pid)

    def _seconds(self) -> dict[str, float]:
        service = self.service
        return {
            "mover": _cpu(service.mover_pids()),
            "API": _cpu(service.api_pids()),
            "Prefect": _cpu(service.prefect_pids()),
            "sshd": _cpu(self._sshds),
        }


def _cpu(pids: Iterable[int]) -> float:
    """Return the CPU seconds of processes and of all below them, those that have ended included."""
    found, ticks = list(pids), 0
    for pid in found:  # grows while it is walked
        try:
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        ticks += sum(map(int, fields[11:15]))  # utime, stime, and those of children that were waited for
        found += [child for child in children_of(pid) if child not in found]
    return ticks / _TICK


def _table(machine: Machine) -> str:
    """Return a machine's table of the configuration."""
    given: dict[str, Any] = machine.model_dump(mode="json", exclude_unset=True, exclude={"name"})
    lines = [f"{key} = {_value(value)}" for key, value in given.items() if value is not None]
    return "\n".join([f"[machines.{machine.name}]", *lines, ""])


def _value(value: object) -> str:
    return str(value) if isinstance(value, int) else f'"{value}"'
