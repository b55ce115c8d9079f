"""Many downloads at once in a process of its own, so that only they are counted; told and answered in JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.ours import Ours
from datamanager.machines import Machine, VerifyPolicy


def main() -> None:
    """Fetch one URL `count` times at once, each to a file of its own."""
    order = json.load(sys.stdin)
    machine = Machine.model_validate(order["target"])
    with Ours([machine], Path(order["control_dir"])) as engine:
        engine.connect()
        idle = _resident()
        began = time.monotonic()

        def fetch(number: int) -> None:
            there = (machine, f"many-{number}")
            engine.fetch(order["url"], there, VerifyPolicy.SHA256, Path(order["ca_file"]))

        with ThreadPoolExecutor(order["count"]) as pool:
            list(pool.map(fetch, range(order["count"])))
        seconds = time.monotonic() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for number in range(order["count"]):
        (Path(machine.base_dir) / f"many-{number}").unlink()
    json.dump({"idle": idle, "peak": peak, "seconds": seconds}, sys.stdout)


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


if __name__ == "__main__":
    main()
