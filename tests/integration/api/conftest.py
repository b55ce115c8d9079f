"""A running API for each test, once over SQLite and once over PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.live_api import LiveApi


@pytest.fixture
def api(tmp_path: Path, migrated_url: str) -> Iterator[LiveApi]:
    """An API that is served; nothing is in its catalogue and no mover is online."""
    with LiveApi(tmp_path / "site", migrated_url, download_allow=("127.0.0.1",)) as live:
        yield live
