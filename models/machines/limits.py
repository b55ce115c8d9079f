"""Limits in force: what machines.toml says, unless it was changed since; and what one transfer may use.

A change holds until it is set back, also over restarts. Movers read it all again and again, so it holds for transfers
under way too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from datamanager.domain.limits import NO_LIMIT, Limits
from datamanager.machines import Machine, Machines
from models.access.visibility import ALL, Visible
from models.core.leases import movers_online
from models.database import insert_if_free, now, wake
from models.machines.health import unavailable
from models.tables import MachineLimit, Transfer
from models.transfers.lookup import get_transfer, lock_open_transfer

CHANGED = "limits"
"""What movers are woken with."""


@dataclass(frozen=True, slots=True)
class TransferPace:
    """How fast a transfer may be on this mover, in bytes per second: this mover's share of each of its machines'
    limits, and its request's own. None: no limit."""

    machines: dict[str, int | None]
    own: int | None


def current(session: Session, machines: Machines) -> dict[str, Limits]:
    """Return the limits in force of every configured machine."""
    changed = {row.name: row for row in session.scalars(select(MachineLimit))}
    return {name: _in_force(machine, changed.get(name)) for name, machine in machines.items()}


def caps(session: Session, machines: Machines) -> dict[str, int]:
    """Return how many transfers may run at once, for the machines that have such a limit: what `movers.take` wants.

    Of a machine that is drained or can't be reached none are taken.
    """
    found = current(session, machines)
    most = {name: limits.max_transfers for name, limits in found.items() if limits.max_transfers is not None}
    return most | dict.fromkeys(unavailable(session), 0)


def pace(session: Session, machines: Machines, transfer: UUID, touched: Iterable[str]) -> TransferPace:
    """Return how fast a transfer may be that touches these machines (of a single one: `ends`).

    The movers that are online share a machine's limit evenly. Raises: TaskNotFound.
    """
    movers = max(1, len(movers_online(session)))
    found = current(session, machines)
    shares = {name: share(found[name].bandwidth, movers) for name in touched if name in found}
    return TransferPace(shares, get_transfer(session, transfer, ALL).bandwidth)


def share(rate: int | None, movers: int) -> int | None:
    """Return one mover's part of a machine's bandwidth; never nothing."""
    return None if rate is None else max(1, rate // movers)


def ends(row: Transfer) -> set[str]:
    """Return the machines that a transfer touches."""
    return {name for name in (row.source_machine, row.destination_machine) if name is not None}


def change(session: Session, machine: Machine, *, bandwidth: int | None, max_transfers: int | None) -> Limits:
    """Change a machine's limits until they are set back; return those in force. Movers are notified.

    None leaves a limit as it is, NO_LIMIT lifts it. Wants a writing session.
    """
    insert_if_free(session, MachineLimit, {"name": machine.name, "changed": now(session)})
    row = session.get_one(MachineLimit, machine.name, with_for_update=True, populate_existing=True)
    if bandwidth is not None:
        row.bandwidth = bandwidth
    if max_transfers is not None:
        row.max_transfers = max_transfers
    row.changed = now(session)
    wake(session, CHANGED)
    return _in_force(machine, row)


def reset(session: Session, machine: Machine) -> Limits:
    """Set a machine's limits back to what machines.toml says, and return those. Movers are notified. Idempotent."""
    session.execute(delete(MachineLimit).where(MachineLimit.name == machine.name))
    wake(session, CHANGED)
    return _in_force(machine, None)


def change_transfer(session: Session, transfer: UUID, bandwidth: int | None, visible: Visible) -> Transfer:
    """Change a transfer's own limit, in bytes per second; None lifts it. Wants a writing session.

    Raises: TaskEnded, nothing is changed then; what `get_transfer` raises.
    """
    row = lock_open_transfer(session, transfer, visible)
    row.bandwidth = bandwidth
    wake(session, CHANGED)
    return row


def _in_force(machine: Machine, changed: MachineLimit | None) -> Limits:
    if changed is None:
        return Limits(machine.bandwidth, machine.max_transfers)
    return Limits(
        _effective(changed.bandwidth, machine.bandwidth),
        _effective(changed.max_transfers, machine.max_transfers),
        changed.changed,
    )


def _effective(changed: int | None, configured: int | None) -> int | None:
    if changed is None:
        return configured
    return None if changed == NO_LIMIT else changed
