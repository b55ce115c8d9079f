"""A catalogue with its newest schema, once on SQLite and once on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from models import migrate
from models.database import Database


@pytest.fixture
def database(catalogue_url: str) -> Iterator[Database]:
    """An empty catalogue, migrated."""
    catalogue = Database(catalogue_url)
    migrate.upgrade(catalogue)
    yield catalogue
    catalogue.close()
