"""The other contender: Prefect's own server on SQLite, and its process worker with a poll of 1 s."""

from __future__ import annotations

import itertools
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

from benchmarks.control.ours import PATIENCE, SIZE
from benchmarks.race import WrongResult
from tests.support.ports import free_port
from tests.support.prefect import START_TIMEOUT, answers, prefect_environment
from tests.support.process import Process, clean_environment

ROOT = Path(__file__).parents[2]
POOL = "stock"
AT_ONCE = 4
"""Runs at once: twice the cores that the figures are made on. More of them only wait for each other there."""
LOOK_EVERY = 0.05  # seconds
WAITING = ("SCHEDULED", "PENDING")
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Stock:
    """A running server and worker, with one deployment that copies a file of this host."""

    def __init__(self, folder: Path) -> None:
        self._files = folder / "files"
        self._files.mkdir(parents=True)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}/api"
        home = folder / "prefect"
        home.mkdir()
        env = clean_environment(**prefect_environment(home), PREFECT_API_URL=self.url, PREFECT_WORKER_QUERY_SECONDS="1")
        prefect = [sys.executable, "-m", "prefect"]
        server = [*prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        worker = [*prefect, "worker", "start", "--type", "process", "--pool", POOL, "--limit", str(AT_ONCE)]
        self._server = Process(server, log=folder / "server.log", env=env, cwd=home)
        self._worker = Process(worker, log=folder / "worker.log", env=env, cwd=home)
        self._names = itertools.count()
        self._session = requests.Session()
        self._session.trust_env = False

    def __enter__(self) -> Self:
        self._server.start()
        try:
            self._server.wait_until(lambda: answers(f"{self.url}/health"), START_TIMEOUT)
            self._ask("POST", "work_pools/", {"name": POOL, "type": "process"})
            self._worker.start()
            self._deployment = self._deploy()
            (self._files / "source").write_bytes(os.urandom(SIZE))
            self._worker.wait_until(self._worker_is_online, START_TIMEOUT)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._worker.stop()
        self._server.stop()
        self._session.close()

    def copy(self) -> float:
        """Ask for a run and wait for its end; return the seconds from the request on."""
        begin = time.perf_counter()
        run = self._submit()
        deadline = begin + PATIENCE
        while (state := self._ask("GET", f"flow_runs/{run}")["state_type"]) not in ENDED:
            _require_before(deadline)
            time.sleep(LOOK_EVERY)
        if state != "COMPLETED":
            raise WrongResult(f"a run of the stock worker ended {state}: {self._worker.tail(2000)}")
        return time.perf_counter() - begin

    def first_change(self) -> float:
        """Ask for a run; return the seconds until it is RUNNING, or has ended. Wait for its end then."""
        begin = time.perf_counter()
        run = self._submit()
        while self._ask("GET", f"flow_runs/{run}")["state_type"] in WAITING:
            _require_before(begin + PATIENCE)
            time.sleep(LOOK_EVERY)
        took = time.perf_counter() - begin
        self._wait([run])
        return took

    def run_queued(self, count: int) -> float:
        """Let runs queue, then run them all; return the seconds from when they may run to the end of the last one."""
        self._pause(True)
        runs = [self._submit() for _ in range(count)]
        begin = time.perf_counter()
        self._pause(False)
        self._wait(runs)
        return time.perf_counter() - begin

    def _wait(self, runs: Sequence[str]) -> None:
        deadline = time.perf_counter() + PATIENCE
        while self._count(runs, ENDED) < len(runs):
            _require_before(deadline)
            time.sleep(LOOK_EVERY * 4)
        if self._count(runs, ("COMPLETED",)) != len(runs):
            raise WrongResult(f"a run of the stock worker did not end well: {self._worker.tail(2000)}")

    def _count(self, runs: Sequence[str], states: Sequence[str]) -> int:
        wanted = {"id": {"any_": list(runs)}, "state": {"type": {"any_": list(states)}}}
        return int(self._ask("POST", "flow_runs/count", {"flow_runs": wanted}))

    def _submit(self) -> str:
        parameters = {"base_dir": str(self._files), "source": "source", "dest": f"copies/{next(self._names)}"}
        made = self._ask("POST", f"deployments/{self._deployment}/create_flow_run", {"parameters": parameters})
        return str(made["id"])

    def _deploy(self) -> str:
        made = self._ask(
            "POST",
            "deployments/",
            {
                "name": POOL,
                "flow_id": self._ask("POST", "flows/", {"name": "stock copy"})["id"],
                "entrypoint": "benchmarks/control/stock_flow.py:copy",
                "pull_steps": [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}],
                "work_pool_name": POOL,
            },
        )
        return str(made["id"])

    def _worker_is_online(self) -> bool:
        return any(
            worker["status"] == "ONLINE" for worker in self._ask("POST", f"work_pools/{POOL}/workers/filter", {})
        )

    def _pause(self, paused: bool) -> None:
        self._ask("PATCH", f"work_pools/{POOL}", {"is_paused": paused})

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        deadline = time.perf_counter() + PATIENCE
        while True:
            answer = self._session.request(method, f"{self.url}/{path}", json=body, timeout=60)
            if answer.status_code != 503:  # its database is locked: Prefect's own client tries again too
                break
            _require_before(deadline)
            time.sleep(LOOK_EVERY)
        answer.raise_for_status()
        return answer.json() if answer.content else None


def _require_before(deadline: float) -> None:
    if time.perf_counter() > deadline:
        raise WrongResult(f"not done within {PATIENCE:g} s")
