"""Items of a batch by chunks, of which two are under way at once: while the machines or the catalogue work for one,
another one's files are read. Memory holds the chunks that are under way, no more.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

from datamanager.engine.control import PartControl
from datamanager.errors import DataManagerError, LeaseLost, MachineUnavailable, ServiceError
from flows.batch.chunk import ItemsChunk
from flows.runtime.transfer_run import TransferRun

TOGETHER = 1700
"""Items of a chunk: so many that what is done once for each (directories looked at, transactions) is little. Of 10,000,
those of a step, each of two threads has three chunks."""
AT_ONCE = 2
"""Chunks under way at once: more of them wait for the interpreter's lock (measured on two cores)."""

log = logging.getLogger(__name__)
Report = Callable[[Sequence[Any], ItemsChunk], None]
"""Hears of a chunk that has ended: its rows, and what failed of them."""


def perform(run: TransferRun, first: int, last: int, report: Report) -> None:
    """Bring the items whose numbers are from `first` to `last`, and that are not done yet, to their ends. Blocks.

    Every item is tried, whatever becomes of other chunks, but when the whole is to stop. Raises: the first error of a
    chunk, when all chunks that were begun have ended; see `ItemsChunk.perform`.
    """
    run.control.unshield()  # each chunk says for itself whether users may stop it
    rows = _Rows(run, first, last)
    errors = list[BaseException]()
    with ThreadPoolExecutor(AT_ONCE, thread_name_prefix="chunk") as pool:
        for worker in [pool.submit(_work, run, rows, report, errors) for _ in range(rows.workers)]:
            worker.result()
    if errors:
        raise min(errors, key=_rank)


class _Rows:
    """The items that are still to be begun, dealt out by chunks. From any thread."""

    def __init__(self, run: TransferRun, first: int, last: int) -> None:
        self._run, self._after, self._last = run, first - 1, last
        self._lock = Lock()
        self.workers = min(AT_ONCE, -(-(last - first + 1) // TOGETHER))

    def next(self) -> list[Any]:
        """Return the next chunk's rows; none at the end, or when the whole is to stop."""
        with self._lock:
            if self._after >= self._last:
                return []
            found = self._run.items_to_do(self._after, TOGETHER)
            found = list(itertools.takewhile(lambda row: row.number <= self._last, found))
            self._after = found[-1].number if len(found) == TOGETHER else self._last
            return found

    def stop(self) -> None:
        """Begin no further chunk."""
        with self._lock:
            self._after = self._last


def _work(run: TransferRun, rows: _Rows, report: Report, errors: list[BaseException]) -> None:
    try:
        while some := rows.next():
            control = PartControl(run.control)
            chunk = ItemsChunk(run, some, control)
            try:
                chunk.perform()
            except Exception as error:  # noqa: BLE001 - raised by `perform`; the other chunks' items are tried too
                control.give_back(chunk.bytes_done)
                errors.append(error)
                if isinstance(error, ServiceError | LeaseLost) or control.stopping is not None:
                    rows.stop()
            finally:
                report(some, chunk)
    except BaseException as error:  # noqa: BLE001 - raised by `perform`
        rows.stop()
        errors.append(error)


def _rank(error: BaseException) -> int:
    """Return the rank by which one of several errors is raised, the lowest first: what ends the work, then what is
    tried again (a machine that is away before others), then what nobody foresaw."""
    if isinstance(error, ServiceError | LeaseLost):
        return 0
    return 1 if isinstance(error, MachineUnavailable) else 2 if isinstance(error, DataManagerError) else 3
