"""The mover of `dm up`: waits for Prefect, brings the deployments of prefect.yaml to it, then is a mover.

One process for both: importing Prefect's client and the flows costs seconds; here it happens once, beside the server's
start.
"""

from __future__ import annotations

import asyncio
import sys
import time

import requests
from setproctitle import setproctitle

from datamanager.errors import DataManagerError
from datamanager.settings import Settings, load_settings
from deployments.mover.__main__ import main as run_mover
from deployments.orchestrator.deploy import apply
from deployments.orchestrator.environment import prefect_environment, run_with

POLL = 0.1  # seconds


def main() -> int:
    """Prepare Prefect, then run a mover until SIGTERM; return the exit code."""
    setproctitle("dm mover")
    try:
        settings = load_settings()
        run_with(prefect_environment(settings), "deployments.local.up_mover", sys.argv[1:])
        import deployments.mover.worker  # noqa: F401 - imported while the server starts

        wait_for_prefect(settings)
        asyncio.run(apply())
    except DataManagerError as exc:
        sys.stderr.write(f"dm mover: {exc.detail}\n")
        return 1
    return run_mover()


def wait_for_prefect(settings: Settings) -> None:
    """Return when the Prefect server answers."""
    with requests.Session() as session:
        session.trust_env = False
        while True:
            try:
                if session.get(f"{settings.prefect_url}/health", timeout=5).ok:
                    return
            except requests.RequestException:
                pass
            time.sleep(POLL)


if __name__ == "__main__":
    sys.exit(main())
