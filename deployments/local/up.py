"""`dm up`: the whole Data Manager in the foreground: Prefect server, API, one mover, under one supervisor.

Whatever needs long to start starts at once: the Prefect server first, the catalogue's migration meanwhile, then the
others beside it. They wait for each other where they must.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from setproctitle import setproctitle

from datamanager.errors import DataManagerError, SettingsError
from datamanager.machines import Machines
from datamanager.settings import TOKEN, Settings, load_settings
from deployments.local.prepare import OWN_MACHINE, check_ports, lock_home, make_home, provide_machines
from deployments.local.supervisor import Child, Supervisor
from deployments.orchestrator.environment import prefect_environment, server_environment

MOVER_GRACE = 25.0  # seconds beyond `stop_grace`: it hands its transfers back within 20
LOOK_WHILE_STARTING = 0.2  # seconds between two looks whether the service is ready
LOOK_AFTERWARDS = 60.0
SLOW = 15.0  # seconds after which a start that is not ready says what it waits for, each time again


def main() -> int:
    """Serve until Ctrl-C or SIGTERM; return the exit code."""
    begun = time.monotonic()
    setproctitle("dm up")
    umask = os.umask(0o077)  # the catalogue, logs and keys are its owner's alone; only the mover makes files of others
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
        with supervisor.interruptible(), waiting_for("the catalogue", begun):
            _prepare_catalogue(settings)
        environment = prefect_environment(settings)
        supervisor.start(_child("api", settings, environment, "deployments.api"))
        grace = settings.stop_grace.total_seconds() + MOVER_GRACE
        # one process prepares Prefect and is the mover: importing Prefect and the flows costs seconds
        supervisor.start(
            _child("mover", settings, environment, "deployments.mover", "--deploy", grace=grace, umask=umask)
        )
        supervisor.run(ReadinessCheck(settings, machines, supervisor, begun).look)
        _announce_stop(settings, supervisor.pid("mover"))
    except KeyboardInterrupt:
        _announce_stop(settings, None)
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
    due: float = SLOW

    def look(self) -> float:
        """Look; return seconds until the next look is wanted."""
        if self.done:
            return LOOK_AFTERWARDS
        missing = missing_parts(self.settings)
        seconds = time.monotonic() - self.begun
        if missing:
            if seconds > self.due:
                self.due = seconds + SLOW
                what = " and ".join(missing)
                say(f"not ready after {seconds:.0f} s; waiting for {what}; logs: {_logs(self.settings)}")
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
        if settings.auth == "required":
            say(f"  token       {settings.token_file}")
        say(f"  logs        {_logs(settings)}")
        say("Ctrl-C stops it.")


def missing_parts(settings: Settings) -> list[str]:
    """Ask the API whether the service can work; return what it lacks."""
    try:
        with contextlib.closing(_connection(settings)) as connection:
            connection.request("GET", "/DM/health/ready")
            answer = connection.getresponse()
            if answer.status == 200:
                return []
            checks = json.loads(answer.read())["checks"]
    except (OSError, http.client.HTTPException, ValueError, KeyError):
        return [f"the API at {settings.api_url}"]
    missing = [] if checks["database"] == "ok" else ["the catalogue"]
    if checks["prefect"] != "ok":
        missing.append(f"Prefect at {settings.prefect_url}")
    return missing or ["a mover"]


def _connection(settings: Settings) -> http.client.HTTPConnection:
    """Return a connection to the API on this host, whatever its address for clients is. Raises: OSError."""
    host, port = settings.own_host, settings.port
    if settings.tls_cert is None:
        return http.client.HTTPConnection(host, port, timeout=5)
    # it must have just this certificate, which need not name this host
    context = ssl.create_default_context(cafile=settings.tls_cert)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return http.client.HTTPSConnection(host, port, timeout=5, context=context)


@contextlib.contextmanager
def waiting_for(what: str, begun: float) -> Iterator[None]:
    """Say now and then what is waited for while the body works."""
    over = threading.Event()

    def tell() -> None:
        while not over.wait(SLOW):
            say(f"not ready after {time.monotonic() - begun:.0f} s; waiting for {what}")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()  # children are started by a process of one thread


def say(line: str) -> None:
    """Print a line for a person; a terminal that is gone stops nothing."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def _prepare_catalogue(settings: Settings) -> None:
    """Bring the schema up to date and check what the processes would refuse to start with. Raises: DataManagerError."""
    from deployments.admin_token import provide_admin_token
    from deployments.composition import open_runtime, tell_missing
    from models.database import Database
    from models.migrate import upgrade

    database = Database(settings.catalogue_url)
    try:
        upgrade(database)
        if settings.auth == "required":
            provide_admin_token(settings, database)
    finally:
        database.close()
    runtime = open_runtime(settings)
    tell_missing(runtime.machines, say)
    runtime.close()


def _announce_stop(settings: Settings, mover: int | None) -> None:
    """Say what a stop waits for, and how not to wait."""
    say("stopping … (Ctrl-C again: now)")
    if mover is None:
        return
    from models.database import Database
    from models.transfers.lookup import count_held

    database = Database(settings.catalogue_url)
    try:
        with database.read() as session:
            held = count_held(session, socket.gethostname(), mover)
    except DataManagerError:
        return  # the mover waits for it just as long
    finally:
        database.close()
    if held:
        transfers = "1 transfer is" if held == 1 else f"{held} transfers are"
        say(f"  {transfers} under way, and returned to the queue in {settings.stop_grace.total_seconds():g} s")


def _refuse(error: DataManagerError) -> int:
    sys.stderr.write(f"dm up: {error.detail}\n")
    return 2 if isinstance(error, SettingsError) else 1


def _logs(settings: Settings) -> str:
    return str(settings.home / "logs")


def _child(name: str, settings: Settings, environment: Mapping[str, str], *command: str, **options: Any) -> Child:
    log = None if options.get("once") else settings.home / f"logs/{name}.log"
    argv = [sys.executable, "-m", *command]
    inherited = {name: value for name, value in os.environ.items() if name != TOKEN}  # it is for clients
    return Child(name, argv, {**inherited, **environment}, log, **options)


if __name__ == "__main__":
    sys.exit(main())
