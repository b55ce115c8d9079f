"""What passes through large tables stays quick to find: marks under way by an index, the rest by an early vacuum."""

from __future__ import annotations

from alembic import op

from models.migrations.columns import create_partial_index

revision = "0016_housekeeping"
down_revision = "0015_rollups"

VACUUMED = ("transfers", "outbox")
SETTINGS = {"autovacuum_vacuum_scale_factor": "0.01", "vacuum_index_cleanup": "on"}


def upgrade() -> None:
    """Make the index; have PostgreSQL vacuum early (docs/adr/0022-rows-are-deleted.md)."""
    under_way = "closed IS NULL AND transfer_id IS NOT NULL"
    create_partial_index("ix_retention_marks_under_way", "retention_marks", ["id"], under_way)
    _alter(f"SET ({', '.join(f'{name} = {value}' for name, value in SETTINGS.items())})")


def downgrade() -> None:
    """Drop it; leave vacuuming to the server's settings."""
    op.drop_index("ix_retention_marks_under_way", "retention_marks")
    _alter(f"RESET ({', '.join(SETTINGS)})")


def _alter(what: str) -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table in VACUUMED:
            op.execute(f"ALTER TABLE {table} {what}")
