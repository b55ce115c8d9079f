"""All that a transfer needs, as real processes of one host, and the means to break and mend each of them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from datamanager.errors import CatalogueUnavailable
from models.core.leases import movers_online
from models.database import Database
from tests.faults.disk import SmallDisk
from tests.faults.sshd import FarSshd
from tests.support.prefect import PrefectServer
from tests.support.process import Process
from tests.support.rabbitmq import RabbitMq
from tests.support.service import DataManagerService
from tests.support.site import Site, write_machines
from tests.support.web import Web

LEASE, HEARTBEAT = 3, 1
"""Seconds: short, so that what a dead mover left is soon another one's."""
STALL = 4
"""Seconds without a byte until a mover calls a connection dead."""
MENDED = 180.0
"""Seconds until a service that is not whole again fails the test."""
SMALL = 192 * 2**20
"""Bytes of the machine `scratch`."""
SOURCE, DESTINATION, SCRATCH = "archer2", "cirrus", "scratch"
"""Machines. The last one is the same host as the second, with a small disk."""


@dataclass(frozen=True)
class Parts:
    """The servers that a plant stands on."""

    prefect: PrefectServer
    rabbitmq: RabbitMq
    web: Web
    restart_database: Callable[[bool], None]
    """Stop the database's server (True: kill it) and start it again."""


class Plant:
    """A Data Manager with two movers, two SSH machines behind ways that can break, a small disk. Used as a context."""

    def __init__(self, home: Path, parts: Parts, database_url: str, catalogue_disk: SmallDisk | None = None) -> None:
        self.home = home
        self.catalogue_disk = catalogue_disk
        """Where the catalogue is, if it has a small disk of its own."""
        self.parts = parts
        self.database_url = database_url
        self.amqp_url = parts.rabbitmq.fresh_vhost()
        self.source = FarSshd(home / "sshd-source")
        self.destination = FarSshd(home / "sshd-destination")
        self.scratch = SmallDisk(home / "scratch", SMALL)
        self.database = Database(database_url)
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for part in (self.source, self.destination, self.source.way, self.destination.way, self.scratch):
                stack.enter_context(part)
            self.site = self._site()
            stack.enter_context(self.site.service)
            stack.callback(self.database.close)
            self.wait_whole()
            self._open = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._open.close()

    @property
    def service(self) -> DataManagerService:
        """API and movers."""
        return self.site.service

    @property
    def movers(self) -> list[Process]:
        """The movers' processes."""
        return self.service.movers

    def mend(self) -> None:
        """Bring everything back that a fault may have left broken; return when all of it works."""
        for process in self.service.processes:
            if not process.running:
                process.kill()  # what it left behind
                process.start()
        for disk in (self.scratch, self.catalogue_disk):
            if disk is not None:
                disk.free()
        self.wait_whole()

    def wait_whole(self) -> None:
        """Return when the API answers that it is ready and every mover is online. Raises: RuntimeError."""
        self.service.wait_ready(MENDED)
        deadline = time.monotonic() + MENDED
        while time.monotonic() < deadline:
            with contextlib.suppress(CatalogueUnavailable), self.database.read() as session:
                online = [name for name, prefect in movers_online(session).items() if prefect]
                pids = {str(mover.pid) for mover in self.movers if mover.running}
                if sum(re.split(r"[:-]", name)[-2] in pids for name in online) == len(self.movers):
                    return
            time.sleep(0.1)
        said = "\n".join(f"--- {mover.log.name}\n{mover.tail(3000)}" for mover in self.movers)
        raise RuntimeError(f"after {MENDED:g} s not every mover is online\n{said}")

    @contextmanager
    def movers_with(self, variables: Callable[[int], dict[str, str]]) -> Iterator[None]:
        """Run the movers with further environment variables (of each one's number) meanwhile."""
        before = [mover.env for mover in self.movers]
        try:
            for number, mover in enumerate(self.movers):
                mover.env = {**(before[number] or {}), **variables(number)}
            self._restart_movers()
            yield
        finally:
            for mover, env in zip(self.movers, before, strict=True):
                mover.env = env
            self._restart_movers()

    def logs(self) -> list[Path]:
        """Return the logs of all processes."""
        ours = [process.log for process in self.service.processes]
        parts = [self.parts.prefect.process.log, self.parts.rabbitmq.process.log]
        return [*ours, self.source.log, self.destination.log, *parts]

    def _restart_movers(self) -> None:
        for mover in self.movers:
            if mover.running:
                os.kill(mover.pid, signal.SIGTERM)
        for mover in self.movers:
            mover.stop()
            mover.start()
        self.wait_whole()

    def _site(self) -> Site:
        folders = {name: self.home / "data" / name for name in ("localhost", SOURCE, DESTINATION)}
        folders[SCRATCH] = self.scratch.path
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        machines = self.home / "machines.toml"
        servers = {SOURCE: self.source, DESTINATION: self.destination, SCRATCH: self.destination}
        # patience of seconds, where a user's is a minute: the faults must be over within minutes
        write_machines(machines, folders, dict(servers), connect_timeout=5, stall_timeout=STALL)
        env = {
            "DM_MACHINES": str(machines),
            "DM_PREFECT_API_URL": self.parts.prefect.api_url,
            "DM_DATABASE_URL": self.database_url,
            "DM_AMQP_URL": self.amqp_url,
            "DM_AUTH": "none",  # messages are asked for without tokens too
            "DM_DOWNLOAD_ALLOW": f"127.0.0.1:{self.parts.web.port}",
            "DM_LEASE": str(LEASE),
            "DM_HEARTBEAT": str(HEARTBEAT),
            "DM_MAX_ATTEMPTS": "50",  # a busy machine makes movers lose leases as short as these
        }
        return Site(DataManagerService(self.home / "dm", env, movers=2), folders)
