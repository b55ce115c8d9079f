"""Machines' health: which are drained, and which could not be reached so often that their transfers wait.

FAILURES failures in a row to connect to a machine, over all movers, open its circuit: its transfers are not taken any
more, they wait in the queue and burn no attempts. After a pause one mover probes the machine; an answer closes the
circuit, silence makes the next pause twice as long. A refused login or host key is no such failure: it needs an
operator, and the machine did answer. All times are the database's clock.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, or_, select, update
from sqlalchemy.orm import Session

from datamanager.domain.states import TransferStatus
from datamanager.errors import MachineUnavailable
from models.database import affected, insert_if_free, now, wake
from models.tables import MachineHealth, Transfer
from models.transfers import outcomes, queue

FAILURES = 3
"""Failures in a row that open a circuit."""
PAUSE, PAUSE_MAX = timedelta(seconds=5), timedelta(minutes=5)
"""From a failure to the next probe: the first pause, and the longest one; each is jittered by a quarter."""
PROBE_WITHIN = timedelta(seconds=60)
"""How long one mover may take for a probe; then another one makes it."""


@dataclass(frozen=True, slots=True)
class OpenCircuit:
    """An open circuit: since when, how many failures in a row there were, and when the machine is probed next."""

    opened: datetime
    failures: int
    until: datetime


@dataclass(frozen=True, slots=True)
class Health:
    """A machine's health. `drained`: since when its transfers are not taken; `circuit`: None while it is closed."""

    drained: datetime | None = None
    circuit: OpenCircuit | None = None


@dataclass(frozen=True, slots=True)
class Probe:
    """A mover's right to probe a machine, and the epoch that its finding must name."""

    machine: str
    epoch: int


WELL = Health()


def current(session: Session) -> dict[str, Health]:
    """Return the health of the machines that anything is known of; the others are WELL."""
    return {row.name: _health_of(row) for row in session.scalars(select(MachineHealth))}


def unavailable(session: Session) -> set[str]:
    """Return the machines whose transfers must not be taken: drained, or with an open circuit."""
    query = select(MachineHealth.name).where(_UNAVAILABLE)
    return set(session.scalars(query))


def require_open(session: Session, machines: Collection[str]) -> None:
    """Refuse what would have to wait for a machine. Raises: MachineUnavailable for the first that is unavailable."""
    query = select(MachineHealth).where(MachineHealth.name.in_(machines), _UNAVAILABLE).order_by(MachineHealth.name)
    row = session.scalar(query.limit(1))
    if row is not None:
        raise MachineUnavailable(_reason(row))


def unreachable_among(session: Session, machines: Collection[str]) -> set[str]:
    """Return which of the machines have an open circuit."""
    query = select(MachineHealth.name).where(MachineHealth.name.in_(machines), MachineHealth.opened.is_not(None))
    return set(session.scalars(query))


# --- what movers find -------------------------------------------------------------------------------------------------


def failed(session: Session, machine: str) -> None:
    """Count a failure to connect; the last of FAILURES in a row opens the circuit. Wants a writing session.

    While the circuit is open only probes count: what fails then was begun before.
    """
    row = _row(session, machine)
    if row.opened is None:
        _count(session, row)


def take_probes(session: Session, machines: Collection[str]) -> list[Probe]:
    """Take the probes that are due now of these machines: of every one whose last word was a failure.

    Nobody else gets one within PROBE_WITHIN. Wants a writing session; `probe_is_due` says whether it is worth one.
    """
    time = now(session)
    query = select(MachineHealth).where(*_due(time, machines)).with_for_update(skip_locked=True)
    probes = []
    for row in session.scalars(query):
        row.epoch += 1
        row.probe_at = time + PROBE_WITHIN
        probes.append(Probe(row.name, row.epoch))
    return probes


def probe_is_due(session: Session, machines: Collection[str]) -> bool:
    """Say whether there is a probe to take: a look that needs no writing transaction."""
    return session.scalar(select(MachineHealth.name).where(*_due(now(session), machines)).limit(1)) is not None


def probed(session: Session, probe: Probe, *, answered: bool) -> bool:
    """Note what a probe found; an answer closes the circuit and wakes the queue. Wants a writing session.

    Return False, and change nothing, when the probe has become another mover's.
    """
    if answered:
        closed = {"failures": 0, "opened": None, "probe_at": None}
        mine = update(MachineHealth).where(MachineHealth.name == probe.machine, MachineHealth.epoch == probe.epoch)
        if affected(session, mine.values(**closed)) == 0:
            return False
        wake(session, "queued")
        return True
    row = _row(session, probe.machine)
    if row.epoch != probe.epoch:
        return False
    _count(session, row)
    return True


def refuse_waiting(session: Session, owner: str, lease: timedelta) -> list[Transfer]:
    """End the transfers at unavailable machines that were not begun and whose clients wait for the answer; return them.

    They were accepted while the machine was well: the client gets the error at once. Wants a writing session;
    `somebody_waits` says whether it is worth one.
    """
    refused = []
    for row in session.scalars(_waited_for(session)).all():
        for hold in queue.take(session, owner, lease, 1, only=row.id):
            outcomes.fail(session, hold, MachineUnavailable(_why(session, row)))
            refused.append(row)
    return refused


def somebody_waits(session: Session) -> bool:
    """Say whether `refuse_waiting` has anything to do: a look that needs no writing transaction."""
    return session.scalar(_waited_for(session).limit(1)) is not None


# --- what operators say -----------------------------------------------------------------------------------------------


def drain(session: Session, machine: str) -> Health:
    """Drain a machine until `undrain`; those that run continue. Idempotent. Wants a writing session."""
    row = _row(session, machine)
    row.drained = row.drained or now(session)
    return _health_of(row)


def undrain(session: Session, machine: str) -> Health:
    """Let a machine's transfers be taken again. Movers are notified. Idempotent. Wants a writing session."""
    row = _row(session, machine)
    row.drained = None
    wake(session, "queued")
    return _health_of(row)


# --- rows -------------------------------------------------------------------------------------------------------------

_UNAVAILABLE = or_(MachineHealth.drained.is_not(None), MachineHealth.opened.is_not(None))


def _row(session: Session, machine: str) -> MachineHealth:
    """Return the machine's row, locked; it is made where there is none."""
    insert_if_free(session, MachineHealth, {"name": machine, "failures": 0, "epoch": 0})
    return session.get_one(MachineHealth, machine, with_for_update=True, populate_existing=True)


def _count(session: Session, row: MachineHealth) -> None:
    time = now(session)
    row.failures += 1
    if row.failures >= FAILURES:
        row.opened = row.opened or time
    row.probe_at = time + _pause(row.failures)


def _pause(failures: int) -> timedelta:
    doubled = PAUSE * (1 << min(max(0, failures - FAILURES), 10))
    return min(doubled, PAUSE_MAX) * random.uniform(0.75, 1.25)  # noqa: S311 - so that movers don't all come at once


def _due(time: datetime, machines: Collection[str]) -> tuple[ColumnElement[bool], ...]:
    return MachineHealth.name.in_(machines), MachineHealth.failures > 0, MachineHealth.probe_at <= time


def _waited_for(session: Session) -> Select[Transfer]:
    machines = unavailable(session)
    at = or_(Transfer.source_machine.in_(machines), Transfer.destination_machine.in_(machines))
    untouched = (Transfer.owner.is_(None), Transfer.attempts == 0, Transfer.status == TransferStatus.QUEUED.value)
    return select(Transfer).where(Transfer.ended.is_(None), *untouched, Transfer.fail_fast, at)


def _why(session: Session, transfer: Transfer) -> str:
    ends = [name for name in (transfer.source_machine, transfer.destination_machine) if name is not None]
    rows = session.scalars(select(MachineHealth).where(MachineHealth.name.in_(ends), _UNAVAILABLE))
    return "; ".join(_reason(row) for row in rows)


def _reason(row: MachineHealth) -> str:
    if row.drained is not None:
        return f"{row.name}: an operator has drained it; nothing was changed"
    return f"{row.name}: it could not be reached {row.failures} times in a row; nothing was changed"


def _health_of(row: MachineHealth) -> Health:
    circuit = None
    if row.opened is not None and row.probe_at is not None:
        circuit = OpenCircuit(row.opened, row.failures, row.probe_at)
    return Health(row.drained, circuit)
