"""A machine that fetches by itself, and servers to fetch from."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.engine.fetching import replica_fetch
from tests.support.remote_machine import Machine
from tests.support.sshd import PrivateSshd


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSshd]:
    with PrivateSshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def machine(sshd: PrivateSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setattr(replica_fetch, "CHECKPOINT_EVERY", 0.2)
    made = Machine(sshd, tmp_path, connection="paramiko")
    yield made
    made.ends.storages.close()
    assert not made.curls()
