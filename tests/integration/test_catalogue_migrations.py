"""The schema goes up, down and up again on both databases, and is what the models say."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import inspect, text, update

from datamanager.errors import SettingsError
from models import migrate
from models.database import Database
from models.tables import Base, Bundle, BundleMember

pytestmark = pytest.mark.dialect

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SQLITE_TABLES = {"object_metadata"}
"""What lists search by on SQLite; no class stands for it."""
INDEXES = {"ix_objects_group", "ix_objects_metadata", "ix_objects_name"}
"""The same on PostgreSQL; the first one is another on SQLite."""
SQLITE_INDEXES = {"ix_object_totals_key"}
"""By which SQLite's triggers find totals."""


@pytest.fixture
def empty(catalogue_url: str) -> Iterator[Database]:
    """A catalogue without a schema."""
    catalogue = Database(catalogue_url)
    yield catalogue
    catalogue.close()


def differences(database: Database) -> list[object]:
    def declared(_thing: object, name: str | None, *_details: object) -> bool:
        return name not in SQLITE_TABLES | INDEXES | SQLITE_INDEXES

    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"include_object": declared})
        return list(compare_metadata(context, Base.metadata))


def tables(database: Database) -> set[str]:
    return set(inspect(database.engine).get_table_names())


def test_up_down_up(empty: Database) -> None:
    assert migrate.current(empty) is None
    migrate.upgrade(empty)
    assert migrate.current(empty) == migrate.newest()
    searched = set() if empty.is_postgresql else SQLITE_TABLES
    assert tables(empty) == {*Base.metadata.tables, *searched, "alembic_version"}
    if empty.is_postgresql:
        assert {str(index["name"]) for index in inspect(empty.engine).get_indexes("objects")} >= INDEXES
    migrate.downgrade(empty, "base")
    assert migrate.current(empty) is None
    assert tables(empty) == {"alembic_version"}
    migrate.upgrade(empty)
    migrate.upgrade(empty)  # once more changes nothing
    assert differences(empty) == []


def test_archived_objects_are_not_forgotten(empty: Database) -> None:
    migrate.upgrade(empty)
    bundle = Bundle(
        id=uuid4(), machine="tape", place="b.tar", pack="tar", level="sizes", transfer_id=uuid4(), created=NOW, notes={}
    )
    where = {"offset": 0, "size": 0, "sha256": "", "mode": 0, "mtime": 0, "source_machine": "a", "source_place": "b"}
    with empty.write() as session:
        session.add(bundle)
        session.flush()
        session.add(BundleMember(bundle_id=bundle.id, object_id=uuid4(), **where))
    with pytest.raises(SettingsError, match="1 objects are archived"):
        migrate.downgrade(empty, "0005_health")
    with empty.write() as session:
        session.execute(update(BundleMember).values(released=NOW))
    migrate.downgrade(empty, "0005_health")
    assert "bundles" not in tables(empty)


def test_the_comparison_sees_a_difference(empty: Database) -> None:
    migrate.upgrade(empty)
    with empty.connection() as connection:
        connection.execute(text("DROP INDEX uq_claims_write"))
        connection.execute(text("ALTER TABLE objects DROP COLUMN archived_in"))
    assert len(differences(empty)) == 2


def test_an_older_schema_stops_the_start(empty: Database) -> None:
    with pytest.raises(SettingsError, match="run: dm db upgrade"):
        migrate.require_current(empty)
    migrate.upgrade(empty)
    migrate.require_current(empty)


def test_a_newer_schema_is_left_alone(empty: Database) -> None:
    migrate.upgrade(empty)
    with empty.connection() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999_future'"))
    for refuse in (migrate.require_current, migrate.upgrade, lambda database: migrate.downgrade(database, "base")):
        with pytest.raises(SettingsError, match="created by a newer Data Manager"):
            refuse(empty)
    assert "objects" in tables(empty)


def test_processes_that_upgrade_at_once_wait_for_each_other(catalogue_url: str, tmp_path: Path) -> None:
    databases = [Database(catalogue_url) for _ in range(6)]  # as many processes would: nothing shared
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(migrate.upgrade, databases))
    assert migrate.current(databases[0]) == migrate.newest()
    for database in databases:
        database.close()


def test_a_failing_migration_leaves_the_schema_as_it_was(empty: Database) -> None:
    with empty.connection() as connection:
        connection.execute(text("CREATE TABLE transfers (id INTEGER)"))  # the last one that the migration makes
    with pytest.raises(Exception, match="already exists"):
        migrate.upgrade(empty)
    assert tables(empty) - {"alembic_version"} == {"transfers"}


@pytest.mark.dialect("postgresql")
def test_tables_whose_rows_pass_through_are_vacuumed_early(empty: Database) -> None:
    def options() -> dict[str, list[str]]:
        with empty.read() as session:
            query = "SELECT relname, reloptions FROM pg_class WHERE reloptions IS NOT NULL AND relkind = 'r'"
            return {name: sorted(values) for name, values in session.execute(text(query)).all()}

    Base.metadata.create_all(empty.engine)
    declared = options()
    early = ["autovacuum_vacuum_scale_factor=0.01", "vacuum_index_cleanup=on"]
    assert declared == {"transfers": early, "outbox": early}
    with empty.connection() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE; CREATE SCHEMA public"))
    migrate.upgrade(empty, "0016_housekeeping")
    assert options() == declared
    migrate.downgrade(empty, "0015_rollups")
    assert options() == {}
