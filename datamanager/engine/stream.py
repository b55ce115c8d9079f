"""The second step: bytes into the attempt's partial file, hashed while they pass. Constant memory, no staging.

(design.md, the publish protocol, 3)
"""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from datamanager.domain.plan import Route
from datamanager.domain.states import Phase, TransferKind
from datamanager.engine.control import Control
from datamanager.engine.job import Found, Job, Moved
from datamanager.errors import (
    DestinationExists,
    PathMissing,
    SizeMismatch,
    SourceChanged,
    SourceMissing,
    TooLarge,
)
from datamanager.machines import VerifyPolicy
from datamanager.sources.base import Download
from datamanager.transports.base import Session


def relay(job: Job, found: Found, control: Control) -> Moved:
    """Read the source, write the partial file, through the mover. A partial file of an earlier try of this attempt
    goes first.

    Raises: SourceMissing, SourceChanged (other length than probed), DestinationExists (both names are one file), and
    what the
    transports raise.
    """
    wanted = found.source_stat.size
    control.enter(Phase.TRANSFER, wanted)
    size, digest = 0, hashlib.sha256() if job.verify is VerifyPolicy.SHA256 else None
    with _both(job) as (source, target), ExitStack() as stack:
        remove_part(target, found)
        try:
            reader = stack.enter_context(source.open_read(found.source_path))
        except PathMissing:
            raise SourceMissing(f"{job.origin.place}: no such file") from None
        with target.create(found.part) as writer:
            _refuse_one_place(job, found, source)
            for block in reader.blocks(0, wanted):
                if digest is not None:
                    digest.update(block)
                writer.write(size, block)
                size += len(block)
                control.advance(len(block))
            writer.flush()
    if size != wanted:
        raise SourceChanged(f"{job.origin.place} ended after {size} of {wanted} bytes")
    return Moved(size, digest.hexdigest() if digest else None)


def copy_within(job: Job, found: Found, control: Control) -> Moved:
    """Let the machine copy the file itself; falls back to the relay when it can't after all."""
    control.enter(Phase.TRANSFER, found.source_stat.size)
    with job.target.storage.session() as session:
        remove_part(session, found)
        try:
            if session.copy_within(found.source_path, found.part, control.advance):
                return Moved(session.stat(found.part).size)
        except PathMissing:
            raise SourceMissing(f"{job.origin.place}: no such file") from None
    return relay(job, found, control)


def download(
    job: Job, found: Found, download: Download, control: Control, *, expected: int | None, limit: int
) -> Moved:
    """Write what an external source sends. `expected`: the size that the client gave; `limit`: the largest allowed,
    both in bytes.

    Raises: SizeMismatch, TooLarge, and what the source and the transports raise.
    """
    if expected is not None and download.size is not None and expected != download.size:
        raise SizeMismatch(f"{expected} bytes were announced by the request, {download.size} by the source")
    control.enter(Phase.TRANSFER)
    control.bytes_done, control.bytes_total = 0, download.size if download.size is not None else expected
    with job.target.storage.session() as session:
        remove_part(session, found)
        digest, size = hashlib.sha256(), 0
        with session.create(found.part) as writer:
            for block in download.blocks():
                if size + len(block) > limit:
                    raise TooLarge(f"the source sends more than the {limit} bytes that are allowed")
                digest.update(block)
                writer.write(size, block)
                size += len(block)
                control.advance(len(block))
            writer.flush()
    if expected is not None and size != expected:
        raise SizeMismatch(f"{expected} bytes were announced by the request, {size} arrived")
    return Moved(size, digest.hexdigest())


def remove_part(session: Session, found: Found) -> None:
    """Remove this attempt's own partial file, if there is one: a new try never writes into an old inode."""
    try:
        session.remove(found.part)
    except PathMissing:
        return


def discard(job: Job, found: Found) -> None:
    """Remove what a failed attempt left. Touches only the attempt's own name."""
    with job.target.storage.session() as session:
        remove_part(session, found)


@contextmanager
def _both(job: Job) -> Iterator[tuple[Session, Session]]:
    """Lend a session of each end. Pools are bounded, so they are asked in the order of the machines' names: two
    transfers in
    opposite directions can't wait for each other for ever. Two of one machine are lent together for the same reason."""
    origin, target = job.origin.storage, job.target.storage
    if origin is target:
        with origin.pair() as both:
            yield both
    elif origin.machine < target.machine:
        with origin.session() as source, target.session() as sink:
            yield source, sink
    else:
        with target.session() as sink, origin.session() as source:
            yield source, sink


def _refuse_one_place(job: Job, found: Found, source: Session) -> None:
    """Refuse to replace or remove a file by itself: two machine names can stand for one directory.

    If the partial file, just made, shows beside the source, both are one place.
    """
    if found.route is not Route.RELAY or job.origin.machine.name == job.target.machine.name:
        return
    if job.kind is not TransferKind.MOVE and not job.overwrite:
        return
    directory, name = posixpath.split(found.source_path)
    if name != posixpath.basename(found.final):
        return
    try:
        source.lstat(posixpath.join(directory, posixpath.basename(found.part)))
    except PathMissing:
        return
    raise DestinationExists(f"{job.origin.place} and {job.target.place} are one and the same file")
