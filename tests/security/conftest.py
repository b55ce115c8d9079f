"""A service to attack."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.conftest import catalogue_folder, database, migrated_url, sqlite_template  # noqa: F401  # fixtures
from tests.support.attacked import Attacked, attacked


@pytest.fixture(scope="module")
def victim(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    """An API that requires to know who asks, on SQLite, for all tests of a module."""
    with attacked(request, tmp_path_factory.mktemp("attacked")) as service:
        yield service
