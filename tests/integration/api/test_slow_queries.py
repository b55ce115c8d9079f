"""A query that takes too long ends with an error; nobody else notices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import insert, text

from datamanager.errors import QueryTooSlow
from models.database import Database
from models.tables import DataObject
from tests.support.live_api import LiveApi

pytestmark = pytest.mark.dialect

ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
SHORT = timedelta(milliseconds=50)


def test_read_ends_an_endless_query(database: Database) -> None:
    for _ in range(12):  # more often than there are connections: each one is given back, and works
        with pytest.raises(QueryTooSlow, match=r"ended after 0\.05 s"), database.read(SHORT) as session:
            session.execute(text(ENDLESS))
    with database.read() as session:  # nobody limits this one: a limit stays with its transaction
        limit = "SELECT count(*) FROM generate_series(1, 300000)"
        endless_enough = ENDLESS.replace("FROM n)", "FROM n WHERE i < 300000)")
        assert session.scalar(text(limit if database.is_postgresql else endless_enough)) == 300_000
    with database.write() as session:
        assert session.scalar(text("SELECT 1")) == 1


@pytest.fixture
def hasty(tmp_path: Path, migrated_url: str) -> Iterator[LiveApi]:
    """An API with 15,000 objects, whose queries may take 1 ms."""
    with LiveApi(tmp_path / "site", migrated_url, query_timeout=timedelta(milliseconds=1)) as api:
        time = datetime(2026, 1, 1, tzinfo=UTC)
        row = {"machine": "here", "path": "", "filename": "a", "meta": {"k": 1}, "size": 1}
        row |= {"date_registered": time, "date_modified": time}
        with api.database.write() as session:
            session.execute(insert(DataObject), [{**row, "id": uuid4(), "place": str(n)} for n in range(15_000)])
        yield api


@contextmanager
def slow_reads(database: Database) -> Iterator[None]:
    """Have a list take longer than 1 ms: on PostgreSQL a lock stops it, on SQLite it has enough rows to read."""
    if not database.is_postgresql:
        yield
        return
    with database.connection() as connection:
        connection.execute(text("LOCK TABLE objects IN ACCESS EXCLUSIVE MODE"))
        yield


def test_listing_that_takes_too_long_is_refused(hasty: LiveApi) -> None:
    with slow_reads(hasty.database):
        for query in ("sort=-date_modified", "metadata.nobody=has", "sort=size"):
            answer = hasty.ask("GET", f"/DM/info?{query}")
            assert (answer.status_code, answer.headers["content-type"]) == (504, "application/problem+json"), query
            assert (answer.json()["code"], answer.json()["retryable"]) == ("query_too_slow", False)
            assert "ended after 0.001 s; narrow it" in answer.json()["detail"]
    assert len(hasty.ask("GET", "/DM/info").json()) == 15_000  # is streamed, and takes as long as it takes


@pytest.mark.dialect("postgresql")
def test_look_at_one_thing_that_takes_too_long_is_documented(hasty: LiveApi) -> None:
    looks = {path: one["get"] for path, one in hasty.app.openapi()["paths"].items() if "{" in path and "get" in one}
    with hasty.database.connection() as connection:
        tables = connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"))
        connection.execute(text(f"LOCK TABLE {', '.join(tables)} IN ACCESS EXCLUSIVE MODE"))
        for path, operation in looks.items():
            answer = hasty.ask("GET", re.sub(r"\{\w+\}", str(uuid4()), path))
            assert (answer.status_code, answer.json()["code"]) == (504, "query_too_slow"), path
            assert "504" in operation["responses"], path
    assert len(looks) >= 7
