"""The whole Data Manager as real processes, as a user starts it."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import requests
from prefect.settings import PREFECT_API_URL, temporary_settings

from datamanager.client import Client
from datamanager.settings import TOKEN_FILE, Settings
from deployments.admin_token import provide_admin_token
from deployments.orchestrator.deploy import apply
from models import migrate
from models.database import Database
from tests.support.ports import free_port
from tests.support.prefect import answers, prefect_environment
from tests.support.process import Process, clean_environment, signal_each

START_TIMEOUT = 300.0
"""Seconds until a service that is not ready fails the test."""
STOP_TIMEOUT = 60.0
"""Seconds in which a service that is told to stop must have ended its children."""
MOVER = ("deployments.mover", "dm mover")
"""How a mover's command line looks; the second is the name that it gives itself."""
API = ("deployments.api",)
PREFECT = ("deployments.orchestrator.server",)
PREPARED = ("DM_HOME", "DM_DATABASE_URL", "DM_PREFECT_API_URL", "DM_AUTH")
"""What the preparation of a service needs to know."""


C = TypeVar("C", bound=Client)


class DataManagerService:
    """One Data Manager below `home`, on free ports.

    With `tree` it is `python -m deployments.local.up`: the embedded Prefect server, API and one mover under a
    supervisor. Without, API and `movers` movers are processes of their own, and `env` must say DM_PREFECT_API_URL.
    `env` are DM_* settings. Requests need a token, unless DM_AUTH says otherwise: `token`, of which `client` knows. It
    can be stopped and started again; it keeps its ports and its home.
    """

    def __init__(self, home: Path, env: Mapping[str, str], *, tree: bool = False, movers: int = 1) -> None:
        home.mkdir(parents=True, exist_ok=True)
        self.home = home
        self.port = free_port()
        self.tree = tree
        ports = {"DM_PORT": str(self.port)}
        if tree and "DM_PREFECT_API_URL" not in env:
            ports["DM_PREFECT_PORT"] = str(free_port())
        settings = {"DM_HOME": str(home), **ports, **env}
        self.env = clean_environment(**prefect_environment(home / "prefect")) | settings
        if tree:
            self.supervisor = self._process("local.up", "up")
        else:
            self.api = self._process("api")
            self.movers = [self._process("mover", f"mover{number}") for number in range(1, movers + 1)]

    @property
    def url(self) -> str:
        """Where the API answers, without `/DM`."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def token(self) -> str | None:
        """The token that permits everything; None where authentication is off."""
        if self.env.get("DM_AUTH") == "none":
            return None
        return (self.home / TOKEN_FILE).read_text().strip()

    def client(self) -> Client:
        """Return a client that may do everything."""
        return self.client_of(Client)

    def client_of(self, kind: type[C]) -> C:
        """Return a client of this kind that may do everything."""
        return kind(self.url, token=self.token)

    @property
    def processes(self) -> list[Process]:
        """The processes that this class started itself."""
        return [self.supervisor] if self.tree else [self.api, *self.movers]

    def start(self) -> None:
        """Prepare the database and the deployments, start everything; return when the service is ready."""
        if not self.tree:
            self._prepare()
        for process in self.processes:
            process.start()
        self.wait_ready()

    def start_without_movers(self) -> None:
        """Prepare the database and the deployments, start the API (not of a tree); return when it answers."""
        self._prepare()
        self.api.start()
        self.api.wait_until(lambda: answers(f"{self.url}/DM/health/live"), START_TIMEOUT)

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until GET /DM/health/ready answers 200. Raises: RuntimeError with what the processes printed."""
        try:
            self.processes[0].wait_until(lambda: answers(f"{self.url}/DM/health/ready"), timeout)
        except RuntimeError as exc:
            logs = "\n".join(f"--- {process.log.name}\n{process.tail(3000)}" for process in self.processes[1:])
            raise RuntimeError(f"{exc}\n{logs}") from exc

    def stop(self) -> None:
        """Tell every process to stop and wait for its end. Idempotent."""
        for process in reversed(self.processes):
            process.stop(timeout=STOP_TIMEOUT)

    def interrupt(self) -> int | None:
        """Send what Ctrl-C sends, to every process of the tree; return the supervisor's exit status.

        Raises: AssertionError if a child outlives it.
        """
        session = self.supervisor.pid
        signal_each(self.supervisor.members(), signal.SIGINT)
        deadline = time.monotonic() + STOP_TIMEOUT
        while self.supervisor.running and time.monotonic() < deadline:
            time.sleep(0.05)
        status, left = self.supervisor.returncode, self.supervisor.members()
        self.supervisor.kill()
        assert not left, f"processes of session {session} outlived the supervisor: {left}"
        return status

    def kill(self) -> None:
        """Kill everything at once, as a power cut does. Idempotent."""
        for process in self.processes:
            process.kill()

    def api_pids(self) -> list[int]:
        """Return the pids of the API's processes."""
        return self._pids(API)

    def mover_pids(self) -> list[int]:
        """Return the pids of the processes that take or move work."""
        return self._pids(MOVER)

    def prefect_pids(self) -> list[int]:
        """Return the pids of the Prefect server that `dm up` started; none while it is started again."""
        return self._pids(PREFECT)

    def holder(self, owner: str) -> Process:
        """Return the mover that has this name on leases: it ends with `:pid-token`. Raises: LookupError."""
        found = re.search(r":(\d+)-[0-9a-f]+$", owner)
        for mover in self.movers:
            if found is not None and mover.running and mover.pid == int(found[1]):
                return mover
        raise LookupError(f"no mover of ours is {owner!r}")

    def kill_api(self) -> None:
        """Kill the API at once; a tree's supervisor starts it again, else `start_api` does."""
        self._kill(API)

    def kill_mover(self) -> None:
        """Kill every mover at once; a tree's supervisor starts it again, else `start_movers` does."""
        self._kill(MOVER)

    def start_api(self) -> None:
        """Start the API again after `kill_api` (not of a tree); return when the service is ready."""
        self.api.kill()
        self.api.start()
        self.wait_ready()

    def start_movers(self) -> None:
        """Start every mover that does not run (not of a tree)."""
        for process in self.movers:
            if not process.running:
                process.kill()
                process.start()

    def use_movers(self, count: int = 1, **env: str) -> None:
        """Let `count` movers with these settings too take the place of the movers (not of a tree); none runs yet."""
        for mover in self.movers:
            mover.kill()
        self.movers = [self._process("mover", f"mover{number}") for number in range(1, count + 1)]
        for mover in self.movers:
            mover.env = self.env | env

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Run the movers meanwhile, beside the API (not of a tree), which runs already."""
        self.start_movers()
        try:
            self.wait_movers()
            yield
        except BaseException:
            for mover in self.movers:
                mover.kill()
            raise
        for mover in self.movers:
            mover.stop(timeout=STOP_TIMEOUT)

    def wait_movers(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until the movers that run are online, and no others: neither one that was stopped, nor a killed one."""

        def online() -> bool:
            names = requests.get(f"{self.url}/DM/health/ready", timeout=timeout).json()["checks"]["movers"]
            pids = [mover.members() for mover in self.movers if mover.running]
            found = {int(re.split("[:-]", name)[-2]) for name in names}
            return len(found) == len(pids) and all(found.intersection(family) for family in pids)

        self.movers[0].wait_until(online, timeout)

    def deploy(self) -> None:
        """Bring Prefect's work pool, deployments and automation up to date."""
        self.run("orchestrator.deploy")

    def run(self, entry: str, *arguments: str) -> str:
        """Run an entry point of the application to its end, as `dm` does; return what it printed.

        Raises: RuntimeError with its output when it fails.
        """
        command = [sys.executable, "-m", f"deployments.{entry}", *arguments]
        done = subprocess.run(
            command, env=self.env, cwd=self.home, stdin=subprocess.DEVNULL, capture_output=True, timeout=START_TIMEOUT
        )
        if done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}:\n{(done.stdout + done.stderr).decode()}")
        return done.stdout.decode()

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def _prepare(self) -> None:
        """Do what `dm db upgrade` and `dm deploy` do, without their processes (which have tests of their own)."""
        known = {name.removeprefix("DM_").lower(): self.env[name] for name in PREPARED if name in self.env}
        settings = Settings.model_validate(known)
        database = Database(settings.catalogue_url)
        try:
            migrate.upgrade(database)
            if settings.auth == "required":
                provide_admin_token(settings, database)
        finally:
            database.close()
        with temporary_settings({PREFECT_API_URL: settings.prefect_url}):
            asyncio.run(apply())

    def _process(self, entry: str, name: str | None = None) -> Process:
        command = [sys.executable, "-m", f"deployments.{entry}"]
        return Process(command, log=self.home / f"{name or entry}.log", env=self.env, cwd=self.home)

    def _pids(self, words: Sequence[str]) -> list[int]:
        return [pid for process in self.processes if process.running for pid in process.members(*words)]

    def _kill(self, words: Sequence[str]) -> None:
        pids = self._pids(words)
        if not pids:
            raise RuntimeError(f"no process with {words} in its command line")
        signal_each(pids, signal.SIGKILL)
        deadline = time.monotonic() + STOP_TIMEOUT
        # a killed process is not gone at once: its command line is, before it can be waited for
        while time.monotonic() < deadline and (
            set(pids) & set(self._pids(words)) or any(p.running and p.pid in pids for p in self.processes)
        ):
            time.sleep(0.01)
