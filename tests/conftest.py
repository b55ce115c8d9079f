"""The servers that tests use: private ones on loopback, started when first asked for, once for the whole run.

DM_TEST_POSTGRES, DM_TEST_AMQP and DM_TEST_PREFECT_API_URL name servers to use instead. What is not installed skips the
test on a developer's machine and fails it in CI.

Two marks count here. A test with a database runs on SQLite, and on PostgreSQL too when it is marked `dialect` (in a
module that is, `dialect("sqlite")` takes one out). What needs a server of any kind is marked `server`, so that
`-m "not server"` starts none.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

from tests.support.postgres import Databases, Postgres, given_postgres
from tests.support.prefect import PrefectServer, given_prefect
from tests.support.rabbitmq import RabbitMq, given_amqp
from tests.support.sshd import PrivateSshd
from tests.support.web import OddServer, Web

for _name in [name for name in os.environ if name.startswith("DM_") and not name.startswith("DM_TEST_")]:
    del os.environ[_name]  # the developer's own settings are not the tests'
gc.disable()  # until all tests are collected: a quarter of that time else
os.environ["DO_NOT_TRACK"] = "1"  # Prefect's client asks it when it is imported
structlog.configure(  # rich's traces take seconds each, and what a command prints is not to be mixed with logs
    processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer(key_order=["event"])],
    logger_factory=structlog.PrintLoggerFactory(sys.__stderr__),
)


hypothesis.settings.register_profile(  # how fast this machine is at the moment proves nothing
    "tests", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("tests")

SERVER_FIXTURES = frozenset({
    *("postgres", "postgres_template", "rabbitmq", "amqp_url", "prefect_server", "prefect_api_url"),
    *("sshd_pair", "web", "alone"),
})  # fmt: skip
"""Fixtures that start a process to speak with."""
SERVER_PARAMS = frozenset({"postgresql", "openssh", "paramiko", "sftp"})
"""Parameters with which a fixture asks for one of them."""
GROUPS = {"rabbitmq": ("rabbitmq", "amqp_url"), "prefect": ("prefect_server", "prefect_api_url")}
"""Servers that take seconds to start: their tests stay in one worker of pytest-xdist."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the databases of a test that has one."""
    if "dialect" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("dialect")
        kinds = ("sqlite",) if mark is None else mark.args or ("sqlite", "postgresql")
        metafunc.parametrize("dialect", kinds, indirect=True)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, dict[str, object] | None, dict[str, object] | None]:
    """Escape what is no UTF-8 in a report: pytest-xdist can't send it, and file names of tests are any bytes."""
    data = yield
    return None if data is None else {name: _sendable(value) for name, value in data.items()}


def _sendable(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, list | tuple):
        return type(value)(_sendable(item) for item in value)
    if isinstance(value, dict):
        return {_sendable(key): _sendable(item) for key, item in value.items()}
    return value


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Name long texts and bytes by their length: some are random, and all workers must know a test by the same name."""
    return f"{argname}-of-{len(val)}" if isinstance(val, str | bytes) and len(val) > 60 else None


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what needs a server."""
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        params = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if fixtures & SERVER_FIXTURES or any(isinstance(one, str) and one in SERVER_PARAMS for one in params):
            item.add_marker("server")
        for group, names in GROUPS.items():
            if fixtures.intersection(names) and item.get_closest_marker("xdist_group") is None:
                item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish() -> None:
    """Let the garbage collector leave alone what stays to the end: modules and tests."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the servers' logs."""
    return tmp_path_factory.mktemp("services")


@pytest.fixture(scope="session")
def postgres(services: Path) -> Iterator[Databases]:
    """A PostgreSQL server; `url()` makes a fresh empty database."""
    given = given_postgres()
    if given is None:
        with Postgres(services) as server:
            yield server
        return
    yield given
    for name in list(given.made):
        given.drop(given.url(name))


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


@pytest.fixture
def dialect(request: pytest.FixtureRequest) -> str:
    """The kind of the test's database, "sqlite" or "postgresql"; see `pytest_generate_tests`."""
    kind: str = request.param
    return kind


@pytest.fixture
def catalogue_url(request: pytest.FixtureRequest, dialect: str, tmp_path: Path) -> Iterator[str]:
    """The SQLAlchemy URL of a fresh empty database."""
    if dialect == "sqlite":
        yield f"sqlite+pysqlite:///{tmp_path / 'catalogue.db'}"
        return
    databases: Databases = request.getfixturevalue("postgres")
    url = databases.url()
    yield url
    databases.drop(url)
