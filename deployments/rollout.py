"""Wait for the Prefect server, then bring the deployments of prefect.yaml to it.

`dm up` starts this beside the server: importing the flows takes as long as the server's start.
"""

from __future__ import annotations

import asyncio
import sys
import time

import requests

from datamanager.errors import DataManagerError
from datamanager.settings import Settings, load_settings
from deployments.deploy import apply
from deployments.environment import prefect_environment, run_with

POLL = 0.1  # seconds


def main() -> int:
    """Wait and apply; return the exit code."""
    try:
        settings = load_settings()
        run_with(prefect_environment(settings), "deployments.rollout", sys.argv[1:])
        import deployments.flow_table  # noqa: F401 - what `apply` needs, imported while the server starts

        wait_for_prefect(settings)
        asyncio.run(apply())
    except DataManagerError as exc:
        sys.stderr.write(f"deployments: {exc.detail}\n")
        return 1
    return 0


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
