"""What the catalogue knows of machines."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.tables.base import Base, MachineName


class MachineLimit(Base):
    """Limits of a machine that were changed while running; they stand above machines.toml until they are set back.

    Null: what machines.toml says; 0: no limit.
    """

    __tablename__ = "machine_limits"

    name: Mapped[str] = mapped_column(MachineName, primary_key=True)
    bandwidth: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes per second, all transfers of the machine together."""
    max_transfers: Mapped[int | None] = mapped_column(Integer)
    changed: Mapped[datetime]


class MachineHealth(Base):
    """What movers found of a machine, and whether an operator has drained it (see `models.machines.health`)."""

    __tablename__ = "machine_health"

    name: Mapped[str] = mapped_column(MachineName, primary_key=True)
    drained: Mapped[datetime | None]
    """Since when its transfers are held back; null: they are not."""
    failures: Mapped[int] = mapped_column(Integer, default=0)
    """To connect, in a row."""
    opened: Mapped[datetime | None]
    """Since when its circuit is open; null: it is closed."""
    probe_at: Mapped[datetime | None]
    """When a mover may probe it next; null: there is no need."""
    epoch: Mapped[int] = mapped_column(Integer, default=0)
    """Of the last probe that was taken; who notes its finding names it."""


class MachineSeen(Base):
    """The base_dir that a machine had when the catalogue was last used; a change with objects there stops the start."""

    __tablename__ = "machines_seen"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    base_dir: Mapped[str] = mapped_column(Text)
