"""A running API, for each test or for all that leave nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.catalogue import empty_catalogue
from tests.support.live_api import LiveApi

LOOPBACK = ("127.0.0.1",)


@pytest.fixture
def api(tmp_path: Path, migrated_url: str) -> Iterator[LiveApi]:
    """An API that is served; nothing is in its catalogue and no mover is online."""
    with LiveApi(tmp_path / "site", migrated_url, download_allow=LOOPBACK) as live:
        yield live


@pytest.fixture(scope="session")
def shared_api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    """An API for tests of what is refused: they name their objects uniquely, and no mover is ever online."""
    folder = tmp_path_factory.mktemp("shared")
    with (
        empty_catalogue(request, "sqlite", folder) as url,
        LiveApi(folder / "site", url, download_allow=LOOPBACK) as live,
    ):
        yield live
