"""The servers that tests use: private ones on loopback, started when first asked for, once for the whole run.

DM_TEST_POSTGRES, DM_TEST_AMQP and DM_TEST_PREFECT_API_URL name servers to use instead. What is not installed skips the
test on a developer's machine and fails it in CI.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.postgres import Databases, Postgres, given_postgres
from tests.support.prefect import PrefectServer, given_prefect
from tests.support.rabbitmq import RabbitMq, given_amqp
from tests.support.sshd import PrivateSshd
from tests.support.web import OddServer, Web

for _name in [name for name in os.environ if name.startswith("DM_") and not name.startswith("DM_TEST_")]:
    del os.environ[_name]  # the developer's own settings are not the tests'
os.environ["DO_NOT_TRACK"] = "1"  # Prefect's client asks it when it is imported


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the servers' logs."""
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="session")
def postgres(services: Path) -> Iterator[Databases]:
    """A PostgreSQL server; `url()` makes a fresh empty database."""
    given = given_postgres()
    if given is not None:
        yield given
        return
    with Postgres(services) as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq(services: Path) -> Iterator[RabbitMq]:
    """A private RabbitMQ node; tests that stop or kill it start it again. For addresses alone ask for `amqp_url`."""
    with RabbitMq(services) as node:
        yield node


@pytest.fixture
def amqp_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of an empty virtual host of its own (of DM_TEST_AMQP as it is, when that is set)."""
    given = given_amqp()
    if given is not None:
        yield given
        return
    node: RabbitMq = request.getfixturevalue("rabbitmq")
    url = node.fresh_vhost()
    yield url
    node.drop_vhost(url)


@pytest.fixture(scope="session")
def prefect_server(services: Path) -> Iterator[PrefectServer]:
    """A private Prefect server on SQLite; tests that stop or kill it start it again."""
    with PrefectServer(services / "prefect") as server:
        yield server


@pytest.fixture(scope="session")
def prefect_api_url(request: pytest.FixtureRequest) -> str:
    """The API address of a Prefect server, private or DM_TEST_PREFECT_API_URL."""
    given = given_prefect()
    if given is not None:
        return given
    server: PrefectServer = request.getfixturevalue("prefect_server")
    return server.api_url


@pytest.fixture(scope="session")
def sshd_pair(services: Path) -> Iterator[tuple[PrivateSshd, PrivateSshd]]:
    """Two SSH servers, each with keys and a known_hosts file of its own."""
    with PrivateSshd(services / "sshd1") as first, PrivateSshd(services / "sshd2") as second:
        yield first, second


@pytest.fixture(scope="session")
def web(services: Path) -> Iterator[Web]:
    """An nginx over http and https; `put` stores a file and returns its address."""
    with Web(services / "web") as server:
        yield server


@pytest.fixture
def odd_server() -> Iterator[OddServer]:
    """A web server that redirects, lies about lengths, stalls; see tests.support.web."""
    with OddServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def catalogue_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh empty database, once SQLite and once PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite+pysqlite:///{tmp_path / 'catalogue.db'}"
        return
    databases: Databases = request.getfixturevalue("postgres")
    url = databases.url()
    yield url
    databases.drop(url)
