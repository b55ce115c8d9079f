"""The schema's versions: upgrade, downgrade, and the check at the start.

Alembic runs inside one transaction of ours, so a migration that fails leaves the schema as it was, on SQLite too.
Processes that upgrade at the same moment wait for each other: BEGIN IMMEDIATE on SQLite, an advisory lock on
PostgreSQL.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from datamanager.errors import SettingsError
from models.database import Database

FOLDER = Path(__file__).parent / "migrations"
LOCK = 0x646D5F7363686D61  # "dm_schma": any number that nobody else uses for an advisory lock of the same database
LOCK_TIMEOUT = "120s"


def upgrade(database: Database, revision: str = "head") -> None:
    """Bring the schema to `revision`, by default the newest; does nothing when it is there.

    Raises: SettingsError when a newer Data Manager made the schema, or the PostgreSQL database is not in UTF-8;
    CatalogueUnavailable.
    """
    with database.connection() as connection:
        _lock(database, connection)
        _require_known(_revision(connection))
        command.upgrade(_config(connection), revision)


def downgrade(database: Database, revision: str) -> None:
    """Take the schema back to `revision` ("base": nothing is left, all data is lost). Raises: as `upgrade`."""
    with database.connection() as connection:
        _lock(database, connection)
        _require_known(_revision(connection))
        command.downgrade(_config(connection), revision)


def current(database: Database) -> str | None:
    """Return the schema's revision, None for an empty database. Raises: CatalogueUnavailable."""
    with database.read() as session:
        return _revision(session.connection())


def newest() -> str | None:
    """Return the revision that this code works with."""
    return _scripts().get_current_head()


def require_current(database: Database) -> None:
    """Stop the start unless the schema is the one this code works with. Raises: SettingsError, CatalogueUnavailable."""
    found = current(database)
    _require_known(found)
    if found != newest():
        raise SettingsError(f"the catalogue's schema is {found or 'empty'}, {newest()} is needed; run: dm db upgrade")


def _require_known(revision: str | None) -> None:
    if revision is not None and revision not in {script.revision for script in _scripts().walk_revisions()}:
        raise SettingsError(
            f"this catalogue was created by a newer Data Manager (schema {revision}, this one knows up to {newest()}); "
            "start that version again"
        )


def _lock(database: Database, connection: Connection) -> None:
    if database.is_postgresql:
        encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
        if encoding != "UTF8":
            raise SettingsError(f"the catalogue's PostgreSQL database must have the encoding UTF8, not {encoding}")
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _scripts() -> ScriptDirectory:
    return ScriptDirectory(FOLDER)


def _config(connection: Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
