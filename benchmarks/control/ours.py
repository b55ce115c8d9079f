"""Our contender: a Data Manager as `dm up` starts it, on SQLite, that copies files of 1 KiB on its own host."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID

from sqlalchemy import func, select

from benchmarks.control.clients import request_bytes, seconds_for
from benchmarks.race import WrongResult
from datamanager.domain.states import TransferStatus
from datamanager.errors import Cancelled
from models.database import Database
from models.tables import Transfer
from models.transfers import outcomes, queue
from tests.support.ports import free_port
from tests.support.service import DataManagerService

SIZE = 1024
"""Bytes of the file that is copied."""
NO_LIMIT = "10GB/s"
"""A bandwidth that no copy reaches."""
HERE, AWAY = "here", "away"
"""The machines: this host, and one that nobody can reach."""
PATIENCE = 600.0
"""Seconds after which work that has not ended fails the benchmark."""
LOOK_EVERY = 0.01  # seconds
LEASE = timedelta(seconds=60)


class Ours:
    """A running service with one object on HERE. `amqp_url`: with a broker."""

    def __init__(self, folder: Path, amqp_url: str | None = None) -> None:
        self._files = folder / "files"
        self._files.mkdir(parents=True)
        machines = folder / "machines.toml"
        machines.write_text(
            f"[machines.{HERE}]\n"
            'transport = "local"\n'
            f"base_dir = {json.dumps(os.fspath(self._files))}\n"
            f"[machines.{AWAY}]\n"
            'transport = "sftp"\n'
            'host = "127.0.0.1"\n'
            f"port = {free_port()}\n"
            f"base_dir = {json.dumps(os.fspath(folder))}\n"
        )
        env = {"DM_MACHINES": str(machines)}
        if amqp_url is not None:
            env["DM_AMQP_URL"] = amqp_url
        self.service = DataManagerService(folder / "dm", env, tree=True)
        self._names = itertools.count()

    def __enter__(self) -> Self:
        self.service.__enter__()
        self.client = self.service.client()
        self.database = Database(f"sqlite+pysqlite:///{self.service.home / 'catalogue.db'}")
        (self._files / "source").write_bytes(os.urandom(SIZE))
        self.object = self.client.register(HERE, "source")
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.client.close()
        self.database.close()
        self.service.stop()

    def copy(self) -> float:
        """Ask for a copy and wait for its end; return the seconds from the request on."""
        begin = time.perf_counter()
        task = self.submit()
        deadline = begin + PATIENCE
        while not (found := self.client.status(task)).status.ended:
            _require_before(deadline)
            time.sleep(LOOK_EVERY)
        took = time.perf_counter() - begin
        if found.error is not None:
            raise WrongResult(f"a copy ended in {found.error.code}: {found.error.detail}")
        return took

    def first_change(self) -> float:
        """Ask for a copy; return the seconds until its status is another one than QUEUED. Wait for its end then."""
        begin = time.perf_counter()
        task = self.submit()
        while self.client.status(task).status is TransferStatus.QUEUED:
            _require_before(begin + PATIENCE)
            time.sleep(LOOK_EVERY)
        took = time.perf_counter() - begin
        self.wait([task])
        return took

    def submit(self, machine: str = HERE, **fields: Any) -> UUID:
        """Ask for a copy of the object; return its task."""
        return self.client.start_copy(self.object, machine, f"copies/{next(self._names)}", **fields)

    def submit_at_once(self, count: int) -> float:
        """Ask for copies by many clients at once; return the seconds until all are accepted."""
        port, path = self.service.port, f"/DM/async/copy/{self.object}"
        bodies = ({"machine": HERE, "dest": f"copies/{next(self._names)}"} for _ in range(count))
        return seconds_for(port, [request_bytes("POST", path, port, body, self.service.token) for body in bodies])

    def register_at_once(self, count: int) -> float:
        """Register files, which are made before, by many clients at once; return the seconds."""
        folder = f"registered/{next(self._names)}"
        (self._files / folder).mkdir(parents=True)
        names = [f"{next(self._names)}" for _ in range(count)]
        for name in names:
            (self._files / folder / name).write_bytes(b"x")
        port, bodies = self.service.port, (described(HERE, folder, name) for name in names)
        return seconds_for(
            port, [request_bytes("PUT", "/DM/register", port, body, self.service.token) for body in bodies]
        )

    def run_queued(self, count: int, *, shared: bool = False) -> float:
        """Let copies queue, then run them all; return the seconds from when they may run to the end of the last one.

        Each has a run of its own, unless they may share runs: what has a bandwidth of its own does not.
        """
        fields = {} if shared else {"bandwidth": NO_LIMIT}
        self.client.drain_machine(HERE)
        tasks = [self.submit(**fields) for _ in range(count)]
        begin = time.perf_counter()
        self.client.undrain_machine(HERE)
        self.wait(tasks)
        return time.perf_counter() - begin

    def wait(self, tasks: Sequence[UUID]) -> None:
        """Wait until all have ended. Raises: WrongResult when one has not ended well."""
        deadline = time.perf_counter() + PATIENCE
        ours = Transfer.id.in_(tasks)
        while self._count(ours, Transfer.ended.is_(None)):
            _require_before(deadline)
            time.sleep(LOOK_EVERY * 5)
        if self._count(ours, Transfer.status == TransferStatus.COMPLETE.value) != len(tasks):
            raise WrongResult("a queued copy did not end well")

    def queue_for_away(self, count: int) -> None:
        """Let transfers queue for the machine that nobody can reach; return when it is known for that."""
        for _ in range(count):
            self.submit(AWAY)
        deadline = time.perf_counter() + PATIENCE
        while not any(one.name == AWAY and one.circuit for one in self.client.machines()) or self._count(
            Transfer.owner.is_not(None)
        ):
            _require_before(deadline)
            time.sleep(0.5)

    def forget_queued(self) -> None:
        """Take away all that waits."""
        with self.database.write() as session:
            for hold in queue.take(session, "benchmark", LEASE, 100_000):
                outcomes.fail(session, hold, Cancelled("the benchmark goes on"))

    def wait_idle(self) -> None:
        """Wait until the mover works at nothing."""
        deadline = time.perf_counter() + PATIENCE
        while self._count(Transfer.owner.is_not(None), Transfer.ended.is_(None)):
            _require_before(deadline)
            time.sleep(LOOK_EVERY * 5)

    def mover_memory(self) -> float:
        """Return the MiB that the mover has resident."""
        (pid,) = self.service.mover_pids()
        return resident(pid)

    def prefect_memory(self) -> float:
        """Return the MiB that the Prefect server has resident; another process may be at work at each call."""
        (pid,) = self.service.prefect_pids()
        return resident(pid)

    def _count(self, *where: object) -> int:
        with self.database.read() as session:
            return session.scalar(select(func.count()).select_from(Transfer).where(*where)) or 0  # type: ignore[arg-type]


def described(machine: str, path: str, name: str) -> dict[str, Any]:
    """Return what a client says of a file of one byte."""
    texts = {"description": "a file of the benchmark", "originator": "benchmark", "group": "benchmark"}
    return {"machine": machine, "path": path, "filename": name, "size": 1, "metadata": {"run": "1"}, **texts}


def _require_before(deadline: float) -> None:
    if time.perf_counter() > deadline:
        raise WrongResult(f"not done within {PATIENCE:g} s")


def resident(pid: int) -> float:
    """Return the MiB that a process has resident. Raises: WrongResult when it ended."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise WrongResult(f"process {pid} has no memory")
