"""`dm mover`: one mover in the foreground until SIGTERM or Ctrl-C; a second one hurries.

`prefect worker start --type mover --pool data-manager` starts the same worker (deployments/mover/worker.py).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading

import structlog
from setproctitle import setproctitle

from datamanager.errors import DataManagerError
from datamanager.logs import configure_logging
from datamanager.settings import load_settings
from deployments.orchestrator.environment import prefect_environment, run_with

EXIT_GRACE = 5.0  # seconds

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
    parser.add_argument("--work-queue", action="append", help="take only what is in this queue; repeatable")
    queues: list[str] | None = parser.parse_args().work_queue
    configure_logging()
    from deployments.mover.worker import MoverWorker

    try:
        asyncio.run(MoverWorker(work_queues=queues).start(printer=lambda line: log.info("mover", says=line)))
    except DataManagerError as exc:
        sys.stderr.write(f"dm mover: {exc.detail}\n")
        return 1
    finally:
        _leave_soon()
    return 0


def _leave_soon() -> None:
    """End the process even if a thread is stuck in a system call that nothing can interrupt (a dead network disk)."""
    watchdog = threading.Timer(EXIT_GRACE, os._exit, args=(1,))
    watchdog.daemon = True
    watchdog.start()


if __name__ == "__main__":
    sys.exit(main())
