"""`dm mover`: one mover in the foreground until SIGTERM or Ctrl-C. Also the module that Prefect loads the worker
type from.

The event loop runs in a thread of its own: Prefect's flow engine installs a SIGTERM handler for each run when it is
in the main
thread, which many runs in one process would fight over. Here the main thread waits for signals and passes them on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading

import structlog
from setproctitle import setproctitle

from datamanager.errors import DataManagerError
from datamanager.logs import configure_logging
from datamanager.settings import load_settings
from deployments.environment import prefect_environment, run_with

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
    configure_logging()
    from deployments.runtime import run_directory
    from deployments.worker import MoverWorker, worker_name

    worker = MoverWorker(name=worker_name(run_directory(settings)))
    loop = asyncio.new_event_loop()
    outcome: list[BaseException | None] = []
    done = threading.Event()

    def work() -> None:
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(worker.start(printer=lambda line: log.info("mover", says=line)))
            outcome.append(None)
        except BaseException as exc:  # noqa: BLE001 - handed to the main thread, which ends the process with it
            outcome.append(exc)
        finally:
            done.set()

    def stop(_signal: int, _frame: object) -> None:
        loop.call_soon_threadsafe(worker.stop)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    threading.Thread(target=work, name="mover", daemon=True).start()
    while not done.wait(0.5):
        continue  # wakes up so that signals are seen
    _leave_soon()
    error = outcome[0]
    if isinstance(error, DataManagerError):
        sys.stderr.write(f"dm mover: {error.detail}\n")
        return 1
    if error is not None:
        raise error
    return 0


def _leave_soon() -> None:
    """End the process even if a thread is stuck in a system call that nothing can interrupt (a dead network disk)."""
    watchdog = threading.Timer(EXIT_GRACE, os._exit, args=(1,))
    watchdog.daemon = True
    watchdog.start()


if __name__ == "__main__":
    sys.exit(main())
