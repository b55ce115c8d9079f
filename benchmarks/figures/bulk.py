"""One large file to a machine, and from it, on a short path."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from benchmarks import programs
from benchmarks.figures.files import OneFile, one_file
from benchmarks.figures.scale import Scale
from benchmarks.libraries import Asyncssh, StockParamiko, has_asyncssh
from benchmarks.ours import Ours
from benchmarks.race import Claim, Contender, Race
from benchmarks.servers import Stage
from datamanager.machines import Machine, VerifyPolicy

OURS, OURS_SHA256, OURS_PARAMIKO = "ours", "ours, sha256 at both ends", "ours over paramiko"
SCP, SCP_DEFAULT, STOCK = "scp, aes128-gcm", "scp", "paramiko"


@contextmanager
def put(stage: Stage, scale: Scale) -> Iterator[Race]:
    """Send a file."""
    with one_file(stage.near / "file", stage.far / "file", scale.size) as file, ExitStack() as stack:

        def ours(machine: Machine, policy: VerifyPolicy) -> Callable[[], None]:
            return lambda: engine.copy((stage.here, "file"), (machine, "file"), policy)

        there = programs.remote(stage.machine, file.target)
        engine = stack.enter_context(Ours([stage.here, stage.machine, stage.by_paramiko], stage.control))
        contenders = _contenders(stage, engine, ours, os.fspath(file.source), there)
        contenders += _others(stage, stack, file, sending=True)
        yield _race("put", file, contenders, sha256=1.0, stock=2.2, by_paramiko=1.3)


@contextmanager
def get(stage: Stage, scale: Scale) -> Iterator[Race]:
    """Fetch a file."""
    with one_file(stage.far / "file", stage.near / "file", scale.size) as file, ExitStack() as stack:

        def ours(machine: Machine, policy: VerifyPolicy) -> Callable[[], None]:
            return lambda: engine.copy((machine, "file"), (stage.here, "file"), policy)

        there = programs.remote(stage.machine, file.source)
        engine = stack.enter_context(Ours([stage.here, stage.machine, stage.by_paramiko], stage.control))
        contenders = _contenders(stage, engine, ours, there, os.fspath(file.target))
        contenders += _others(stage, stack, file, sending=False)
        yield _race("get", file, contenders, sha256=0.9, stock=3.5, by_paramiko=1.6)


def _contenders(
    stage: Stage,
    engine: Ours,
    ours: Callable[[Machine, VerifyPolicy], Callable[[], None]],
    source: str,
    target: str,
) -> list[Contender]:
    machine = stage.machine
    found = [
        Contender(SCP, lambda: programs.scp(machine, source, target)),
        Contender(OURS, ours(machine, VerifyPolicy.SIZE), engine.connect),
        Contender(SCP_DEFAULT, lambda: programs.scp(machine, source, target, cipher=None)),
        Contender(OURS_SHA256, ours(machine, VerifyPolicy.SHA256), engine.connect),
        Contender(OURS_PARAMIKO, ours(stage.by_paramiko, VerifyPolicy.SIZE), engine.connect),
    ]
    if programs.installed("rsync"):
        found.append(Contender("rsync -W, aes128-gcm", lambda: programs.rsync(machine, source, target)))
    return found


def _others(stage: Stage, stack: ExitStack, file: OneFile, *, sending: bool) -> list[Contender]:
    machine = stage.machine
    stock = stack.enter_context(StockParamiko(machine))
    source, target = file.source, file.target
    found = [
        Contender(STOCK, lambda: stock.put(source, target) if sending else stock.get(source, target), stock.connect)
    ]
    if has_asyncssh():
        other = stack.enter_context(Asyncssh(machine))
        found.append(
            Contender(
                "asyncssh, aes128-gcm",
                lambda: other.put(source, target) if sending else other.get(source, target),
                other.connect,
            )
        )
    if programs.installed("rclone"):
        ends = (f"{source}", f":sftp:{target}") if sending else (f":sftp:{source}", f"{target}")
        found.append(Contender("rclone", lambda: programs.rclone(machine, "copyto", *ends)))
    return found


def _race(
    group: str, file: OneFile, contenders: list[Contender], *, sha256: float, stock: float, by_paramiko: float
) -> Race:
    claims = [
        Claim(f"{group}, verify off", OURS, SCP, 1.0),
        Claim(f"{group}, sha256 verified end to end", OURS_SHA256, SCP_DEFAULT, sha256),
        Claim(f"{group}, verify off", OURS, STOCK, stock),
        Claim(f"{group}, over paramiko's transport", OURS_PARAMIKO, STOCK, by_paramiko),
    ]
    return Race(group, file.megabytes, "MB", contenders, claims, file.reset, file.check, baseline=SCP)
