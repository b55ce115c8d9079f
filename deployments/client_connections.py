"""The API's connections: what a client may keep of the server without using it, and how many connections there are.

uvicorn by itself waits for ever for a request's head, for a body, and for a client that does not read its answer; and
`limit_concurrency` counts connections that do nothing, so that these shut everybody out. Here, once a second and with
the kernel's count of the bytes that came and that were acknowledged:

- a request's head must be complete `timeout` seconds after the connection began or the answer before was taken;
- of a body that is received, and of an answer that is sent, RATE bytes a second must move, or nothing for `timeout`
  seconds disconnects the client;
- one connection more than `most` takes the place of the one that has waited longest for a head or a body; where each
  has its request, it is answered 503;
- answers that wait in memory for their clients are OUTPUT_MAX bytes in all; beyond, the client goes that has taken
  nothing for longest.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import struct
from dataclasses import dataclass
from datetime import timedelta
from operator import itemgetter
from typing import Any, ClassVar

import structlog
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from api.http.middleware import request_id_of
from api.http.problems import problem_response
from datamanager.errors import ServerBusy
from deployments.http_protocol import ProblemProtocol

LOOK_EVERY = 1.0  # seconds
RATE = 500  # bytes a second; slower counts as nothing
OUTPUT_MAX = 2**27  # bytes
DESCRIPTORS = 128
"""Files that the process may need besides connections of clients; and for each machine:"""
DESCRIPTORS_PER_MACHINE = 32
BACKLOG = 512
"""Connections that are accepted in one turn of the event loop."""
IN_FLIGHT = 4
"""Turns of the loop from where a connection is accepted until the one that gives way to it is closed."""
_TCP_INFO = struct.Struct("120xQQ")
"""Of Linux's `struct tcp_info`: tcpi_bytes_acked and tcpi_bytes_received."""

log = structlog.get_logger(__name__)


def connections_allowed(wanted: int, machines: int) -> tuple[int, int]:
    """Return how many connections, of those `wanted`, the process may have beside the files that it needs itself, and
    how many it should accept at a time: they exist before they are counted. Raises the soft limit of descriptors as far
    as that takes and the hard one allows.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    own = DESCRIPTORS + DESCRIPTORS_PER_MACHINE * machines
    needed = own + wanted + IN_FLIGHT * BACKLOG
    if soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    left = max(soft - own, soft // 4)
    most = min(wanted, left // 2)
    return most, max(1, min(BACKLOG, (left - most) // IN_FLIGHT))


@dataclass(slots=True)
class Progress:
    """Since when a count of bytes has not grown by RATE bytes a second."""

    since: float
    count: int

    def standstill(self, now: float, count: int) -> float:
        """Note the present count; return for how many seconds it has not grown fast enough."""
        if count - self.count >= RATE * (now - self.since):
            self.since, self.count = now, count
        return now - self.since


class ClientConnection(ProblemProtocol):
    """A connection that is looked after. To be used through a class that `limited` made."""

    most: ClassVar[int]
    timeout: ClassVar[float]

    @classmethod
    def limited(cls, most: int, timeout: timedelta) -> type[ClientConnection]:
        """Return the class of a server's connections: at most so many, with this timeout."""
        return type("LimitedConnection", (cls,), {"most": most, "timeout": timeout.total_seconds()})

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._head_since = self.loop.time()
        self._input: Progress | None = None
        self._output: Progress | None = None
        self._look_timer: asyncio.TimerHandle | None = None
        self._cut = False
        self.beneath: asyncio.Transport | None = None
        """The transport that carries this one's, with TLS."""

    # --- what uvicorn and the event loop call ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to look after the connection; make room for it where there are too many."""
        super().connection_made(transport)
        self._look_timer = self.loop.call_later(LOOK_EVERY, self._look)
        if len(self._ours()) > self.most and not self._make_room():
            self.app = _busy
            log.warning("connections_exhausted", connections=self.most)

    def connection_lost(self, exc: Exception | None) -> None:
        """Look no more."""
        super().connection_lost(exc)
        if self._look_timer is not None:
            self._look_timer.cancel()

    def on_response_complete(self) -> None:
        """Wait for the next head."""
        self._head_since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        """Stop the answer until the client takes what is there; disconnect clients when all of that is too much."""
        super().pause_writing()
        ours = self._ours()
        while sum(one.unsent for one in ours) > OUTPUT_MAX:
            slowest = max(ours, key=lambda one: (one.stalled, one.unsent))
            slowest.disconnect("too many bytes wait for clients")

    # --- inside ------------------------------------------------------------------------------------------------------

    @property
    def unsent(self) -> int:
        """How many bytes wait in memory for the client."""
        beneath = 0 if self.beneath is None else self.beneath.get_write_buffer_size()
        return self.transport.get_write_buffer_size() + beneath

    @property
    def stalled(self) -> float:
        """For how many seconds the client has taken nothing of its answer; 0 as long as that may be chance."""
        seconds = 0.0 if self._output is None else self.loop.time() - self._output.since
        return seconds if seconds > 2 * LOOK_EVERY else 0.0

    @property
    def idle_since(self) -> tuple[bool, float] | None:
        """Since when a head (first) or a body is waited for; None while a request is answered."""
        if self.unsent:
            return None
        if self.cycle is None or self.cycle.response_complete:  # type: ignore[redundant-expr]
            return False, self._head_since
        return (True, self._head_since) if self.cycle.more_body else None

    def disconnect(self, why: str) -> None:
        """Cut the connection, with all that waits for the client."""
        log.warning("client_disconnected", why=why, client=self.client and self.client[0])
        self._cut = True
        self.transport.abort()

    def _look(self) -> None:
        why = self._objection(self.loop.time())
        if why is not None:
            self.disconnect(why)
        else:
            self._look_timer = self.loop.call_later(LOOK_EVERY, self._look)

    def _objection(self, now: float) -> str | None:
        """Say what the client has not done in time."""
        taken, received = self._bytes()
        if self.unsent:
            self._head_since = now  # the next request need not come before this answer is taken
            self._output = self._output or Progress(now, taken)
            if self._output.standstill(now, taken) >= self.timeout:
                return "takes no answer"
            return None
        self._output = None
        idle = self.idle_since
        if idle is None or self.flow.read_paused:
            self._input = None
            return None
        of_body, since = idle
        if not of_body:
            return "sends no head" if now - since >= self.timeout else None
        self._input = self._input or Progress(now, received)
        return "sends no body" if self._input.standstill(now, received) >= self.timeout else None

    def _bytes(self) -> tuple[int, int]:
        """Return how many bytes the client's host has acknowledged, and has sent."""
        info = self.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
        return _TCP_INFO.unpack(info)

    def _ours(self) -> list[ClientConnection]:
        """Return the connections of the server that were not cut; those are gone in a moment."""
        return [one for one in self.connections if isinstance(one, ClientConnection) and not one._cut]  # noqa: SLF001

    def _make_room(self) -> bool:
        """Disconnect the client that has been idle for longest, one without a head first; False if there is none."""
        found = [(one.idle_since, one) for one in self._ours() if one is not self]
        idle = [(since, one) for since, one in found if since is not None]
        if not idle:
            return False
        min(idle, key=itemgetter(0))[1].disconnect("its place is needed")
        return True


async def _busy(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer that there are too many connections."""
    error = ServerBusy("the API has as many connections as it may have (DM_CONNECTIONS), and each has its request")
    request_id = request_id_of(Headers(scope=scope))
    await problem_response(error, request_id, {"Connection": "close"})(scope, receive, send)
