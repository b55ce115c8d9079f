"""A private Prefect server on loopback, started as `dm up`, compose.yaml and the systemd unit start it."""

from __future__ import annotations

import fcntl
import os
import shutil
import sqlite3
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, closing
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import requests

from tests.support.ports import free_port
from tests.support.process import Process, clean_environment

SERVER = "deployments.orchestrator.server"
"""The module that serves Prefect wherever our files start it."""
START_TIMEOUT = 300.0
"""Seconds until a server that is not healthy fails the test."""
TEMPLATE = Path(__file__).parents[2] / ".cache" / f"prefect-{version('prefect')}.db"
"""The SQLite database of a server that has just been started for the first time, which takes ten seconds of CPU."""


class PrefectServer:
    """One Prefect server; SQLite in `directory`, or the database of `database_url` (postgresql+asyncpg).

    It can be stopped or killed and started again; it keeps its port and its database.
    """

    def __init__(self, directory: Path, *, port: int | None = None, database_url: str | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = port or free_port()
        self.env = clean_environment(**prefect_environment(directory))
        self.env["DM_HOME"] = str(directory)
        self._elsewhere = database_url is not None
        if database_url is not None:
            self.env["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = database_url
        command = [sys.executable, "-m", SERVER, "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = Process(command, log=directory / "prefect.log", env=self.env, cwd=directory)

    @property
    def api_url(self) -> str:
        """What DM_PREFECT_API_URL and PREFECT_API_URL take."""
        return f"http://127.0.0.1:{self.port}/api"

    def start(self) -> None:
        """Start the server; return when it is healthy. The first one leaves its database to the others, which wait."""
        with ExitStack() as alone:
            if not (self._elsewhere or TEMPLATE.exists()):
                TEMPLATE.parent.mkdir(exist_ok=True)
                fcntl.flock(alone.enter_context(TEMPLATE.with_suffix(".lock").open("w")), fcntl.LOCK_EX)
            seeded = self._elsewhere or seed(self.directory)
            if seeded:
                alone.close()
            self.process.start()
            self.process.wait_until(lambda: answers(f"{self.api_url}/health"), START_TIMEOUT)
            if not seeded:
                keep_as_template(self.directory)

    def stop(self) -> None:
        """End the server in an orderly way. Idempotent."""
        self.process.stop()

    def kill(self) -> None:
        """Kill the server at once."""
        self.process.kill()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()


class PrefectApi:
    """The few calls of Prefect's REST API that tests need."""

    def __init__(self, url: str, auth: tuple[str, str] | None = None) -> None:
        self.url = url
        self.auth = auth

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Send a body, return the answer's."""
        answer = requests.post(f"{self.url}/{path}", json=body, auth=self.auth, timeout=120)
        assert answer.ok, answer.text
        return answer.json()

    def get(self, path: str) -> Any:
        """Return an answer's body."""
        answer = requests.get(f"{self.url}/{path}", auth=self.auth, timeout=120)
        assert answer.ok, answer.text
        return answer.json()

    def wait(self, run: str, patience: float = 120.0) -> dict[str, Any]:
        """Wait until a flow run has ended."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            found: dict[str, Any] = self.get(f"flow_runs/{run}")
            if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
                return found
            time.sleep(0.2)
        raise AssertionError(f"flow run {run} did not end: {found['state']}")


def seed(home: Path) -> bool:
    """Give a server with this DM_HOME the template as its database, unless it has one; say whether it has one now."""
    database = _database(home)
    if database.exists():
        return True
    if not TEMPLATE.exists():
        return False
    database.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(TEMPLATE, database)
    return True


def keep_as_template(home: Path) -> None:
    """Copy the database of a running server, which nobody has used yet, to the template."""
    TEMPLATE.parent.mkdir(exist_ok=True)
    copy = TEMPLATE.with_name(f"{TEMPLATE.name}.{os.getpid()}")
    with closing(sqlite3.connect(_database(home))) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    copy.replace(TEMPLATE)


def _database(home: Path) -> Path:
    return home / "prefect" / "prefect.db"


def prefect_environment(home: Path) -> dict[str, str]:
    """Return the settings that keep Prefect to itself: its own home, quiet, telling nobody."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        "PREFECT_CLI_COLORS": "false",
    }


def answers(url: str) -> bool:
    """Say whether a GET of a loopback URL ends with 200."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=10) as response:
            return int(response.status) == 200
    except (urllib.error.URLError, OSError):
        return False


def given_prefect() -> str | None:
    """Return DM_TEST_PREFECT_API_URL: a Prefect server to use instead of a private one."""
    return os.environ.get("DM_TEST_PREFECT_API_URL") or None
