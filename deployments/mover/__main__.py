"""`dm mover`: one mover in the foreground until SIGTERM or Ctrl-C; a second one hurries.

`prefect worker start --type mover --pool data-manager` starts the same worker (deployments/mover/worker.py).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import threading
import time
from importlib import import_module

import requests
import structlog
from setproctitle import setproctitle

from datamanager.errors import DataManagerError
from datamanager.logs import configure_logging
from datamanager.settings import Settings, load_settings
from deployments.orchestrator.deploy import apply
from deployments.orchestrator.environment import prefect_environment, run_with

EXIT_GRACE = 5.0  # seconds
POLL = 0.1  # seconds between two looks whether Prefect answers

log = structlog.get_logger(__name__)


def main() -> int:
    """Run a mover; return the process's exit code."""
    setproctitle("dm mover")
    try:
        settings = load_settings()
        run_with(prefect_environment(settings), "deployments.mover", sys.argv[1:])
    except DataManagerError as exc:
        sys.stderr.write(f"dm mover: {exc.detail}\n")
        return 2
    parser = argparse.ArgumentParser(prog="dm mover")
    parser.add_argument("--work-queue", action="append", help="run only transfers of this queue; repeatable")
    parser.add_argument("--deploy", action="store_true", help="wait for Prefect and apply prefect.yaml first")
    given = parser.parse_args()
    configure_logging()
    import_module("deployments.mover.service")  # takes seconds; with --deploy while the Prefect server starts
    from deployments.composition import spare_what_stays
    from deployments.mover.worker import MoverWorker

    spare_what_stays()
    worker = MoverWorker(work_queues=given.work_queue)
    try:
        if given.deploy:
            _wait_for_prefect(settings)
            asyncio.run(apply())
        asyncio.run(worker.start(printer=lambda line: log.info("mover", says=line)))
    except DataManagerError as exc:
        sys.stderr.write(f"dm mover: {exc.detail}\n")
        return 1
    finally:
        _leave_soon()
    return 0


def _wait_for_prefect(settings: Settings) -> None:
    """Return when the Prefect server answers."""
    with requests.Session() as session:
        session.trust_env = False
        while True:
            with contextlib.suppress(requests.RequestException):
                if session.get(f"{settings.prefect_url}/health", timeout=5).ok:
                    return
            time.sleep(POLL)


def _leave_soon() -> None:
    """End the process even if a thread is stuck in a system call that nothing can interrupt (a dead network disk)."""
    watchdog = threading.Timer(EXIT_GRACE, os._exit, args=(1,))
    watchdog.daemon = True
    watchdog.start()


if __name__ == "__main__":
    sys.exit(main())
