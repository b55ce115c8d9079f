"""What register proves of a file before it enters the catalogue."""

from __future__ import annotations

from dataclasses import replace

import structlog

from datamanager.domain.location import Place
from datamanager.domain.requests import RegisterRequest
from datamanager.domain.states import Verified
from datamanager.engine.path_confinement import confined, relative
from datamanager.engine.single.verify import stored_sha256
from datamanager.errors import (
    ConnectionLost,
    MachineUnavailable,
    PathMissing,
    RegisteredSizeMismatch,
    SourceChanged,
    SourceMissing,
    TransportTimeout,
)
from datamanager.machines import Machine
from datamanager.transports.port import Session, Storage
from datamanager.transports.values import FileKind
from models.objects.catalogue import Facts

log = structlog.get_logger(__name__)


def verify(request: RegisterRequest, machine: Machine, storage: Storage, place: Place) -> tuple[Facts, Place]:
    """Look at the file as `request.verify` asks; blocks, for long when the file is to be hashed.

    Returns what is known of it, and its canonical place: another one than `place` where linked directories lead to it.

    A machine that can't be reached proves nothing and prevents nothing: the facts then are the client's own.

    Raises: SourceMissing (no regular file there), RegisteredSizeMismatch, PathNotAllowed (a link leads out),
    SourceChanged (while it was hashed), and the errors of a machine that answers but can't be used.
    """
    claimed = Facts(request.size)
    if request.verify == "none":
        return claimed, place
    try:
        with storage.session() as session:
            facts = _seen(request, session, confined(session, machine, place.path), place)
            own = confined(session, machine, place.path, follow=False)
            return facts, Place(machine.name, relative(session, machine, own))
    except PathMissing:
        raise SourceMissing(f"there is no file at {place}") from None
    except (MachineUnavailable, ConnectionLost, TransportTimeout) as exc:
        log.warning("registered_unverified", machine=machine.name, code=exc.code)
        return claimed, place


def _seen(request: RegisterRequest, session: Session, path: str, place: Place) -> Facts:
    found = session.stat(path)
    if found.kind is not FileKind.FILE:
        raise SourceMissing(f"{place} is a {found.kind.value}, not a regular file")
    if request.size is not None and request.size != found.size:
        raise RegisteredSizeMismatch(f"size: {request.size} was given, {place} has {found.size} bytes")
    facts = Facts(found.size, verified=Verified.SIZE)
    if request.verify == "stat":
        return facts
    digest = stored_sha256(session, path)
    if session.stat(path) != found:
        raise SourceChanged(f"{place} changed while it was hashed")
    return replace(facts, checksum=f"sha256:{digest}", verified=Verified.SHA256)
