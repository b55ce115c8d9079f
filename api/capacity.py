"""How much of each kind of blocking work runs at once. A machine that hangs, a name server that is silent or a client
that does not read takes only what is set aside for it, so nobody else waits for it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from starlette.types import Scope

from datamanager.errors import (
    DataManagerError,
    MachineUnavailable,
    OrchestratorUnavailable,
    ServerBusy,
    TooManyStreams,
)
from datamanager.machines import Machine, Machines

T = TypeVar("T")

READERS = 10
WRITERS = 8
STREAMS = 8
NAMES = 16
PREFECT = 4

LOOK_PATIENCE = 5.0
"""Seconds after which slots for short work count as hanging when none was released."""
WORK_PATIENCE = 300.0
"""The same for work that takes as long as files are large: hashing, walking a tree."""


class Slots:
    """Slots for one kind of blocking work, given in the order of requests. Belongs to one event loop.

    Who finds no free one waits without a thread; once none was released for `patience` seconds, `hanging` makes the
    error that those who wait get.
    """

    def __init__(self, most: int, patience: float, hanging: Callable[[], DataManagerError]) -> None:
        self._free = most
        self._patience = patience
        self._hanging = hanging
        self._released = -math.inf
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread. Raises: what `hanging` makes; what `work` raises."""
        async with self._acquired():
            return await run_sync(work, limiter=CapacityLimiter(1))  # these slots are the limit

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[None]:
        if self._free:
            self._free -= 1
        else:
            await self._wait()
        try:
            yield
        finally:
            self._release()

    async def _wait(self) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            while not (await asyncio.wait({turn}, timeout=self._patience))[0]:
                if time.monotonic() - self._released >= self._patience:
                    raise self._hanging()
        except BaseException:  # a cancelled caller, too, must not keep a place in the queue
            if turn.done():
                self._release()  # it was given in this moment
            else:
                self._waiting.remove(turn)
            raise

    def _release(self) -> None:
        self._released = time.monotonic()
        if self._waiting:
            self._waiting.popleft().set_result(None)
        else:
            self._free += 1


@dataclass(frozen=True, slots=True)
class MachineSlots:
    """Work on one machine: short looks, and what takes long. Together they need no more sessions than it allows, so
    that nobody waits for a session in a thread.
    """

    looks: Slots
    work: Slots

    @classmethod
    def of(cls, machine: Machine) -> MachineSlots:
        """Return the slots of a machine."""

        def slots(most: int, patience: float) -> Slots:
            why = f"machine {machine.name} does not answer: {most} requests wait for it already"
            return Slots(most, patience, lambda: MachineUnavailable(why))

        half = max(1, machine.max_connections // 2)
        return cls(slots(half, LOOK_PATIENCE), slots(half, WORK_PATIENCE))


@dataclass(frozen=True, slots=True)
class ThreadLimits:
    """What runs at once. Readers, writers and streams together are less than the database's connections."""

    readers: CapacityLimiter
    writers: CapacityLimiter
    streams: CapacityLimiter
    """Pieces of streams that are read."""
    names: Slots
    """Look-ups of hosts."""
    prefect: Slots
    machines: dict[str, MachineSlots]

    @classmethod
    def of(cls, machines: Machines) -> ThreadLimits:
        """Return the limits of a process with these machines."""
        return cls(
            CapacityLimiter(READERS),
            CapacityLimiter(WRITERS),
            CapacityLimiter(STREAMS),
            Slots(NAMES, LOOK_PATIENCE, lambda: ServerBusy("the name server does not answer")),
            Slots(PREFECT, LOOK_PATIENCE, lambda: OrchestratorUnavailable("the Prefect server does not answer")),
            {name: MachineSlots.of(machine) for name, machine in machines.items()},
        )


class ClientStreams:
    """The streams that are sent to each client's address, `most` at once. Belongs to one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way: Counter[str] = Counter()

    @contextmanager
    def of(self, scope: Scope) -> Iterator[None]:
        """Count a stream to the client of `scope` for the context. Raises: TooManyStreams."""
        client = str((scope.get("client") or ("",))[0])
        if self._under_way[client] >= self._most:
            what = f"{self._most} listings of all objects are sent to {client} already"
            raise TooManyStreams(f"{what}; read them first, or ask for pages (limit=1000)")
        self._under_way[client] += 1
        try:
            yield
        finally:
            self._under_way[client] -= 1
            if not self._under_way[client]:
                del self._under_way[client]
