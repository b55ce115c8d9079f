"""Bundles of tape archives: asked for before they are read, and waited for without holding anything.

An archive's `stage_poll` says whether a bundle can be read; `stage_command` asks for it, once a transfer. While bundles
are on their way the transfer waits in the queue, with no slot and no connection, and looks again after `stage_every`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta

from datamanager.domain.location import Place
from datamanager.engine.path_confinement import confined
from datamanager.errors import RemoteFailure, Staging
from datamanager.machines import Machine
from flows.runtime.transfer_run import TransferRun
from models.batches import results as batch_results
from models.tables import TransferItem
from models.transfers import queue


def split(
    run: TransferRun, groups: Sequence[Sequence[int]], rows: Sequence[TransferItem]
) -> tuple[list[Sequence[int]], float]:
    """Return the groups of items whose bundles can be read now, and in how many seconds the others are to be looked at
    again (0: there are no others). Asks for those that can't be read, once. Blocks.

    Raises: RemoteFailure when a program can't be run, or refuses; what the transports raise.
    """
    by_number = {row.number: row for row in rows}
    online: dict[Place, bool] = {}
    here, again = list[Sequence[int]](), 0.0
    for group in groups:
        bundle = batch_results.source(by_number[group[0]])
        if bundle.machine not in run.parts.machines:
            here.append(group)  # its items fail alone
            continue
        machine = run.parts.machines[bundle.machine]
        if bundle not in online:
            online[bundle] = not machine.stage_poll or _is_online(run, machine, bundle)
        if online[bundle]:
            here.append(group)
        else:
            again = min(again or machine.stage_every, machine.stage_every)
    return here, again


def waiting(seconds: float) -> Staging:
    """Return what a transfer ends its attempt with when bundles are still on their way."""
    return Staging("the archive is staging bundles from tape", timedelta(seconds=seconds))


def _is_online(run: TransferRun, machine: Machine, bundle: Place) -> bool:
    asked: Mapping[str, bool] = run.row.notes.get("staged", {})
    with run.storage(machine.name).session() as session:
        path = confined(session, machine, bundle.path)
        if session.programs.run(_words(machine.stage_poll, path), run.control.watch) == 0:
            return True
        if machine.stage_command and str(bundle) not in asked:
            status = session.programs.run(_words(machine.stage_command, path), run.control.watch)
            if status != 0:
                raise RemoteFailure(f"{machine.name}: {machine.stage_command[0]} ended with {status} for {bundle}")
            run.log.info("%s: requested %s", machine.name, bundle.path)
            asked = {**asked, str(bundle): True}
            run.write_now(queue.remember, staged=asked)
            run.row.notes = {**run.row.notes, "staged": asked}
    return False


def _words(words: Sequence[str], path: str) -> list[str]:
    return [word.replace("{path}", path) for word in words]
