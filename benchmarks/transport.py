"""Measure one file's put and get over SSH against scp, in turn, on loopback and memory.

Run as `python -m benchmarks.transport [MiB] [rounds]`. Machines are noisy: only the ratios inside one run carry over.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from datamanager.machines import Connection, Machine
from datamanager.transports.base import Storage
from datamanager.transports.factory import open_storage
from tests.support.sshd import PrivateSshd

_BLOCK = 1 << 20


def main() -> None:
    """Print MB/s of every contender and its ratio to scp with aes128-gcm (medians)."""
    size = int(sys.argv[1]) * _BLOCK if len(sys.argv) > 1 else 1024 * _BLOCK
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as folder,
        tempfile.TemporaryDirectory(prefix="dm-") as control,
        PrivateSshd(Path(folder) / "sshd") as server,
    ):
        here, there = Path(folder) / "here", Path(folder) / "there"
        with here.open("wb") as file:
            for _ in range(size // _BLOCK):
                file.write(os.urandom(_BLOCK))
        storages = {
            kind: open_storage(server.machine(kind, folder, connection=kind), control_dir=Path(control))
            for kind in (Connection.OPENSSH, Connection.PARAMIKO)
        }
        machine = server.machine("scp", folder)
        contenders: dict[str, Callable[[], None]] = {
            "scp put": lambda: _scp(machine, os.fspath(here), f"{machine.host}:{there}"),
            "scp get": lambda: _scp(machine, f"{machine.host}:{here}", os.fspath(there)),
        }
        for kind, storage in storages.items():
            contenders[f"{kind} put"] = lambda storage=storage: _put(storage, here, there)  # type: ignore[misc]
            contenders[f"{kind} get"] = lambda storage=storage: _get(storage, here, there)  # type: ignore[misc]
        taken: dict[str, list[float]] = {name: [] for name in contenders}
        for _ in range(rounds):
            for name, contender in contenders.items():
                there.unlink(missing_ok=True)
                start = time.perf_counter()
                contender()
                taken[name].append(time.perf_counter() - start)
                if there.stat().st_size != size:
                    raise SystemExit(f"{name}: not all bytes arrived")
        for storage in storages.values():
            storage.close()
        _report(taken, size)


def _report(taken: dict[str, list[float]], size: int) -> None:
    for name, seconds in taken.items():
        base = taken["scp " + name.split()[-1]]
        ratio = statistics.median(b / s for b, s in zip(base, seconds, strict=True))
        print(f"{name:14} {size / statistics.median(seconds) / 1e6:7.0f} MB/s   {ratio:5.2f} of scp")


def _put(storage: Storage, here: Path, there: Path) -> None:
    buffer = memoryview(bytearray(_BLOCK))
    with storage.session() as session, here.open("rb", buffering=0) as source:
        with session.create(os.fspath(there)) as writer:
            offset = 0
            while count := source.readinto(buffer):
                writer.write(offset, buffer[:count])
                offset += count


def _get(storage: Storage, here: Path, there: Path) -> None:
    with storage.session() as session, there.open("xb", buffering=0) as sink:
        with session.open_read(os.fspath(here)) as reader:
            for block in reader.blocks():
                sink.write(block)


def _scp(machine: Machine, source: str, target: str) -> None:
    """Run scp, with its connection: ours are pooled, which is part of what is compared."""
    options = ["-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={machine.known_hosts}", "-c", "aes128-gcm@openssh.com"]
    key = ["-i", os.fspath(machine.identity_file or ""), "-P", str(machine.port)]
    subprocess.run(["scp", "-q", "-F", "none", *options, *key, source, target], check=True)


if __name__ == "__main__":
    main()
