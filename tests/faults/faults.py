"""The faults. Each strikes transfers that are under way, and brings back itself what it stopped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from datamanager.domain.states import TransferKind
from datamanager.errors import CatalogueUnavailable
from tests.faults.plant import LEASE, SCRATCH, STALL, Plant
from tests.faults.sshd import FarSshd
from tests.faults.trial import SMALL, Fault, Trial
from tests.support.amqp import client, put, take
from tests.support.process import Process, signal_each
from tests.support.programs import missing

AWAY = 20.0
"""Seconds that an SSH server is away."""
EXIT = 120.0
"""Seconds in which a mover that is asked to stop must have ended."""


def kill_mover(trial: Trial) -> None:
    """A mover that has a transfer is killed at once."""
    mover = _a_mover(trial)
    os.kill(mover.pid, signal.SIGKILL)
    _gone(mover)


def terminate_mover(trial: Trial) -> None:
    """A mover that has a transfer is asked to stop: it hands its work back."""
    mover = _a_mover(trial)
    os.kill(mover.pid, signal.SIGTERM)
    _gone(mover)


def kill_api(trial: Trial) -> None:
    """The API is killed and started again."""
    trial.plant.service.kill_api()
    trial.plant.service.api.kill()
    trial.plant.service.api.start()


def restart_broker(trial: Trial) -> None:
    """RabbitMQ is stopped and started."""
    node = trial.plant.parts.rabbitmq
    node.stop()
    try:
        time.sleep(trial.chance.uniform(0, 3))
    finally:
        node.start()


def restart_prefect(trial: Trial) -> None:
    """The Prefect server is killed and started again."""
    server = trial.plant.parts.prefect
    server.kill()
    try:
        time.sleep(trial.chance.uniform(0, 3))
    finally:
        server.start()


def restart_database(trial: Trial) -> None:
    """PostgreSQL is stopped, or killed, and started again."""
    kill = trial.chance.random() < 0.5
    trial.say("it is killed" if kill else "it is stopped")
    trial.plant.parts.restart_database(kill)


def cut_connection(trial: Trial) -> None:
    """All connections to one of the two machines break."""
    side = _a_machine(trial)
    trial.say(f"{side.way.cut()} connections to {side.directory.name} are cut")


def stop_sshd(trial: Trial) -> None:
    """An SSH server and its sessions end; it is back after 20 s."""
    side = _a_machine(trial)
    trial.say(f"{side.directory.name} stops")
    side.stop()
    try:
        time.sleep(AWAY)
    finally:
        side.start()


def freeze_long(trial: Trial) -> None:
    """The sessions of a machine hang longer than a mover's patience, and then go on as if nothing had been."""
    _freeze(trial, STALL + trial.chance.uniform(2, 6))


def freeze_short(trial: Trial) -> None:
    """The sessions of a machine hang for less than a mover's patience."""
    _freeze(trial, STALL * trial.chance.uniform(0.2, 0.7))


def fill_destination(trial: Trial) -> None:
    """The destination's disk is full."""
    trial.plant.scratch.fill()
    try:
        time.sleep(8)
    finally:
        trial.plant.scratch.free()


def remove_permission(trial: Trial) -> None:
    """A directory, of the destinations or of the sources, may no longer be written."""
    cell = trial.cells[0]
    directory = trial.chance.choice([cell.destination.parent, cell.source.parent])
    if directory == cell.source.parent:
        trial.struck = [cell for cell in trial.cells if cell.kind is TransferKind.MOVE]  # nothing else is removed there
    trial.say(f"{directory} may not be written")
    directory.chmod(0o555)
    try:
        _wait_for_ends(trial, 45)
    finally:
        directory.chmod(0o755)


def change_source(trial: Trial) -> None:
    """The sources have other bytes from now on; a web server forgets what it was sending, too."""
    for cell in trial.cells:
        cell.change(trial.chance.randbytes(cell.size + trial.chance.choice([0, 1])))  # of the same length, or another
    if trial.chance.random() < 0.5:
        trial.say("the web server starts again")
        web = trial.plant.parts.web
        web.kill()
        web.start()


def deliver_again(trial: Trial) -> None:
    """The notifications of the transfers are delivered again, twice."""
    bodies = [_event("dm.transfer.requested", {"transfer": cell.task}) for cell in trial.cells] * 2
    asyncio.run(_put(trial.plant.amqp_url, bodies))


def ask_by_messages(trial: Trial) -> None:
    """Ask for the transfers by messages, each of which arrives twice; over HTTP in half of the runs."""
    if trial.chance.random() < 0.5:
        for cell in trial.cells:
            cell.request()
        return
    bodies = []
    for cell in trial.cells:
        fields = {**cell.fields, "uuid": cell.uuid} if cell.uuid else cell.fields
        bodies += [_event(f"dm.request.{cell.kind}", fields, id=cell.path)] * 2
    answers = asyncio.run(_ask(trial.plant.amqp_url, bodies))
    for cell in trial.cells:
        tasks = {answer["data"].get("task") for answer in answers if answer["data"]["request"]["id"] == cell.path}
        trial.say(f"{cell.name} by two messages: {tasks}")
        assert len(tasks) == 1, f"one request that arrived twice was answered differently: {answers}"
        cell.task = str(tasks.pop())


def two_movers(trial: Trial) -> None:
    """A mover hangs until another one has its transfers, and goes on as if nothing had been."""
    mover = _a_mover(trial)
    signal_each([mover.pid], signal.SIGSTOP)
    try:
        time.sleep(LEASE + trial.chance.uniform(1, 4))
    finally:
        os.kill(mover.pid, signal.SIGCONT)


def step_clock(trial: Trial) -> None:
    """A mover's clock jumps, by an hour at most, forwards or backwards."""
    mover = _a_mover(trial)
    step = trial.chance.choice([-1, 1]) * trial.chance.uniform(5, 3600)
    trial.say(f"its clock jumps by {step:.0f} s")
    _clock(trial.plant, trial.plant.movers.index(mover)).write_text(f"{step:+.3f}\n")


def fill_catalogue(trial: Trial) -> None:
    """The catalogue's disk is full for a while: nothing gets a name that the catalogue can't be told of."""
    disk = trial.plant.catalogue_disk
    assert disk is not None
    disk.fill()
    try:
        unrecorded = [cell for cell in trial.cells if "intent" not in cell.row().notes]
        deadline = time.monotonic() + trial.chance.uniform(3, 10)
        while time.monotonic() < deadline:
            for cell in unrecorded:
                # a commit may still find room in the log, so the record is asked for, not the disk
                with contextlib.suppress(CatalogueUnavailable):
                    if cell.destination.exists() and "intent" not in cell.row().notes:
                        cell.seen.append("it was published, and the catalogue could not be told before")
            time.sleep(0.1)
    finally:
        disk.free()


@contextmanager
def false_clocks(plant: Plant) -> Iterator[None]:
    """Run each mover under a clock of its own, right at first."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        missing("libfaketime is not installed")
    patch = str(Path(__file__).with_name("false_clock"))  # what is wrong with the library, put right

    def variables(number: int) -> dict[str, str]:
        _clock(plant, number).write_text("+0\n")
        return {
            "LD_PRELOAD": str(library),
            "FAKETIME_TIMESTAMP_FILE": str(_clock(plant, number)),
            "FAKETIME_CACHE_DURATION": "1",  # seconds between two looks at that file
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",  # no step of the clock moves that one
            "PYTHONPATH": os.pathsep.join([patch, os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        }

    with plant.movers_with(variables):
        yield


FAULTS = [
    Fault("mover killed", kill_mover),
    Fault("mover terminated", terminate_mover),
    Fault("API killed", kill_api),
    Fault("RabbitMQ stopped and started", restart_broker),
    Fault("Prefect server killed and restarted", restart_prefect),
    Fault("PostgreSQL restarted", restart_database),
    Fault("connection cut", cut_connection),
    Fault("sshd stopped for 20 s", stop_sshd),
    Fault("peer frozen for long", freeze_long),
    Fault("peer frozen for a moment", freeze_short),
    Fault("destination full", fill_destination, may=frozenset({"no_space"}), machine=SCRATCH, sizes=(SMALL,)),
    Fault(
        "permission removed",
        remove_permission,
        may=frozenset({"permission_denied"}),
        move_may=frozenset({"source_not_removed"}),
    ),
    Fault(
        "source changed",
        change_source,
        may=frozenset({"source_changed"}),
        move_may=frozenset({"source_not_removed"}),
    ),
    Fault("message delivered twice", deliver_again, begin=ask_by_messages),
    Fault("two movers on one transfer", two_movers),
    Fault("clock step of a mover", step_clock, around=false_clocks),
]

OF_SHARED_RUNS = {
    "mover killed",
    "mover terminated",
    "Prefect server killed and restarted",
    "PostgreSQL restarted",
    "connection cut",
    "destination full",
    "permission removed",
    "source changed",
    "two movers on one transfer",
}
"""The faults of those that shared runs meet as well: the others are the same for them, or met after this one."""

CATALOGUE_FULL = Fault("catalogue's disk full, then freed", fill_catalogue)
"""For a plant whose catalogue is on a small disk."""


def _a_mover(trial: Trial) -> Process:
    """Return the mover that has the most of the transfers; any one when none has."""
    held = trial.held()
    if not held:
        mover = trial.chance.choice(trial.plant.movers)
        trial.say(f"mover {mover.log.stem} ({mover.pid}), which has none of them")
        return mover
    owner = max(sorted(held), key=lambda name: len(held[name]))
    mover, trial.struck = trial.plant.service.holder(owner), held[owner]
    trial.say(f"mover {mover.log.stem} ({mover.pid}), which has {', '.join(cell.name for cell in trial.struck)}")
    return mover


def _a_machine(trial: Trial) -> FarSshd:
    """Return one of the two machines, more often the one that all transfers use."""
    [side] = trial.chance.choices([trial.plant.source, trial.plant.destination], weights=[1, 2])
    if side is trial.plant.source:
        trial.struck = [cell for cell in trial.cells if cell.kind is not TransferKind.GETEXTERNAL]
    return side


def _gone(mover: Process) -> None:
    deadline = time.monotonic() + EXIT
    while mover.running:
        assert time.monotonic() < deadline, f"the mover does not end:\n{mover.tail()}"
        time.sleep(0.02)


def _freeze(trial: Trial, seconds: float) -> None:
    side = _a_machine(trial)
    trial.say(f"{side.directory.name} hangs for {seconds:.1f} s")
    trial.say(f"{side.freeze(seconds)} processes hung")


def _wait_for_ends(trial: Trial, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(cell.row().ended is None for cell in trial.cells):
        time.sleep(0.1)


def _event(kind: str, data: object, **attributes: str) -> bytes:
    event = {"specversion": "1.0", "id": str(uuid4()), "source": "/faults", "type": kind, "data": data, **attributes}
    return json.dumps(event).encode()


async def _put(url: str, bodies: list[bytes]) -> None:
    async with client(url) as channel:
        for body in bodies:
            await put(channel, "dm.requests", body)


async def _ask(url: str, bodies: list[bytes]) -> list[dict[str, Any]]:
    async with client(url) as channel:
        await channel.declare_queue("dm-reply.faults", durable=True)
        for body in bodies:
            await put(channel, "dm.requests", body, reply_to="dm-reply.faults")
        answers = await take(channel, "dm-reply.faults", len(bodies))
    return [json.loads(answer.body) for answer in answers]


def _clock(plant: Plant, number: int) -> Path:
    return plant.home / f"clock{number}"
