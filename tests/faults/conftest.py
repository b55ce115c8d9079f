"""The fault matrix's plant, started once in each test process; its seeds; and where runs are counted.

DM_TEST_FAULT_RUNS is how often each fault strikes, DM_TEST_FAULT_SEED the first seed (drawn without it),
DM_TEST_FAULT_RESULTS a file that gets the results added (`make faults` does that).
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql
from sqlalchemy.engine import make_url

from tests.faults.disk import SmallDisk
from tests.faults.plant import Parts, Plant
from tests.faults.results import Results
from tests.support.hearing import Ear
from tests.support.postgres import Databases, Postgres
from tests.support.prefect import PrefectServer
from tests.support.programs import missing
from tests.support.rabbitmq import RabbitMq
from tests.support.web import Web

RUNS = int(os.environ.get("DM_TEST_FAULT_RUNS") or 1)
CATALOGUE = 16 * 2**20
"""Bytes of the disk that a catalogue has for itself."""
_DRAWN = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID"))  # the same in all processes of a run
FIRST_SEED = int(os.environ.get("DM_TEST_FAULT_SEED") or _DRAWN.randrange(10**6))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each run of a fault a seed, which stands in the test's name."""
    if "seed" in metafunc.fixturenames:
        metafunc.parametrize("seed", range(FIRST_SEED, FIRST_SEED + RUNS), ids=lambda seed: f"seed{seed}")


@pytest.fixture(scope="session")
def results() -> Results | None:
    """Where runs are counted, if they are."""
    file = os.environ.get("DM_TEST_FAULT_RESULTS")
    return Results(Path(file)) if file else None


@pytest.fixture(scope="session")
def fault_postgres(postgres: Databases) -> Postgres:
    """A PostgreSQL server that may be stopped."""
    if not isinstance(postgres, Postgres):
        missing("DM_TEST_POSTGRES names a server that tests may not stop")
    return postgres


@pytest.fixture(scope="session")
def plant(
    tmp_path_factory: pytest.TempPathFactory,
    fault_postgres: Postgres,
    rabbitmq: RabbitMq,
    prefect_server: PrefectServer,
    web: Web,
) -> Iterator[Plant]:
    """Everything, on PostgreSQL."""
    url = fault_postgres.url()
    _keep_promises(url)

    def restart(kill: bool) -> None:
        (fault_postgres.kill if kill else fault_postgres.stop)()
        fault_postgres.start()

    parts = Parts(prefect_server, rabbitmq, web, restart)
    with Plant(tmp_path_factory.mktemp("plant"), parts, url) as plant:
        yield plant


@pytest.fixture(scope="session")
def ear(plant: Plant) -> Ear:
    """Who hears all events from the plant's start on."""
    return Ear(plant.amqp_url)


@pytest.fixture(scope="module")
def plant_on_small_disk(
    tmp_path_factory: pytest.TempPathFactory, rabbitmq: RabbitMq, prefect_server: PrefectServer, web: Web
) -> Iterator[Plant]:
    """Everything, with a SQLite catalogue on a disk that can be filled."""
    home = tmp_path_factory.mktemp("small")

    def no_server(_kill: bool) -> None:
        raise RuntimeError("SQLite has no server that could be restarted")

    parts = Parts(prefect_server, rabbitmq, web, no_server)
    with SmallDisk(home / "catalogue", CATALOGUE) as disk:
        url = f"sqlite+pysqlite:///{disk.path / 'catalogue.db'}"
        with Plant(home, parts, url, disk) as plant:
            yield plant


def _keep_promises(url: str) -> None:
    """Let a commit that was answered survive the server's being killed, which the tests' server doesn't otherwise."""
    address = make_url(url)
    where = address.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(where, autocommit=True) as connection:
        name = sql.Identifier(address.database or "")
        connection.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = on").format(name))
