"""How much of each kind of blocking work runs at once. A machine that hangs, a name server that is silent or a client
that does not read takes only what is set aside for it, so nobody else waits for it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

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
from datamanager.machines import Machine, Machines, TransportKind

T = TypeVar("T")

READERS = 10
WRITERS = 8
STREAMS = 8
LOGINS = 3
ISSUER = 4
NAMES = 16
PREFECT = 4

LOOK_PATIENCE = 5.0
"""Seconds after which slots for short work count as hanging when none was released."""
WORK_PATIENCE = 300.0
"""The same for work that takes as long as files are large: hashing, walking a tree."""
SHARE = 0.005
"""Seconds that a look at this host's files waits for a thread that is at others: most are system calls of 0.1 ms."""


@dataclass(eq=False, slots=True)
class _Piece:
    """Work that waits for a thread, who waits for it, and since when (monotonic)."""

    work: Callable[[], Any]
    done: asyncio.Future[Any]
    since: float
    context: Context = field(default_factory=copy_context)
    begun: bool = False


class Slots:
    """Threads for one kind of blocking work, at most so many, which do it in the order of requests. Belongs to one
    event loop.

    Where `share` is not 0, work is done by a thread that is there already if that comes to it within so many seconds:
    to wake a thread for each of many short pieces, all of which want the interpreter, takes longer than they do.

    Work that no thread has taken waits without one; once none was released for `patience` seconds, `hanging` makes the
    error that those who wait get.
    """

    def __init__(self, most: int, patience: float, hanging: Callable[[], DataManagerError], share: float = 0.0) -> None:
        self._most = most
        self._patience = patience
        self._hanging = hanging
        self._share = share
        self._released = -math.inf
        self._waiting: deque[_Piece] = deque()
        self._threads = set[asyncio.Task[None]]()
        self._spreading: asyncio.TimerHandle | None = None

    async def run(self, work: Callable[[], T]) -> T:
        """Run `work` in a thread. Raises: what `hanging` makes; what `work` raises."""
        loop = asyncio.get_running_loop()
        piece = _Piece(work, loop.create_future(), time.monotonic())
        self._waiting.append(piece)
        if not (self._threads and self._share):
            self._start(loop)
        elif self._spreading is None:
            self._spreading = loop.call_later(self._share, self._spread, loop)
        watching = loop.call_later(self._patience, self._watch, loop, piece)
        try:
            result: T = await piece.done  # a caller that is cancelled takes what no thread has begun back
        finally:
            watching.cancel()
        return result

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if len(self._threads) < self._most:
            # these slots are the limit; of the request that has come just now nothing belongs to the thread
            serving = run_sync(self._serve, loop, limiter=CapacityLimiter(1))
            thread = asyncio.create_task(serving, context=Context())
            self._threads.add(thread)
            thread.add_done_callback(partial(self._ended, loop))

    def _ended(self, loop: asyncio.AbstractEventLoop, thread: asyncio.Task[None]) -> None:
        self._threads.discard(thread)
        if self._waiting and not thread.cancelled():  # it came when the thread had just seen that nothing waits
            self._start(loop)

    def _spread(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin another thread if those that are at work leave what waits."""
        self._spreading = None
        with suppress(IndexError):  # another thread takes it
            late = self._waiting[0].since + self._share
            if late <= time.monotonic():
                self._start(loop)
                late = time.monotonic() + self._share
            if len(self._threads) < self._most:
                self._spreading = loop.call_at(loop.time() + late - time.monotonic(), self._spread, loop)

    def _watch(self, loop: asyncio.AbstractEventLoop, piece: _Piece) -> None:
        if piece.begun or piece.done.done():
            return
        if time.monotonic() - self._released >= self._patience:
            piece.done.set_exception(self._hanging())
        else:
            loop.call_later(self._patience, self._watch, loop, piece)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Do what waits, in a thread, until nothing does."""
        while True:
            try:
                piece = self._waiting.popleft()
            except IndexError:
                return
            if piece.done.done():
                continue  # its caller has gone
            piece.begun = True
            value, error = None, None
            try:
                value = piece.context.run(piece.work)
            except BaseException as exc:  # noqa: BLE001  # whatever it is, who waits gets it
                error = exc
            self._released = time.monotonic()
            with suppress(RuntimeError):  # the loop was closed meanwhile
                loop.call_soon_threadsafe(_tell, piece.done, value, error)


def _tell(done: asyncio.Future[Any], value: object, error: BaseException | None) -> None:
    if done.done():
        return  # its caller has gone
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(value)


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

        def slots(most: int, patience: float, share: float = 0.0) -> Slots:
            why = f"machine {machine.name} does not answer: {most} requests wait for it already"
            return Slots(most, patience, lambda: MachineUnavailable(why), share)

        half, here = max(1, machine.max_connections // 2), machine.transport is TransportKind.LOCAL
        return cls(slots(half, LOOK_PATIENCE, SHARE if here else 0.0), slots(half, WORK_PATIENCE))


@dataclass(frozen=True, slots=True)
class ThreadLimits:
    """What runs at once. Readers, writers, streams and logins together are less than the database's connections."""

    readers: CapacityLimiter
    writers: CapacityLimiter
    streams: CapacityLimiter
    """Pieces of streams that are read."""
    logins: CapacityLimiter
    """Look-ups of service tokens."""
    issuer: Slots
    """Bearer tokens that are verified: now and then the keys of their issuer are fetched."""
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
            CapacityLimiter(LOGINS),
            Slots(ISSUER, LOOK_PATIENCE, lambda: ServerBusy("the OIDC issuer does not answer"), SHARE),
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
