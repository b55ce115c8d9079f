"""One running Data Manager for this folder's tests: on SQLite without a broker, and on PostgreSQL with RabbitMQ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.support.postgres import Databases
from tests.support.rabbitmq import RabbitMq
from tests.support.service import DataManagerService
from tests.support.site import Site, write_machines
from tests.support.sshd import PrivateSshd
from tests.support.web import OddServer, Web


def make_site(home: Path, env: dict[str, str], sshd_pair: tuple[PrivateSshd, PrivateSshd], **keys: object) -> Site:
    """Prepare a site below `home`; its service is not started yet."""
    folders = {name: home / "data" / name for name in ("localhost", "archer2", "cirrus")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    machines = home / "machines.toml"
    write_machines(machines, folders, {"archer2": sshd_pair[0], "cirrus": sshd_pair[1]}, **keys)
    return Site(DataManagerService(home / "dm", {"DM_MACHINES": str(machines), **env}), folders)


def allowed(web: Web) -> str:
    """Return the DM_DOWNLOAD_ALLOW entries that open the tests' web server, its two ports and no other."""
    return ",".join({urlsplit(url).netloc for url in (web.url, web.tls_url)})


@pytest.fixture(scope="session")
def slow_server() -> Iterator[OddServer]:
    """A web server whose pages take their time; sites may download from it."""
    with OddServer() as server:
        yield server


@pytest.fixture(scope="module", params=["sqlite", "postgresql+rabbitmq"])
def site(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    sshd_pair: tuple[PrivateSshd, PrivateSshd],
    prefect_api_url: str,
    web: Web,
    slow_server: OddServer,
) -> Iterator[Site]:
    """A running site, once with the least and once with everything."""
    env = {
        "DM_PREFECT_API_URL": prefect_api_url,
        "DM_DOWNLOAD_ALLOW": f"{allowed(web)},{urlsplit(slow_server.url).netloc}",
    }
    if request.param != "sqlite":
        databases: Databases = request.getfixturevalue("postgres")
        node: RabbitMq = request.getfixturevalue("rabbitmq")
        env |= {"DM_DATABASE_URL": databases.url(), "DM_AMQP_URL": node.fresh_vhost()}
    site = make_site(tmp_path_factory.mktemp("site"), env, sshd_pair)
    with site.service:
        yield site
