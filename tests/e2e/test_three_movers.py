"""Three movers, as on three hosts: some transfers of every kind are shared by all, although one mover is killed in the
middle and another one is told to stop. One PostgreSQL, one RabbitMQ, one Prefect server on PostgreSQL, one API.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import func, select

from models.database import Database
from models.tables import Claim, DataObject, Transfer
from tests.support.hearing import Ear, misheard
from tests.support.postgres import Databases
from tests.support.prefect import PrefectApi, PrefectServer, prefect_environment
from tests.support.process import Process
from tests.support.rabbitmq import RabbitMq
from tests.support.site import Site, allowed, eventually, make_site, some_bytes
from tests.support.sshd import PrivateSshd
from tests.support.web import Web

COPIES, MOVES, DOWNLOADS, DELETES, ITEMS = 70, 40, 40, 20, 60
SIZES = [0, 1, 1000, 50_000, 300_000, 8_000_000]
PATIENCE = 900.0
"""Seconds until what has not come about fails the test."""

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("three movers")]  # with a site and a Prefect server of its own


@dataclass
class Asked:
    """What was asked for, and which files there must be at the end: machine and path → sha256."""

    site: Site
    web: Web
    tasks: list[str] = field(default_factory=list)
    files: dict[tuple[str, str], str] = field(default_factory=dict)

    def copy(self, number: int) -> None:
        """Ask for a copy, of which both ends must be there."""
        data, path = self._data(number), f"copied/{number}.bin"
        uuid = self.site.register("archer2", path, data)
        self._ask("POST", f"async/copy/{uuid}", {"machine": "cirrus", "dest": path})
        self._expect(data, ("archer2", path), ("cirrus", path))

    def move(self, number: int) -> None:
        """Ask for a move, the other way."""
        data, path = self._data(number), f"moved/{number}.bin"
        uuid = self.site.register("cirrus", path, data)
        self._ask("POST", f"async/move/{uuid}", {"machine": "archer2", "dest": path})
        self._expect(data, ("archer2", path))

    def download(self, number: int) -> None:
        """Ask for a file of the web."""
        data, name = self._data(number), f"{number}.bin"
        url = self.web.put(f"three/{name}", data)
        fields = {"machine": "cirrus", "path": "fetched", "filename": name, "url": url, "protocol": "http"}
        self._ask("PUT", "async/getexternal", fields)
        self._expect(data, ("cirrus", f"fetched/{name}"))

    def delete(self, number: int) -> None:
        """Ask for a file's end."""
        uuid = self.site.register("archer2", f"doomed/{number}.bin", self._data(number))
        self._ask("DELETE", f"delete/{uuid}", {}, Prefer="respond-async")

    def batch(self) -> None:
        """Ask for the copy of a directory as one task."""
        for number in range(ITEMS):
            data, path = self._data(number), f"tree/{number % 4}/{number}.bin"
            self.site.write("archer2", path, data)
            self._expect(data, ("archer2", path), ("cirrus", path))
        answer = self.site.ask("POST", "register/tree", json={"machine": "archer2", "path": "tree", "group": "fire"})
        assert answer.status_code == 201, answer.text
        body = {"directory": {"machine": "archer2", "path": "tree"}, "machine": "cirrus", "dest": "tree"}
        answer = self.site.ask("POST", "async/copy", json=body)
        assert answer.status_code == 200, answer.text
        self.tasks.append(answer.text)

    def all_of_it(self) -> None:
        """Ask for everything, in no order, while the machines are drained: nothing begins until all is asked for."""
        self._drained("drain")
        kinds = [(self.copy, COPIES), (self.move, MOVES), (self.download, DOWNLOADS), (self.delete, DELETES)]
        requests: list[Callable[[], None]] = [self.batch]
        requests += [partial(ask, number) for ask, count in kinds for number in range(count)]
        random.Random(1).shuffle(requests)
        for request in requests:
            request()
        self._drained("undrain")

    def _drained(self, what: str) -> None:
        for machine in ("archer2", "cirrus"):
            answer = self.site.ask("POST", f"machines/{machine}/{what}")
            assert answer.status_code == 200, answer.text

    def _ask(self, method: str, path: str, fields: dict[str, str], **headers: str) -> None:
        answer = self.site.ask(method, path, data=fields, headers=headers)
        assert answer.status_code in (200, 202), answer.text
        self.tasks.append(answer.text)

    def _expect(self, data: bytes, *places: tuple[str, str]) -> None:
        self.files |= dict.fromkeys(places, hashlib.sha256(data).hexdigest())

    @staticmethod
    def _data(number: int) -> bytes:
        return some_bytes(SIZES[number % len(SIZES)])


class Queue:
    """What the catalogue says of the transfers."""

    def __init__(self, database: Database) -> None:
        self.database = database

    def ended(self) -> int:
        """Count the transfers that have ended."""
        with self.database.read() as session:
            return session.scalar(select(func.count()).where(Transfer.ended.is_not(None))) or 0

    def holders(self) -> set[str]:
        """Return the movers that hold transfers now."""
        with self.database.read() as session:
            return {owner for owner in session.scalars(select(Transfer.owner).distinct()) if owner is not None}

    def rows(self) -> list[Transfer]:
        """Return all transfers."""
        with self.database.read() as session:
            return list(session.scalars(select(Transfer)))

    def active(self) -> Counter[tuple[str, str]]:
        """Count the ACTIVE objects of each place."""
        query = select(DataObject.machine, DataObject.place).where(DataObject.status == "ACTIVE")
        with self.database.read() as session:
            return Counter((machine, place) for machine, place in session.execute(query))

    def claims(self) -> int:
        """Count the claims that transfers hold."""
        with self.database.read() as session:
            return session.scalar(select(func.count()).where(Claim.transfer_id.is_not(None))) or 0


@pytest.fixture
def prefect(tmp_path: Path, postgres: Databases) -> Iterator[PrefectServer]:
    """A Prefect server on PostgreSQL."""
    url = postgres.url().replace("postgresql+psycopg:", "postgresql+asyncpg:")
    with PrefectServer(tmp_path / "prefect", database_url=url) as server:
        yield server


@pytest.fixture
def site(
    tmp_path: Path,
    postgres: Databases,
    rabbitmq: RabbitMq,
    prefect: PrefectServer,
    sshd_pair: tuple[PrivateSshd, PrivateSshd],
    web: Web,
) -> Iterator[Site]:
    """One API and three movers, each with a DM_HOME of its own and nothing shared but addresses."""
    env = {
        "DM_PREFECT_API_URL": prefect.api_url,
        "DM_DATABASE_URL": postgres.url(),
        "DM_AMQP_URL": rabbitmq.fresh_vhost(),
        "DM_DOWNLOAD_ALLOW": allowed(web),
        "DM_LEASE": "6",
        "DM_HEARTBEAT": "1",
        "DM_CONCURRENCY": "4",
    }
    made = make_site(tmp_path, env, sshd_pair, movers=3)
    service = made.service
    for number, mover in enumerate(service.movers, 1):
        host = tmp_path / f"host{number}"
        host.mkdir()
        mover.env = service.env | {"DM_HOME": str(host)} | prefect_environment(host / "prefect")
        mover.cwd, mover.log = host, host / "mover.log"
    with service:
        yield made


@pytest.fixture
def queue(site: Site) -> Iterator[Queue]:
    """The catalogue of the site."""
    database = Database(site.service.env["DM_DATABASE_URL"])
    yield Queue(database)
    database.close()


@pytest.mark.timeout(1800)
def test_three_movers_share_the_work_and_lose_nothing(
    site: Site, queue: Queue, prefect: PrefectServer, web: Web
) -> None:
    ear = Ear(site.service.env["DM_AMQP_URL"])
    asked = Asked(site, web)
    asked.all_of_it()
    shared_by = watch(queue, until=lambda seen: len(seen) == 3)
    first, second, third = (site.service.holder(owner) for owner in sorted(shared_by))
    lose(queue, first, signal.SIGKILL, shared_by)
    watch(queue, until=lambda _: queue.ended() > len(asked.tasks) / 2)
    lose(queue, second, signal.SIGTERM, shared_by)
    assert second.returncode == 0, second.tail()
    assert owner_of(second, shared_by) not in queue.holders(), "a mover that was told to stop leaves nothing held"
    assert queue.ended() < len(asked.tasks), "both were to leave in the middle"
    last = owner_of(third, shared_by)  # what the killed one held is free when its lease is over
    eventually(lambda: queue.holders() <= {last}, "only the third holds transfers", PATIENCE)
    ends = {task: site.wait(task, PATIENCE) for task in asked.tasks}
    assert {task: end for task, end in ends.items() if end["status"] != "COMPLETE"} == {}
    eventually(lambda: not site.leftovers(), "no partial file lies about", PATIENCE)
    assert files(site) == asked.files
    assert queue.active() == Counter(list(asked.files))
    assert queue.claims() == 0
    rows = queue.rows()
    assert {row.id for row in rows} == {UUID(task) for task in asked.tasks}
    for row in rows:
        heard = ear.wait_for(str(row.id), row.sequence, PATIENCE)
        assert misheard(heard, row.sequence) == []
        assert max(heard, key=lambda event: event.sequence).type == "dm.transfer.complete"
    api = PrefectApi(prefect.api_url)
    alone = [row for row in rows if row.shared_run is None]
    assert len(alone) < len(rows), "small files that wait share runs"
    for row in alone:
        what = f"the run of {row.kind} {row.id} is COMPLETED"
        eventually(partial(has_ended, api, row.flow_run_id, "COMPLETED"), what, PATIENCE)
    for run in {row.flow_run_id for row in rows if row.shared_run is not None}:  # CANCELLED: its mover is gone
        eventually(partial(has_ended, api, run, "COMPLETED", "CANCELLED"), f"shared run {run} has ended", PATIENCE)
    others = {"flows": {"name": {"any_": ["audit", "sweep", "retention", "shared"]}}}
    assert api.post("flow_runs/count", {}) - api.post("flow_runs/count", others) == len(alone)  # none has two


def watch(queue: Queue, until: Callable[[set[str]], bool]) -> set[str]:
    """Collect who holds transfers until something is true of them; return them."""
    seen: set[str] = set()

    def look() -> bool:
        seen.update(queue.holders())
        return until(seen)

    eventually(look, "every mover takes some, and they get on", PATIENCE)
    return seen


def lose(queue: Queue, mover: Process, signum: signal.Signals, known: set[str]) -> None:
    """End a mover by a signal in a moment in which it holds transfers; return when it is gone."""
    name = owner_of(mover, known)
    eventually(lambda: name in queue.holders(), f"{name} holds something", PATIENCE)
    os.kill(mover.pid, signum)
    eventually(lambda: not mover.running, f"{name} is gone", PATIENCE)


def owner_of(mover: Process, owners: set[str]) -> str:
    """Return the name that a mover has on leases."""
    return next(owner for owner in owners if int(owner.rpartition(":")[2].partition("-")[0]) == mover.pid)


def has_ended(api: PrefectApi, run: UUID | None, *states: str) -> bool:
    """Say whether Prefect calls a run one of these."""
    return bool(api.get(f"flow_runs/{run}")["state_type"] in states)


def files(site: Site) -> dict[tuple[str, str], str]:
    """Return all files of all machines: machine and path → sha256."""
    found = {}
    for machine, folder in site.folders.items():
        for file in folder.rglob("*"):
            if file.is_file():
                found[machine, file.relative_to(folder).as_posix()] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found
