"""The transports under the contract: two lines per backend."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from datamanager.machines import Machine
from datamanager.transports.base import Session, Storage
from datamanager.transports.factory import open_storage
from tests.support.sshd import PrivateSshd

MachineMaker = Callable[..., Machine]


@pytest.fixture(scope="session")
def control_dir() -> Iterator[Path]:
    """A private directory whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="dm-", dir="/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSshd]:
    with PrivateSshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(params=["openssh", "paramiko"])
def ssh_machine(request: pytest.FixtureRequest, server: PrivateSshd, tmp_path: Path) -> MachineMaker:
    """Makes a machine whose storage is reached over SSH, in either way."""

    def make(**overrides: Any) -> Machine:
        return server.machine("remote", tmp_path, connection=request.param, **overrides)

    return make


@pytest.fixture(params=["local", "openssh", "paramiko"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    """A machine of every backend, whose files are also under `tmp_path` here."""
    if request.param == "local":
        return Machine.model_validate({"name": "here", "transport": "local", "base_dir": str(tmp_path)})
    server: PrivateSshd = request.getfixturevalue("server")
    return server.machine("remote", tmp_path, connection=request.param)


@pytest.fixture
def storage(machine: Machine, control_dir: Path) -> Iterator[Storage]:
    opened = open_storage(machine, control_dir=control_dir)
    yield opened
    opened.close()


@pytest.fixture
def session(storage: Storage) -> Iterator[Session]:
    with storage.session() as lent:
        yield lent
