"""A batch's items are counted by an index alone: clients ask for counts again and again while a batch is under way."""

from __future__ import annotations

from alembic import op

revision = "0017_item_counts"
down_revision = "0016_housekeeping"

NAME, TABLE = "ix_transfer_items_status", "transfer_items"
COLUMNS = ["transfer_id", "status", "number"]


def upgrade() -> None:
    """Make the index anew, with all that is counted."""
    op.drop_index(NAME, TABLE)
    op.create_index(NAME, TABLE, [*COLUMNS, "skipped"])


def downgrade() -> None:
    """Make it as it was."""
    op.drop_index(NAME, TABLE)
    op.create_index(NAME, TABLE, COLUMNS)
