"""How much memory a mover takes while it moves a huge file: the hardest way, a relay with several streams at both ends.

The mover is a process of its own (`benchmarks.moving`), so that only what the transfer takes is counted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.figures.files import MB
from benchmarks.figures.scale import Scale
from benchmarks.race import Figure, Outcome, Tell, Timing, WrongResult
from benchmarks.servers import Stage
from datamanager.machines import Machine

MOST = 200
"""MiB resident above idle."""


@dataclass(frozen=True, slots=True)
class Memory:
    """A huge sparse file (its source takes no space), to be relayed once."""

    stage: Stage
    source: Machine
    size: int

    def measure(self, rounds: int, tell: Tell) -> Outcome:  # noqa: ARG002  # one round tells: memory hardly varies
        """Relay the file and return the mover's peak. Raises: WrongResult, CalledProcessError."""
        order = {
            "source": self.source.model_dump(mode="json"),
            "target": self.stage.second_distant.model_dump(mode="json"),
            "control_dir": os.fspath(self.stage.control),
        }
        process = subprocess.run(
            [sys.executable, "-m", "benchmarks.moving"], input=json.dumps(order).encode(), stdout=subprocess.PIPE
        )
        process.check_returncode()
        told = json.loads(process.stdout)
        if (self.stage.other / "huge").stat().st_size != self.size:
            raise WrongResult("huge: not all bytes arrived")
        above = (told["peak"] - told["idle"]) / 2**20
        tell(f"memory: {told['idle'] >> 20} MiB idle, at most {above:.0f} MiB above, {told['sessions']} sessions")
        ours = f"relay with {told['sessions']} sessions, round trip 20 ms"
        what = f"memory above idle while {self.size / 2**30:g} GiB move"
        return Outcome(
            (Figure("memory", what, ours, "–", MOST, (above,), "MiB"),),
            (Timing("memory", ours, (told["seconds"],), self.size / MB, "MB"),),
        )


@contextmanager
def relay(stage: Stage, scale: Scale) -> Iterator[Memory]:
    """Make the sparse source, on disk."""
    with tempfile.TemporaryDirectory(prefix="dm-bench-", dir="/var/tmp") as folder:
        with (Path(folder) / "huge").open("xb") as file:
            file.truncate(scale.huge)
        try:
            yield Memory(stage, stage.distant.model_copy(update={"base_dir": folder}), scale.huge)
        finally:
            (stage.other / "huge").unlink(missing_ok=True)
