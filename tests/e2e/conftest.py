"""Running Data Managers for this folder's tests: shared ones, and one of those that stop and reconfigure its parts.

- `site` is shared, with everything: PostgreSQL, RabbitMQ, archives. A test that is marked `dialect` runs on the least,
  too: SQLite, no broker, no archive. So its tests use paths and names of their own.
- `bare_site` is a catalogue (SQLite) and an API; each of its tests brings its movers. Its SSH and Prefect servers may
  be stopped.
- `open_site` is what the README's reader has: SQLite, no broker, one SSH machine, downloads from this host.

They end when a worker has left this folder: idle servers take time from the tests that follow.
Two sites that run at the same time need two Prefect servers: the movers of one would take the runs of the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests.support.filtered_sshd import FilteredSshd
from tests.support.oidc_login import RULES, LoginIssuer
from tests.support.postgres import Databases
from tests.support.prefect import PrefectApi, PrefectServer
from tests.support.rabbitmq import RabbitMq
from tests.support.service import DataManagerService
from tests.support.site import Site, allowed, make_site, write_machines
from tests.support.sshd import PrivateSshd
from tests.support.web import OddServer, Web

LEAST = pytest.param("least", marks=pytest.mark.xdist_group("least site"))
FULL = pytest.param("full", marks=pytest.mark.xdist_group("full site"))
SITES = frozenset({"bare_site", "open_site"})
BUNDLE_SIZE = 1_000_000
KILLS = int(os.environ.get("DM_TEST_KILLS") or 1)
"""How often a mover is killed in the middle of an archive, an extraction and a batch, each time at another moment."""
ARCHIVES: dict[str, dict[str, object]] = {
    "tape": {},
    # a bundle can be read when somebody has put a file beside it
    "vault": {
        "stage_command": ["touch", "{path}.asked"],
        "stage_poll": ["test", "-e", "{path}.online"],
        "stage_every": 1,
    },
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Choose the shared sites of a test that names none itself."""
    marks = metafunc.definition.iter_markers("parametrize")
    if "backend" in metafunc.fixturenames and not any(mark.args[0] == "backend" for mark in marks):
        both = metafunc.definition.get_closest_marker("dialect") is not None
        metafunc.parametrize("backend", [LEAST, FULL] if both else [FULL], indirect=True)


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder: each needs a server; and those of one site stay in one worker."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker("server")
            for name in SITES.intersection(getattr(item, "fixturenames", ())):
                # one of them takes as long as all others of its site: another worker has it, with a site of its own
                group = f"{name} of {item.path.stem}" if item.path.stem == "test_worker" else name
                item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="package")
def backend(request: pytest.FixtureRequest) -> str:
    """What the shared site has: `least` or `full`."""
    kind: str = request.param
    return kind


@pytest.fixture(scope="package")
def slow_server() -> Iterator[OddServer]:
    """A web server whose pages take their time; sites may download from it."""
    with OddServer() as server:
        yield server


@pytest.fixture(scope="package")
def other_server() -> Iterator[OddServer]:
    """Another one, for which the shared site has no credential."""
    with OddServer() as server:
        yield server


@pytest.fixture(scope="package")
def issuer() -> Iterator[LoginIssuer]:
    """The OIDC issuer of the shared site's people."""
    with LoginIssuer() as running:
        yield running


@pytest.fixture(scope="package")
def site_prefect(services: Path) -> Iterator[PrefectServer]:
    """The Prefect server of the shared site."""
    with PrefectServer(services / "site-prefect") as server:
        yield server


@pytest.fixture(scope="package")
def site(
    request: pytest.FixtureRequest,
    backend: str,
    tmp_path_factory: pytest.TempPathFactory,
    sshd_pair: tuple[PrivateSshd, PrivateSshd],
    site_prefect: PrefectServer,
    web: Web,
    slow_server: OddServer,
    other_server: OddServer,
    issuer: LoginIssuer,
) -> Iterator[Site]:
    """The shared site. It has stored credentials: one is for `slow_server`, one for nobody here, one is broken. People
    may log in at `issuer`, as movers of their groups.
    """
    folder = tmp_path_factory.mktemp("site")
    (folder / "identity.toml").write_text(RULES)
    here, other = (urlsplit(server.url).netloc for server in (slow_server, other_server))
    env = {
        "DM_PREFECT_API_URL": site_prefect.api_url,
        "DM_DOWNLOAD_ALLOW": f"{allowed(web)},{here},{other}",
        "DM_CREDENTIAL_SITE": json.dumps({"hosts": [here], "username": "bob", "password": f"5ecret-{uuid4().hex}"}),
        "DM_CREDENTIAL_ELSE_WHERE": json.dumps({"hosts": ["data.example"], "token": f"5ecret-{uuid4().hex}"}),
        "DM_CREDENTIAL_BROKEN": f"5ecret-{uuid4().hex}",
        "DM_IDENTITY": str(folder / "identity.toml"),
        **{f"DM_{name.upper()}": value for name, value in issuer.settings.items()},
    }
    if backend == "full":
        databases: Databases = request.getfixturevalue("postgres")
        node: RabbitMq = request.getfixturevalue("rabbitmq")
        env |= {"DM_DATABASE_URL": databases.url(), "DM_AMQP_URL": node.fresh_vhost()}
        env |= {"DM_BUNDLE_SIZE": str(BUNDLE_SIZE), "DM_ARCHIVE_TO": "tape"}
    made = make_site(folder, env, sshd_pair, archives=ARCHIVES if backend == "full" else None)
    with made.service:
        yield made


@pytest.fixture
def prefect(site: Site) -> PrefectApi:
    """The API of the site's Prefect server."""
    return PrefectApi(site.service.env["DM_PREFECT_API_URL"])


@pytest.fixture(scope="package")
def private_sshd(services: Path) -> Iterator[tuple[PrivateSshd, PrivateSshd]]:
    """Two SSH servers that tests may stop; they start them again. No shared site uses them."""
    with PrivateSshd(services / "private-sshd1") as first, PrivateSshd(services / "private-sshd2") as second:
        yield first, second


@pytest.fixture(scope="package")
def private_prefect(services: Path) -> Iterator[PrefectServer]:
    """A Prefect server that tests may stop, limit and empty; they put it right again."""
    with PrefectServer(services / "private-prefect") as server:
        yield server


@pytest.fixture(scope="package")
def bare_site(
    tmp_path_factory: pytest.TempPathFactory,
    private_prefect: PrefectServer,
    private_sshd: tuple[PrivateSshd, PrivateSshd],
    slow_server: OddServer,
) -> Iterator[Site]:
    """An API whose movers each test chooses with `service.use_movers` and runs with `service.moving`."""
    env = {"DM_PREFECT_API_URL": private_prefect.api_url, "DM_DOWNLOAD_ALLOW": urlsplit(slow_server.url).netloc}
    made = make_site(tmp_path_factory.mktemp("bare"), env, private_sshd)
    service = made.service
    try:
        service.start_without_movers()
        yield made
    finally:
        service.stop()


@pytest.fixture(scope="package")
def open_site(
    tmp_path_factory: pytest.TempPathFactory, prefect_server: PrefectServer, sshd_pair: tuple[PrivateSshd, PrivateSshd]
) -> Iterator[Site]:
    """A site in a home as the README says, `~/.dm`, which may download from any port of this host.

    Its machine `box` keeps neither modes nor times, and says nothing of free space.
    """
    home = tmp_path_factory.mktemp("open")
    folders = {"localhost": home / ".dm" / "data", "archer2": home / "archer2", "box": home / "box"}
    for folder in folders.values():
        folder.mkdir(parents=True)
    machines = home / ".dm" / "machines.toml"
    env = {"DM_PREFECT_API_URL": prefect_server.api_url, "DM_DOWNLOAD_ALLOW": "127.0.0.0/8"}
    service = DataManagerService(home / ".dm", env)
    with FilteredSshd(home / "box-sshd", ["setstat=3", "statvfs@openssh.com=zeroes"]) as box:
        write_machines(machines, folders, {"archer2": sshd_pair[0], "box": box})
        with service:
            yield Site(service, folders)


@pytest.fixture
def gate() -> Iterator[Event]:
    """What slow downloads wait for."""
    gate = Event()
    yield gate
    gate.set()
