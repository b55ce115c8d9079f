"""Copies are found by the first digits of their checksums: an index of these is a fifth of one of whole checksums, and
each new object changes a page of it that is chosen at random.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

from models.migrations.columns import create_partial_index

revision = "0018_checksum_keys"
down_revision = "0017_item_counts"

NAME, TABLE, CONDITION = "ix_objects_checksum", "objects", "checksum IS NOT NULL"


def upgrade() -> None:
    """Make the index anew."""
    _replace(sa.text("substr(checksum, 8, 8)"))


def downgrade() -> None:
    """Make it as it was."""
    _replace("checksum")


def _replace(column: Any) -> None:
    op.drop_index(NAME, TABLE)
    create_partial_index(NAME, TABLE, [column], CONDITION)
