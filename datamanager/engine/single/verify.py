"""The third step: what is stored is what was read. (docs/transfer-protocol.md, the publish protocol, 4)"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

from datamanager.domain.states import Route
from datamanager.engine.attempt import Attempt, Endpoint, Found, Intent, Moved, Proof
from datamanager.engine.control import Control
from datamanager.engine.path_confinement import lstat_or_none
from datamanager.errors import ChecksumMismatch, NotSupported, PathMissing, PathReplaced, SizeMismatch, SourceChanged
from datamanager.machines import VerifyPolicy
from datamanager.transports.port import Follower, Session
from datamanager.transports.values import FileKind, Progress, no_progress, path_replaced

READ_BACK = 1024 * 1024
"""Bytes up to which a file is read back rather than hashed by a program there, which takes 90 ms to start."""

_log = logging.getLogger(__name__)


def verify(job: Attempt, found: Found, moved: Moved, control: Control) -> Proof:
    """Compare the partial file with what was read, and the source with what it was; return what was proved.

    Policy `sha256`: the far side's storage is hashed there, or read back; `size`: sizes only. Never a silent fallback.

    Raises: SizeMismatch, ChecksumMismatch (retryable: the bytes are sent again), SourceChanged, PathReplaced (no
    partial file is there).
    """
    hashed = job.verify is VerifyPolicy.SHA256
    with job.target.storage.session() as session:
        try:
            stored = session.stat(found.part).size
        except PathMissing:
            raise part_is_gone(job) from None
        if stored != moved.size:
            raise SizeMismatch(f"{job.target.place}: {stored} bytes are stored, {moved.size} were sent")
    near = None
    if hashed:
        near, far = _both_sha256(job, found, moved, control)
        if near != far:
            raise ChecksumMismatch(f"{job.target.place}: sha256 {far} is stored, {near} was read")
    if found.route is not Route.DOWNLOAD:
        require_unchanged(job, found)
        job.known.require(job.origin.place, moved.size, near)
    return Proof(moved.size, near, job.proof_level)


def part_is_gone(job: Attempt) -> PathReplaced:
    """Return the error for a partial file that was written, but is not in its directory: over SFTP it may be another
    directory that it was written to."""
    return path_replaced(f"{job.target.place}: its partial file was written, but is not in its directory")


def require_unchanged(job: Attempt, found: Found) -> None:
    """Check that the source still is the version that the probe saw. Raises: SourceChanged."""
    with job.origin.storage.session() as session:
        if found.content is not None:
            found.content.require_unchanged(session)
            return
        try:
            now = session.stat(found.source_path)
        except PathMissing:
            raise SourceChanged(f"{job.origin.place} disappeared during the transfer") from None
    then = found.source_stat
    if not now.is_version(then):
        raise SourceChanged(
            f"{job.origin.place} changed during the transfer: "
            f"{then.size} bytes of {then.mtime}, now {now.size} of {now.mtime}"
        )


def stored_sha256(session: Session, path: str, progress: Progress = no_progress, *, size: int | None = None) -> str:
    """Return the sha256 (hex) of a file from its storage: computed by the machine itself where it can, else read
    back. Small files are read back anyway: that is quicker than starting a program. `size`: bytes, where it is known.
    """
    if (session.stat(path).size if size is None else size) > READ_BACK:
        with suppress(NotSupported):
            return session.programs.digest(path, progress)
    sha256 = hashlib.sha256()
    with session.open_read(path) as reader:
        for block in reader.blocks():
            sha256.update(block)
            progress(0)
    return sha256.hexdigest()


def holds(session: Session, path: str, intent: Intent) -> bool:
    """Say whether the file at `path` has the bytes of `intent`; without a checksum, its size and mtime."""
    there = lstat_or_none(session, path)
    if there is None or there.kind is not FileKind.FILE or there.size != intent.size:
        return False
    return there.mtime == intent.mtime if intent.sha256 is None else stored_sha256(session, path) == intent.sha256


def source_sha256(job: Attempt, found: Found, control: Control) -> str:
    """Return the sha256 (hex) of what is read, from its storage. Raises: PathMissing, or what the content raises."""
    if found.content is None:
        return _hashed(job.origin, found.source_path, control)
    digest = found.digest()
    with job.origin.storage.session() as session, found.open(session) as reader:
        for block in reader.blocks():
            digest.update(block)
            control.check()
    return digest.hexdigest()


def _both_sha256(job: Attempt, found: Found, moved: Moved, control: Control) -> tuple[str, str]:
    """Return the sha256 of what was read and of what is stored; what was not taken meanwhile is read from storage,
    both ends at the same time.
    """

    def source() -> str:
        try:
            return source_sha256(job, found, control)
        except PathMissing:
            raise SourceChanged(f"{job.origin.place} disappeared during the transfer") from None

    def stored() -> str:
        try:
            return moved.stored or _hashed(job.target, found.part, control, moved.size)
        except PathMissing:
            raise part_is_gone(job) from None

    if moved.sha256 is not None:
        return moved.sha256, stored()
    with ThreadPoolExecutor(1) as beside:
        near = beside.submit(source)
        far = stored()
        return near.result(), far


def _hashed(end: Endpoint, path: str, control: Control, size: int | None = None) -> str:
    with end.storage.session() as session:
        return stored_sha256(session, path, control.watch, size=size)


@contextmanager
def following(session: Session, path: str) -> Iterator[Follower | None]:
    """Begin to hash a file beside its writing; None where the machine can't."""
    with ExitStack() as stack:
        follower = None
        try:
            follower = stack.enter_context(session.programs.follow(path))
        except NotSupported as exc:
            _log.info("what is stored is hashed afterwards: %s", exc.detail)
        yield follower


def followed(follower: Follower | None, progress: Progress) -> str | None:
    """Return the sha256 (hex) that the follower has of what is stored; None without one, or if the machine failed."""
    try:
        return None if follower is None else follower.result(progress)
    except NotSupported as exc:
        _log.info("what is stored is hashed once more: %s", exc.detail)
        return None
