"""A catalogue with its newest schema, and HTTP servers that answer as a test says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from datamanager.machines import Machine, TransportKind
from flows.retention import run as retention_run
from models import migrate
from models.database import Database
from tests.support.auditing import Plant
from tests.support.catalogue import empty_catalogue, kept
from tests.support.odd_http import OddServer
from tests.support.postgres import Databases
from tests.support.retention import Keeper, kept_objects
from tests.support.sshd import PrivateSshd


def migrated(url: str) -> str:
    """Migrate the database of a URL; return the URL."""
    catalogue = Database(url)
    migrate.upgrade(catalogue)
    catalogue.close()
    return url


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty catalogue to copy, which is quicker than to migrate each time."""
    file = tmp_path_factory.mktemp("template") / "catalogue.db"
    migrated(f"sqlite+pysqlite:///{file}")
    return file


@pytest.fixture(scope="session")
def postgres_template(postgres: Databases) -> Iterator[str]:
    """The name of a database to copy."""
    url = migrated(postgres.url())
    yield make_url(url).database or ""
    postgres.drop(url)


@pytest.fixture(scope="session")
def catalogue_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the catalogue of the test that runs is."""
    return tmp_path_factory.mktemp("catalogue")


@pytest.fixture
def migrated_url(request: pytest.FixtureRequest, dialect: str, catalogue_folder: Path) -> Iterator[str]:
    """The SQLAlchemy URL of an empty catalogue, migrated; the same for each test."""
    with empty_catalogue(request, dialect, catalogue_folder) as url:
        yield url


@pytest.fixture
def database(migrated_url: str) -> Iterator[Database]:
    """An empty catalogue, migrated."""
    catalogue = kept(migrated_url)
    yield catalogue
    catalogue.close()


@pytest.fixture(params=["local", "sftp"])
def plant(request: pytest.FixtureRequest, tmp_path: Path, database: Database) -> Iterator[Plant]:
    """A catalogue and one machine: a directory of this host, or of an SSH server."""
    folder = tmp_path / "data"
    folder.mkdir()
    if request.param == "local":
        machine = Machine(name="here", transport=TransportKind.LOCAL, base_dir=str(folder))
    else:
        servers: tuple[PrivateSshd, PrivateSshd] = request.getfixturevalue("sshd_pair")
        machine = servers[0].machine("here", folder, max_connections=1)
    made = Plant(database, machine, folder, tmp_path / "home")
    yield made
    made.services.storages.close()


@pytest.fixture
def local(tmp_path: Path, database: Database) -> Plant:
    """A local machine, where the transport makes no difference."""
    folder = tmp_path / "data"
    folder.mkdir()
    machine = Machine(name="here", transport=TransportKind.LOCAL, base_dir=str(folder))
    return Plant(database, machine, folder, tmp_path / "home")


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have runs of retention look more often than every half second at what is under way."""
    monkeypatch.setattr(retention_run, "LOOK_EVERY", 0.02)


@pytest.fixture
def keeper(database: Database, quick_looks: None, tmp_path: Path) -> Iterator[Keeper]:
    """All machines are directories of this host."""
    yield from kept_objects(database, tmp_path)


@pytest.fixture
def ssh_keeper(
    database: Database, quick_looks: None, sshd_pair: tuple[PrivateSshd, PrivateSshd], tmp_path: Path
) -> Iterator[Keeper]:
    """`far` and `near` are reached by SSH."""
    yield from kept_objects(database, tmp_path, sshd_pair[0])


@pytest.fixture
def server() -> Iterator[OddServer]:
    """An HTTP server that answers as a test says."""
    with OddServer() as running:
        yield running


@pytest.fixture
def other() -> Iterator[OddServer]:
    """A second such server, of another origin."""
    with OddServer() as running:
        yield running
