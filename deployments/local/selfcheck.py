"""The self-check after a first start: a sample file is registered, copied, compared and deleted through the REST API.

It uses the machine `localhost` that `dm up` made itself, below `.dm-selfcheck/`, under names that never come twice.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from uuid import UUID, uuid4

from datamanager.client import Client
from datamanager.errors import DataManagerError
from datamanager.machines import load_machines
from datamanager.settings import load_settings
from deployments.local.prepare import OWN_MACHINE

FOLDER = ".dm-selfcheck"
SIZE = 2**20  # bytes
PATIENCE = 60.0  # seconds


def main() -> int:
    """Check, and print one line."""
    try:
        settings = load_settings()
        base_dir = Path(load_machines(settings.machines_file)[OWN_MACHINE].base_dir)
        with Client(settings.api_url, ca_file=settings.ca_file) as client:
            line = check(client, base_dir)
    except (DataManagerError, OSError) as exc:
        detail = f"{exc.code}: {exc.detail}" if isinstance(exc, DataManagerError) else str(exc)
        sys.stdout.write(f"self-check failed: {detail}\n")
        return 1
    sys.stdout.write(f"{line}\n")
    return 0


def check(client: Client, base_dir: Path) -> str:
    """Register, copy, compare and delete a sample; return the line to print. Nothing is left behind, whatever happens.

    Raises: OSError, and what the client raises.
    """
    name = uuid4().hex[:8]
    sample, copy = f"self-check-{name}", f"self-check-{name}-copy"
    folder = base_dir / FOLDER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    data = os.urandom(SIZE)
    objects: list[UUID | str] = []
    try:
        (folder / sample).write_bytes(data)
        begun = time.monotonic()
        registered = client.register(
            OWN_MACHINE, sample, FOLDER, size=SIZE, description="self-check", originator="dm up", group="self-check"
        )
        objects.append(registered)
        task = client.wait(client.start_copy(registered, OWN_MACHINE, f"{FOLDER}/{copy}"), timeout=PATIENCE)
        seconds = time.monotonic() - begun
        objects.append(task.result or "")
        same = (folder / copy).read_bytes() == data
        while objects:
            client.delete(objects.pop())
        verdict = "passed" if same else "FAILED, the copy differs from the original"
        return f"self-check {verdict}: 1 MiB registered and copied in {seconds:.2f} s, see\n  {task.flow_run_url}"
    finally:
        for left in objects:
            with suppress(DataManagerError):  # the first error is the one to report
                client.delete(left)
        for file in (sample, copy):
            (folder / file).unlink(missing_ok=True)
        with suppress(OSError):  # another check may be at work
            folder.rmdir()


if __name__ == "__main__":
    sys.exit(main())
