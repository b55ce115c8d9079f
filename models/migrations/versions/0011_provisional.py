"""Objects whose place is provisional: nobody has looked yet whether it is another object's file."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011_provisional"
down_revision = "0010_fair_share"


def upgrade() -> None:
    """Add the mark. Objects of which nothing was proved may have been registered while their machine was away."""
    op.add_column("objects", sa.Column("provisional", sa.Boolean(), server_default=sa.false(), nullable=False))
    objects = sa.table("objects", sa.column("provisional", sa.Boolean()), sa.column("verified", sa.String()))
    op.execute(objects.update().where(objects.c.verified == "none").values(provisional=sa.true()))


def downgrade() -> None:
    """Drop it: every place counts as settled."""
    op.drop_column("objects", "provisional")
