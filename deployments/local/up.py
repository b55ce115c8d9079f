"""`dm up`: the whole Data Manager in the foreground: Prefect server, API, one mover, under one supervisor.

Whatever needs long to start starts at once: the Prefect server first, the catalogue's migration meanwhile, then the
others beside it. They wait for each other where they must.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from setproctitle import setproctitle

from datamanager.errors import DataManagerError, SettingsError
from datamanager.machines import Machines
from datamanager.settings import Settings, load_settings
from deployments.local.prepare import OWN_MACHINE, check_ports, lock_home, make_home, provide_machines
from deployments.local.supervisor import Child, Supervisor
from deployments.orchestrator.environment import prefect_environment, server_environment

MOVER_GRACE = 25.0  # seconds beyond `stop_grace`: it hands its transfers back within 20
LOOK_WHILE_STARTING = 0.2  # seconds between two looks whether the service is ready
LOOK_AFTERWARDS = 60.0
SLOW = 15.0  # seconds after which a start that is not ready is mentioned


def main() -> int:
    """Serve until Ctrl-C or SIGTERM; return the exit code."""
    begun = time.monotonic()
    setproctitle("dm up")
    try:
        settings = load_settings()
        make_home(settings)
        held = lock_home(settings)
        machines = provide_machines(settings)
        check_ports(settings)
    except SettingsError as exc:
        return _refuse(exc)
    supervisor = Supervisor(say)
    try:
        if settings.prefect_api_url is None:
            supervisor.start(
                _child("prefect", settings, server_environment(settings), "deployments.orchestrator.server")
            )
        _prepare_catalogue(settings)
        environment = prefect_environment(settings)
        supervisor.start(_child("api", settings, environment, "deployments.api"))
        grace = settings.stop_grace.total_seconds() + MOVER_GRACE
        # one process prepares Prefect and is the mover: importing Prefect and the flows costs seconds
        supervisor.start(_child("mover", settings, environment, "deployments.mover", "--deploy", grace=grace))
        supervisor.run(ReadinessCheck(settings, machines, supervisor, begun).look)
        say("stopping …")
    except DataManagerError as exc:
        return _refuse(exc)
    finally:
        supervisor.stop()
        os.close(held)
    say("stopped")
    return 0


@dataclass
class ReadinessCheck:
    """Looks whether the service is ready, says so once, and starts the self-check then."""

    settings: Settings
    machines: Machines
    supervisor: Supervisor
    begun: float
    done: bool = False
    slow: bool = False

    def look(self) -> float:
        """Look; return seconds until the next look is wanted."""
        if self.done:
            return LOOK_AFTERWARDS
        seconds = time.monotonic() - self.begun
        if not is_ready(self.settings):
            if seconds > SLOW and not self.slow:
                self.slow = True
                say(f"not ready after {seconds:.0f} s; waiting for Prefect at {self.settings.prefect_url} and a mover")
                say(f"  logs        {_logs(self.settings)}")
            return LOOK_WHILE_STARTING
        self.done = True
        self._announce(seconds)
        if self.settings.machines is None and OWN_MACHINE in self.machines:
            environment = prefect_environment(self.settings)
            self.supervisor.start(
                _child("self-check", self.settings, environment, "deployments.local.selfcheck", once=True)
            )
        return LOOK_AFTERWARDS

    def _announce(self, seconds: float) -> None:
        settings = self.settings
        say(f"The Data Manager is ready ({seconds:.1f} s).")
        say(f"  API docs    {settings.api_url}/docs")
        say(f"  Prefect UI  {settings.prefect_ui}")
        say(f"  machines    {settings.machines_file} ({', '.join(sorted(self.machines))})")
        say(f"  logs        {_logs(settings)}")
        say("Ctrl-C stops it.")


def is_ready(settings: Settings) -> bool:
    """Ask the API whether the service can work."""
    where = urlsplit(settings.api_url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=5)
    try:
        connection.request("GET", "/DM/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def say(line: str) -> None:
    """Print a line for a person; a terminal that is gone stops nothing."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def _prepare_catalogue(settings: Settings) -> None:
    """Bring the schema up to date and check what the processes would refuse to start with. Raises: DataManagerError."""
    from deployments.composition import open_runtime, tell_missing
    from models.database import Database
    from models.migrate import upgrade

    database = Database(settings.catalogue_url)
    try:
        upgrade(database)
    finally:
        database.close()
    runtime = open_runtime(settings)
    tell_missing(runtime.machines, say)
    runtime.close()


def _refuse(error: DataManagerError) -> int:
    sys.stderr.write(f"dm up: {error.detail}\n")
    return 2 if isinstance(error, SettingsError) else 1


def _logs(settings: Settings) -> str:
    return str(settings.home / "logs")


def _child(name: str, settings: Settings, environment: Mapping[str, str], *command: str, **options: Any) -> Child:
    log = None if options.get("once") else settings.home / f"logs/{name}.log"
    argv = [sys.executable, "-m", *command]
    return Child(name, argv, {**os.environ, **environment}, log, **options)


if __name__ == "__main__":
    sys.exit(main())
