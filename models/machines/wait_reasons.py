"""Why queued transfers wait: what `waiting_for` of a task says. Only reads, and only the catalogue.

The words are stable, times are RFC 3339: `resume`, `not_before 2026-…`, `retry at 2026-…`, `machine NAME: drained since
2026-…`, `machine NAME: unreachable since 2026-…`, `machine NAME: its limit of N transfers is reached`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from uuid import UUID

from sqlalchemy.orm import Session

from datamanager.domain.states import TransferStatus
from datamanager.machines import Machines
from models.database import now
from models.machines import health, limits
from models.tables import Transfer
from models.transfers import queue


def reasons(session: Session, machines: Machines, rows: Collection[Transfer]) -> dict[UUID, str]:
    """Say what each of these transfers waits for. One that a mover may take now, or has taken, is not named."""
    waiting = [row for row in rows if row.status == TransferStatus.QUEUED.value and row.owner is None]
    if not waiting:
        return {}
    time, bars = now(session), _bars(session, machines)
    found = {row.id: _reason(row, time, bars) for row in waiting}
    return {transfer: reason for transfer, reason in found.items() if reason is not None}


def _reason(row: Transfer, time: datetime, bars: Mapping[str, str]) -> str | None:
    if row.paused:
        return "resume"
    if row.not_before is not None and row.not_before > time:
        return f"not_before {_text(row.not_before)}"
    if found := [f"machine {name}: {bars[name]}" for name in sorted(limits.ends(row)) if name in bars]:
        return "; ".join(found)
    return f"retry at {_text(row.retry_at)}" if row.retry_at is not None and row.retry_at > time else None


def _bars(session: Session, machines: Machines) -> dict[str, str]:
    """Return why transfers of machines are not taken now, by machine."""
    in_force = limits.current(session, machines)
    most = {name: limit.max_transfers for name, limit in in_force.items() if limit.max_transfers is not None}
    held = queue.held_by_machine(session, most)
    bars = {name: f"its limit of {cap} transfers is reached" for name, cap in most.items() if held[name] >= cap}
    for name, state in health.current(session).items():
        if state.drained is not None:
            bars[name] = f"drained since {_text(state.drained)}"
        elif state.circuit is not None:
            bars[name] = f"unreachable since {_text(state.circuit.opened)}"
    return bars


def _text(time: datetime) -> str:
    return f"{time:%Y-%m-%dT%H:%M:%SZ}"
