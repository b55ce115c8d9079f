"""The second step without us in the middle: the source machine pushes the file to the destination (a third-party
transfer), and we watch the partial file grow.

Whatever goes wrong on that way is no error of the transfer: the relay takes it from there. What arrived is a correct
prefix of the source, and stays for it.
(docs/transfer-protocol.md, the publish protocol, 3; docs/adr/0007-direct-transfers.md)
"""

from __future__ import annotations

import logging
import time

from datamanager.domain.states import Phase
from datamanager.engine.attempt import Attempt, Found, Moved
from datamanager.engine.control import Control
from datamanager.engine.endpoints import acquire_sessions, refuse_one_place
from datamanager.engine.single.verify import require_unchanged
from datamanager.errors import ConnectionLost, NotSupported, PathMissing, TransportTimeout
from datamanager.machines import Machine, TransportKind
from datamanager.transports.port import Session
from datamanager.transports.remote.third_party_push import push_target
from datamanager.transports.values import FileStat

_log = logging.getLogger(__name__)


def possible(job: Attempt, *, limited: bool) -> bool:
    """Say whether the source may push to the destination: two SFTP machines that both allow it.

    `limited`: a bandwidth limit is in force for one of them or for the request; nobody could keep to it.
    """
    if limited or job.source is None or job.destination is None:
        return False
    source, destination = job.source.machine, job.destination.machine
    allowed = all(one.direct and one.transport is TransportKind.SFTP for one in (source, destination))
    return allowed and source.name != destination.name


def push(job: Attempt, found: Found, control: Control, offset: int = 0) -> Moved | None:
    """Let the source push its bytes from `offset` on into the partial file; None when that did not work.

    The reason is logged then, and the partial file, if there is one, holds a prefix of the source. With `offset` 0 it
    must not exist yet, else it must, and its bytes before `offset` must be the source's. Nothing runs on either machine
    any more when this returns or raises.

    Raises: SourceChanged; DestinationExists (both names are one file); what `control` was told to stop with; what the
    transports raise when a machine can't be reached at all.
    """
    wanted = found.source_stat.size
    control.enter(Phase.TRANSFER, wanted)
    control.bytes_done = offset
    machine = job.target.machine
    with acquire_sessions(job) as (source, target):
        growth = _Growth(target, found.part, control, machine)
        try:
            to = push_target(machine, found.part, offset, forward_agent=job.origin.machine.forward_agent)
            source.programs.push(found.source_path, to, growth.look)
            stored = growth.count()
            refuse_one_place(job, found, source)
            if stored == wanted:
                with target.reopen(found.part) as writer:
                    writer.flush()
                return Moved(stored)
        except (ConnectionLost, NotSupported, TransportTimeout) as exc:
            _log.info("%s could not be pushed to %s: %s", job.origin.place, machine.name, exc.detail)
            return None
    require_unchanged(job, found)
    _log.info("%s: %d bytes arrived at %s, %d were pushed", job.origin.place, stored, machine.name, wanted)
    return None


class _Growth:
    """The progress of a file that somebody else writes: its size, asked for again and again over our own session."""

    def __init__(self, session: Session, path: str, control: Control, machine: Machine) -> None:
        self._session = session
        self._path = path
        self._control = control
        self._patience = machine.stall_timeout
        self._seen: FileStat | None = None
        self._since = time.monotonic() + machine.connect_timeout  # the first byte waits for a connection, too

    def look(self, _: int) -> None:
        """Count what came since the last look. Raises: TransportTimeout when the machine's stall_timeout passed without
        a byte; what `control` was told to stop with."""
        self._control.check()
        before = self._seen
        self.count()
        now = time.monotonic()
        if self._seen != before:  # a part that is written once more grows late, but its mtime moves
            self._since = now
        elif now - self._since > self._patience:
            raise TransportTimeout(f"no data arrived for {self._patience:g} seconds")

    def count(self) -> int:
        """Count what came since the last look, and return the file's size in bytes."""
        try:
            self._seen = self._session.stat(self._path)
        except PathMissing:
            self._seen = None
            return 0
        self._control.advance(max(0, self._seen.size - self._control.bytes_done))
        return self._seen.size
