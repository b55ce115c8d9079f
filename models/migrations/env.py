"""Alembic's entry: runs the migrations on the connection, and in the transaction, that `models.migrate` gives it."""

from __future__ import annotations

from alembic import context

from models.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,  # SQLite alters a table by making it anew
)
context.run_migrations()
