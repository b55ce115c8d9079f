"""Indexes of lists: one for each order, for each filter, for the members of the metadata and for pieces of names; and
one of the objects that transfers make.

PostgreSQL finds the latter two with GIN, names by their trigrams (pg_trgm, a trusted extension: whoever may create in
the database may create it). SQLite has a table of members: triggers enter what is new, and nothing is removed from it,
as a query by it looks at the object too. Trigrams cost SQLite more than all else that is written of an object, so there
it has none and reads the index of names.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
import structlog
from alembic import op

from models.migrations.columns import create_partial_index

revision = "0014_list_indexes"
down_revision = "0013_shared_runs"

NEW: dict[str, list[Any]] = {
    "ix_objects_date_modified": ["date_modified", "id"],
    "ix_objects_filename": ["filename", "id"],
    "ix_objects_machine": ["machine", "status", "date_registered", "id"],
    "ix_objects_machine_registered": ["machine", "date_registered", "id"],
    "ix_objects_status": ["status", "date_registered", "id"],
    "ix_objects_size": [sa.text("coalesce(size, -1)"), "id"],
    "ix_objects_originator": [sa.text("substr(originator, 1, 200)"), "date_registered", "id"],
    "ix_objects_path": [sa.text("substr(place, 1, 500)")],
}
REPLACED = ("ix_objects_filename", "ix_objects_machine", "ix_objects_group")

# a real number, a list or an object has no entry: SQLite would not write it as the document does
_MEMBERS = """
    INSERT OR IGNORE INTO object_metadata (key, value, object_id)
    SELECT member.key, substr(CASE member.type WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' ELSE member.value END,
                              1, 200), {row}.id
    FROM {source} json_each({row}.metadata) AS member
    WHERE member.type IN ('text', 'integer', 'true', 'false')
"""
SQLITE = (
    "CREATE TABLE object_metadata (key TEXT NOT NULL, value TEXT NOT NULL, object_id CHAR(32) NOT NULL,"
    " PRIMARY KEY (key, value, object_id)) WITHOUT ROWID",
    _MEMBERS.format(row="objects", source="objects,") + " ORDER BY 1, 2, 3",
    "CREATE TRIGGER objects_metadata_insert AFTER INSERT ON objects WHEN new.metadata <> '{}' BEGIN"
    f" {_MEMBERS.format(row='new', source='')}; END",
    "CREATE TRIGGER objects_metadata_update AFTER UPDATE OF metadata ON objects BEGIN"
    f" {_MEMBERS.format(row='new', source='')}; END",
)

log = structlog.get_logger(__name__)


def upgrade() -> None:
    """Make them, also of what there is."""
    connection = op.get_bind()
    for name in REPLACED:
        op.drop_index(name, "objects")
    for name, columns in NEW.items():
        op.create_index(name, "objects", columns)
    create_partial_index("ix_transfers_result", "transfers", ["result_object_id"], "result_object_id IS NOT NULL")
    if connection.dialect.name == "sqlite":
        # no expression: SQLite finds no place in an index of one by a row of values
        op.create_index("ix_objects_group", "objects", ["group", "date_registered", "id"])
        for statement in SQLITE:
            connection.exec_driver_sql(statement)
        return
    # with more of a group a B-tree may refuse the row
    op.create_index("ix_objects_group", "objects", [sa.text('substr("group", 1, 200)'), "date_registered", "id"])
    op.execute("CREATE INDEX ix_objects_metadata ON objects USING gin ((metadata::jsonb) jsonb_path_ops)")
    try:
        with connection.begin_nested():
            connection.exec_driver_sql("CREATE EXTENSION IF NOT EXISTS pg_trgm")
            connection.exec_driver_sql("CREATE INDEX ix_objects_name ON objects USING gin (filename gin_trgm_ops)")
    except sa.exc.DBAPIError as exc:
        log.warning("no index of pieces of names: pg_trgm is not available to this user", error=str(exc.orig))


def downgrade() -> None:
    """Drop them, and make those that were replaced."""
    connection = op.get_bind()
    if connection.dialect.name == "sqlite":
        op.execute("DROP TRIGGER objects_metadata_insert")
        op.execute("DROP TRIGGER objects_metadata_update")
        op.drop_table("object_metadata")
    else:
        op.execute("DROP INDEX IF EXISTS ix_objects_name")
        op.drop_index("ix_objects_metadata", "objects")
    op.drop_index("ix_transfers_result", "transfers")
    for name in (*NEW, "ix_objects_group"):
        op.drop_index(name, "objects")
    op.create_index("ix_objects_filename", "objects", ["filename"])
    op.create_index("ix_objects_group", "objects", ["group"], postgresql_using="hash")
    op.create_index("ix_objects_machine", "objects", ["machine", "status"])
