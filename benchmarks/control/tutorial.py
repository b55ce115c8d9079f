"""The contender of registering: FastAPI's tutorial application on SQLite, as `uvicorn` serves it by default."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.control.clients import request_bytes, seconds_for
from benchmarks.control.ours import described
from tests.support.ports import free_port
from tests.support.prefect import START_TIMEOUT, answers
from tests.support.process import Process, clean_environment


class Tutorial:
    """A running server with an empty table."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._port = free_port()
        command = [sys.executable, "-m", "uvicorn", "--port", str(self._port), "--no-access-log"]
        self._process = Process(
            [*command, "benchmarks.control.tutorial_app:app"],
            log=folder / "tutorial.log",
            env=clean_environment(ITEMS_DB=str(folder / "items.db")),
            cwd=Path(__file__).parents[2],
        )
        self._names = itertools.count()

    def __enter__(self) -> Self:
        self._process.start()
        try:
            self._process.wait_until(lambda: answers(f"http://127.0.0.1:{self._port}/health"), START_TIMEOUT)
        except BaseException:
            self._process.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._process.stop()

    def register_at_once(self, count: int) -> float:
        """Insert rows by many clients at once; return the seconds."""
        bodies = (described("here", "registered", f"{next(self._names)}") for _ in range(count))
        return seconds_for(self._port, [request_bytes("PUT", "/items", self._port, body) for body in bodies])
