"""The restart marker: how another try, or another mover's attempt, resumes an interrupted transfer.

Bytes are written in the order of the file, on several connections at most `WINDOW` apart, so everything that lies more
than that before the end of a partial file was answered well: its own size says where to resume, and no journal has to
be written while bytes move. The marker, recorded before the first byte, says whose bytes they are: a source of this
size and modification time. (GridFTP has the term: GFD.20, 3.5. docs/adr/0006 says why it is not a journal.)
"""

from __future__ import annotations

import hashlib
import logging
import posixpath
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress

from datamanager.engine.attempt import Attempt, Found, Restart
from datamanager.engine.control import Control
from datamanager.errors import PathMissing, PermissionDenied, RemoteFailure, TransportError
from datamanager.transports.port import Reader, Session
from datamanager.transports.values import FileKind, FileStat, shown

BLOCK = 32 * 1024 * 1024
"""Bytes before the point of restart that are compared at both ends before it is believed."""
WINDOW = 2 * BLOCK
"""Bytes that may be under way at once: what at most is sent again. A file not larger than that just begins anew."""

log = logging.getLogger(__name__)


def marker_of(found: Found) -> Restart | None:
    """Return the marker to record for this source, None when it is not worth one."""
    source = found.source_stat
    return Restart(source.size, source.mtime, WINDOW) if source.size > WINDOW else None


def resume(job: Attempt, found: Found, source: Session, target: Session, control: Control) -> int:
    """Return the offset from which to resume: the partial file of an earlier try or attempt is this one's then.

    0 when there is none, when it stems from another source, when its last block is not the source's, or when the
    machine can't continue a file; no partial file of this transfer is left then. The block is compared at the ends
    themselves, not with a hash noted earlier.

    Raises: what the transports raise, and the reason that `control` was stopped with.
    """
    parts = parts_of(job, found.directory, target)
    kept, offset = None, 0
    if parts and job.restart is not None and job.restart.fits(found.source_stat):
        size, kept = max(parts)  # there is one; were there two, an interrupted clean-up left the smaller
        offset = max(0, min(size, found.source_stat.size) - job.restart.window)
    if not offset:
        kept = None
    remove_earlier(target, [path for _, path in parts if path != kept])
    if kept is None or not take_over(target, kept, found):
        return 0
    if not _same_block(found, source, target, offset, control):
        log.warning("%s: the partial file's last block differs from the source: starting again", shown(found.part))
        target.remove(found.part)
        return 0
    if not can_continue(target, found.part, offset):
        target.remove(found.part)
        return 0
    return offset


def remove_earlier(session: Session, parts: Iterable[str]) -> None:
    """Remove partial files of earlier attempts. Whoever lost the transfer's lease may be removing its own meanwhile."""
    for path in parts:
        with suppress(PathMissing):
            session.remove(path)


def take_over(session: Session, part: str, found: Found) -> bool:
    """Give an earlier attempt's partial file this one's name; False when that attempt has just removed it."""
    if part == found.part:
        return True
    try:
        session.rename(part, found.part, overwrite=False)
    except PathMissing:
        log.info("%s was removed by its attempt: starting again", shown(part))
        return False
    return True


def can_continue(session: Session, path: str, offset: int) -> bool:
    """Say whether a partial file can be written on from `offset` (bytes, not 0): some servers write new files only.

    Its last byte before that is written once more.
    """
    with session.open_read(path) as reader:
        last = b"".join(bytes(block) for block in reader.blocks(offset - 1, 1))
    try:
        with session.reopen(path) as writer:
            writer.write(offset - 1, last)
            writer.settle()
    except (PermissionDenied, RemoteFailure) as exc:
        log.warning("%s can't be written on: starting again: %s", shown(path), exc.detail)
        return False
    return True


def parts_of(job: Attempt, directory: str, session: Session) -> list[tuple[int, str]]:
    """Return (size, path) of each partial file that this transfer has in its destination's directory."""
    paths = part_paths(job, directory)
    return parts_among({paths[index]: there for index, there in session.bulk.lstat(paths)})


def part_paths(job: Attempt, directory: str) -> list[str]:
    """Return where this transfer may have partial files in its destination's directory: this attempt's is the first."""
    return [posixpath.join(directory, name) for name in [job.part_name, *job.earlier_part_names]]


def parts_among(looks: Mapping[str, FileStat | TransportError]) -> list[tuple[int, str]]:
    """Return (size, path) of the partial files that a look at their paths showed. Raises: why there was none."""
    parts = []
    for path, there in looks.items():
        if isinstance(there, PathMissing):
            continue
        if isinstance(there, TransportError):
            raise there
        if there.kind is FileKind.FILE:
            parts.append((there.size, path))
    return parts


def _same_block(found: Found, source: Session, target: Session, stop: int, control: Control) -> bool:
    start = max(0, stop - BLOCK)
    ours = _sha256(found.open(source), start, stop, control)
    return ours == _sha256(target.open_read(found.part), start, stop, control)


def _sha256(opened: AbstractContextManager[Reader], start: int, stop: int, control: Control) -> bytes:
    digest = hashlib.sha256()
    with opened as reader:
        for block in reader.blocks(start, stop - start):
            digest.update(block)
            control.check()
    return digest.digest()
