"""One large file over a long path: a round trip of 20 ms, by the delay proxy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from benchmarks import programs
from benchmarks.figures.files import one_file
from benchmarks.figures.scale import Scale
from benchmarks.libraries import StockParamiko
from benchmarks.ours import Ours
from benchmarks.race import Claim, Contender, Race
from benchmarks.servers import Stage
from datamanager.machines import VerifyPolicy

OURS, OURS_SHA256, SCP, STOCK = "ours", "ours, sha256 at both ends", "scp, aes128-gcm", "paramiko"


@contextmanager
def put(stage: Stage, scale: Scale) -> Iterator[Race]:
    """Send a file."""
    here, machine = (stage.here, "file"), (stage.distant, "file")
    with (
        one_file(stage.near / "file", stage.far / "file", scale.size) as file,
        Ours([stage.here, stage.distant], stage.control) as engine,
        StockParamiko(stage.distant) as stock,
    ):
        there = programs.remote(stage.distant, file.target)
        contenders = [
            Contender(SCP, lambda: programs.scp(stage.distant, os.fspath(file.source), there)),
            Contender(OURS, lambda: engine.copy(here, machine, VerifyPolicy.SIZE), engine.connect),
            Contender(OURS_SHA256, lambda: engine.copy(here, machine, VerifyPolicy.SHA256), engine.connect),
            Contender(STOCK, lambda: stock.put(file.source, file.target), stock.connect),
        ]
        claims = [Claim("put, round trip 20 ms", OURS, SCP, 3.5)]
        yield Race("put-20ms", file.megabytes, "MB", contenders, claims, file.reset, file.check, baseline=SCP)


@contextmanager
def get(stage: Stage, scale: Scale) -> Iterator[Race]:
    """Fetch a file."""
    here, machine = (stage.here, "file"), (stage.distant, "file")
    with (
        one_file(stage.far / "file", stage.near / "file", scale.size) as file,
        Ours([stage.here, stage.distant], stage.control) as engine,
        StockParamiko(stage.distant) as stock,
    ):
        there = programs.remote(stage.distant, file.source)
        contenders = [
            Contender(SCP, lambda: programs.scp(stage.distant, there, os.fspath(file.target))),
            Contender(OURS, lambda: engine.copy(machine, here, VerifyPolicy.SIZE), engine.connect),
            Contender(OURS_SHA256, lambda: engine.copy(machine, here, VerifyPolicy.SHA256), engine.connect),
            Contender(STOCK, lambda: stock.get(file.source, file.target), stock.connect),
        ]
        claims = [Claim("get, round trip 20 ms", OURS, SCP, 4.0)]
        yield Race("get-20ms", file.megabytes, "MB", contenders, claims, file.reset, file.check, baseline=SCP)
