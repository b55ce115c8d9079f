"""What a machine does not keep of an object's file."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012_not_kept"
down_revision = "0011_provisional"


def upgrade() -> None:
    """Add the column."""
    op.add_column("objects", sa.Column("not_kept", sa.JSON(), nullable=True))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("objects", "not_kept")
