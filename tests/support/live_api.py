"""A real API over a real uvicorn on a free port, and the movers' side of its catalogue."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import UUID, uuid4

import requests
import uvicorn
from sqlalchemy import select

from api.app import create_app
from api.context import make_context
from datamanager.domain.states import TransferKind, Verified
from datamanager.errors import DataManagerError
from datamanager.machines import Machine, Machines, TransportKind
from datamanager.messaging.notifications import notify
from datamanager.settings import Settings
from datamanager.signing.signer import Signer
from datamanager.sources.network.egress_guard import EgressGuard, Resolve, system_resolve
from datamanager.transports.factory import Storages
from deployments.http_protocol import ProblemProtocol
from models.access.visibility import ALL
from models.core import leases
from models.objects.catalogue import Facts
from models.tables import Transfer
from models.transfers import outcomes, queue
from models.transfers.lookup import get_transfer
from models.transfers.queue import TransferLease
from tests.support.catalogue import kept
from tests.support.ports import free_port
from tests.support.tokens import TokenMaker, as_person

LEASE = timedelta(seconds=60)
START_TIMEOUT = 60.0
MOVER = "mover-of-the-test"
Judge = Callable[[Transfer], DataManagerError | None]


class _Server(uvicorn.Server):
    """Ends when it is told to: uvicorn itself looks ten times a second only."""

    async def main_loop(self) -> None:
        await self.on_tick(0)  # sets the headers of all answers
        while not self.should_exit:
            await asyncio.sleep(0.01)


class LiveApi:
    """An API served from a thread, with the local machines `here` and `there`, and `gone`, which can't be reached;
    `archives` are further local ones, that keep bundles, `further` any others. The catalogue at `catalogue_url` has its
    schema. `resolve` answers what a name server would. Without authentication, unless a setting says so; `tokens` makes
    tokens then.
    """

    def __init__(
        self,
        folder: Path,
        catalogue_url: str,
        *,
        archives: Sequence[str] = (),
        resolve: Resolve = system_resolve,
        further: Sequence[Machine] = (),
        signer: Signer | None = None,
        **settings: Any,
    ) -> None:
        self.folders = {"here": folder / "here", "there": folder / "there"}
        for path in self.folders.values():
            path.mkdir(parents=True)
        machines = {
            name: Machine(name=name, transport=TransportKind.LOCAL, base_dir=str(path))
            for name, path in self.folders.items()
        }
        for name in archives:
            machines[name] = Machine(name=name, transport=TransportKind.LOCAL, base_dir=str(folder), archive=True)
        machines["gone"] = Machine(
            name="gone",
            transport=TransportKind.SFTP,
            base_dir="/data",
            host="127.0.0.1",
            port=free_port(),
            username="nobody",
            identity_file=folder / "secret-key",
            connect_timeout=2,
        )
        machines |= {machine.name: machine for machine in further}
        self.settings = Settings(home=folder / "home", port=free_port(), **{"auth": "none", **settings})
        self.database = kept(catalogue_url)
        self.machines = Machines(machines)
        self.storages = Storages(self.machines, self.settings.home / "run", signer)
        self.posted = 0
        guard = EgressGuard(self.settings.download_allow, self.settings.download_deny, resolve=resolve)
        context = make_context(self.settings, self.machines, self.database, self.storages, self._count)
        self.context = replace(context, guard=guard)
        self.app = create_app(self.context)
        config = uvicorn.Config(
            self.app,
            http=ProblemProtocol,
            port=self.settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws="none",
        )
        self._server = _Server(config)
        self._thread = threading.Thread(target=self._server.run, name="live-api")
        self.url = self.settings.api_url
        self.tokens = TokenMaker(self.database, self.settings)

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the API did not start")
            time.sleep(0.01)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._server.should_exit = True
        self._thread.join(START_TIMEOUT)
        self.storages.close()
        self.database.close()

    def ask(self, method: str, path: str, **options: Any) -> requests.Response:
        """Send a request as a client does; `path` with its leading slash. `token` is who asks."""
        return requests.request(method, self.url + path, timeout=START_TIMEOUT, **as_person(options))

    def write(self, name: str, data: bytes = b"some bytes", machine: str = "here") -> Path:
        """Put a file on a machine."""
        path = self.folders[machine] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def register(self, name: str, data: bytes = b"some bytes", **fields: Any) -> str:
        """Put a file on `here` and register it; return its identifier."""
        self.write(name, data)
        directory, _, filename = name.rpartition("/")
        answer = self.ask(
            "PUT", "/DM/register", data={"machine": "here", "path": directory, "filename": filename, **fields}
        )
        assert answer.status_code == 201, answer.text
        return answer.text

    def status(self, task: str) -> dict[str, Any]:
        """Return a task's status."""
        answer = self.ask("GET", f"/DM/async/status/{task}")
        assert answer.status_code == 200, answer.text
        status: dict[str, Any] = answer.json()
        return status

    def mover_online(self) -> None:
        """Enter a mover that lives."""
        with self.database.write() as session:
            leases.hold_lease(session, f"{leases.MOVER_PREFIX}{MOVER}", MOVER, LEASE)

    def finish(self, task: str | UUID, error: DataManagerError | None = None) -> None:
        """Take a transfer, begin it and end it, as a mover does with the catalogue."""
        transfer = UUID(str(task))
        with self.database.write() as session:
            (hold,) = queue.take(session, MOVER, LEASE, 1, only=transfer)
        with self.database.write() as session:
            queue.begin(session, hold, uuid4())
        with self.database.write() as session:
            self._end(session, hold, error)
        notify(self.settings.home / "run", "api", f"ended:{transfer}")

    def _end(self, session: Any, hold: TransferLease, error: DataManagerError | None) -> None:
        row = get_transfer(session, hold.transfer, ALL)
        facts = Facts(10, "sha256:" + "0" * 64, Verified.SHA256)
        if error is not None:
            outcomes.fail(session, hold, error)
        elif row.kind == TransferKind.COPY.value:
            outcomes.complete_copy(session, hold, facts)
        elif row.kind == TransferKind.GETEXTERNAL.value:
            outcomes.complete_getexternal(session, hold, facts, "http://127.0.0.1/")
        elif row.kind == TransferKind.DELETE.value:
            outcomes.complete_delete(session, hold)
        else:
            outcomes.commit_move(session, hold, facts)
            outcomes.finish_move(session, hold)

    def _count(self) -> None:
        self.posted += 1


class Mover:
    """A thread that ends every queued transfer, with the error that `judge` finds for it, or well."""

    def __init__(self, api: LiveApi, judge: Judge = lambda _: None) -> None:
        self._api = api
        self._judge = judge
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mover-of-the-test")
        self.ended = 0

    def __enter__(self) -> Self:
        self._api.mover_online()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(START_TIMEOUT)

    def _run(self) -> None:
        while not self._stop.wait(0.02):
            with self._api.database.read() as session:
                queued = list(session.scalars(select(Transfer).where(Transfer.status == "QUEUED")))
            for row in queued:
                self._api.finish(row.id, self._judge(row))
                self.ended += 1
