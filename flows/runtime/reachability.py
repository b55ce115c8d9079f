"""Whether machines can be reached: probed when a transfer could not connect, and when a circuit may be closed again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection

from sqlalchemy.orm import Session

from datamanager.domain.states import TransferKind
from datamanager.errors import (
    ConnectionLost,
    DataManagerError,
    MachineUnavailable,
    NoLogin,
    PathMissing,
    TransportTimeout,
)
from datamanager.machines import TransportKind
from flows.runtime.services import Services
from flows.runtime.transfer_run import TransferRun
from models.database import write
from models.machines import health, limits
from models.transfers.items import machines_of

log = logging.getLogger(__name__)

ANSWER_WITHIN = 5.0
"""Seconds that a machine gets to answer when it is to be found out which of a transfer's machines is away."""


async def unreachable(parts: Services, machines: Collection[str], patience: float) -> set[str]:
    """Return which of the machines can't be reached: no connection, or no answer within `patience` seconds."""
    answers = {asyncio.ensure_future(asyncio.to_thread(_answers, parts, name)): name for name in machines}
    if not answers:
        return set()
    done, late = await asyncio.wait(answers, timeout=patience)
    return {answers[one] for one in late} | {answers[one] for one in done if not one.result()}


async def note_unreachable(run: TransferRun) -> None:
    """Count a failure to connect for the machine that is away, and let the transfer wait when its circuit is open.

    The error does not say which of two machines it was: both are probed. A transfer that a client waits for ends, and
    so do items of a batch between several machines: the others must not wait for one.
    """
    parts = run.parts
    touched = await asyncio.to_thread(_remote_machines, run)
    away = touched if len(touched) == 1 else await unreachable(parts, touched, ANSWER_WITHIN)

    def note(session: Session) -> set[str]:
        for machine in sorted(away):
            health.failed(session, machine)
        return health.unreachable_among(session, limits.ends(run.row))

    if away:
        run.machine_away = bool(await write(parts.database, note)) and not run.row.fail_fast


async def tell_missing_base_dirs(parts: Services) -> None:
    """Log, once, the remote machines whose base_dir is not there; machines that are away are passed by."""
    for name, machine in parts.machines.items():
        if machine.transport is TransportKind.SFTP and await asyncio.to_thread(_lacks_base_dir, parts, name):
            log.warning("machines.%s.base_dir: %s does not exist on the machine", name, machine.base_dir)


def _lacks_base_dir(parts: Services, machine: str) -> bool:
    try:
        with parts.storages.get(machine).session() as session:
            session.stat(parts.machines[machine].base_dir)
    except PathMissing:
        return True
    except DataManagerError:
        return False
    return False


def _answers(parts: Services, machine: str) -> bool:
    """Say whether a machine talks to us. One that refuses our login, or whose key changed, does: a person is needed."""
    try:
        try:
            with parts.storages.get(machine).session() as session:
                session.stat(parts.machines[machine].base_dir)
        except NoLogin:
            parts.storages.knock(machine)
    except (MachineUnavailable, ConnectionLost, TransportTimeout):
        return False
    except DataManagerError:
        return True
    return True


def _remote_machines(run: TransferRun) -> set[str]:
    machines = limits.ends(run.row)
    if TransferKind(run.row.kind).many:
        machines |= run.read(machines_of, run.transfer)
    configured = run.parts.machines
    return {name for name in machines if name in configured and configured[name].transport is TransportKind.SFTP}
