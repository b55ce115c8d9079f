"""A process that relays one file and tells how much memory that took: `python -m benchmarks.moving`.

Reads an order as JSON (two machines and a folder for control sockets), writes what was measured as JSON.
"""

from __future__ import annotations

import contextlib
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.ours import Ours
from datamanager.domain.states import Route
from datamanager.machines import Machine, VerifyPolicy
from datamanager.transports.sftp.pool import SftpStorage

LOOK = 0.02
"""Seconds between two looks at the pools."""


def main() -> None:
    """Relay the file `huge`; print bytes resident when idle and at most, sessions in use at most, and seconds."""
    order = json.load(sys.stdin)
    source, target = (Machine.model_validate(order[end]) for end in ("source", "target"))
    with Ours([source, target], Path(order["control_dir"])) as engine:
        engine.connect()
        with contextlib.suppress(OSError):  # a kernel without it: the peak is that of the imports at least
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from now on (proc(5))
        idle, begin = resident("VmRSS"), time.perf_counter()
        with watching([engine.storage(machine) for machine in (source, target)]) as most:
            engine.copy((source, "huge"), (target, "huge"), VerifyPolicy.SIZE, Route.RELAY)
        seconds = time.perf_counter() - begin
        told = {"idle": idle, "peak": resident("VmHWM"), "sessions": most[0], "seconds": seconds}
    sys.stdout.write(json.dumps(told))


def resident(field: str) -> int:
    """Return this process's resident memory in bytes: now (VmRSS) or at most (VmHWM)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"the kernel does not tell {field}")


@contextmanager
def watching(storages: list[object]) -> Iterator[list[int]]:
    """Provide a list whose only item becomes the largest number of sessions that were in use at once."""
    most, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(LOOK):
            most[0] = max(most[0], sum(one.in_use for one in storages if isinstance(one, SftpStorage)))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


if __name__ == "__main__":
    main()
