"""The third step: what is stored is what was read. (design.md, the publish protocol, 4)"""

from __future__ import annotations

import hashlib

from datamanager.domain.plan import Route
from datamanager.domain.states import Verified
from datamanager.engine.control import Control
from datamanager.engine.job import Found, Job, Moved, Proof
from datamanager.errors import ChecksumMismatch, PathMissing, SizeMismatch, SourceChanged
from datamanager.machines import VerifyPolicy
from datamanager.transports.base import Progress, Session, no_progress


def verify(job: Job, found: Found, moved: Moved, control: Control) -> Proof:
    """Compare the partial file with what was read, and the source with what it was; return what was proved.

    Policy `sha256`: the far side's storage is hashed there, or read back; `size`: sizes only. Never a silent fallback.

    Raises: SizeMismatch, ChecksumMismatch (retryable: the bytes are sent again), SourceChanged.
    """
    hashed = job.verify is VerifyPolicy.SHA256
    with job.target.storage.session() as session:
        stored = session.stat(found.part).size
        if stored != moved.size:
            raise SizeMismatch(f"{job.target.place}: {stored} bytes are stored, {moved.size} were sent")
        far = stored_sha256(session, found.part, control.watch) if hashed else None
    near = moved.sha256
    if hashed:
        near = near or _source_sha256(job, found, control)
        if near != far:
            raise ChecksumMismatch(f"{job.target.place}: sha256 {far} is stored, {near} was read")
    if found.route is not Route.DOWNLOAD:
        require_unchanged(job, found)
    return Proof(moved.size, near, Verified.SHA256 if hashed else Verified.SIZE)


def require_unchanged(job: Job, found: Found) -> None:
    """Check that the source still has the size and mtime that the probe saw. Raises: SourceChanged."""
    with job.origin.storage.session() as session:
        try:
            now = session.stat(found.source_path)
        except PathMissing:
            raise SourceChanged(f"{job.origin.place} disappeared under the transfer") from None
    then = found.source_stat
    if (now.size, now.mtime) != (then.size, then.mtime):
        raise SourceChanged(
            f"{job.origin.place} changed under the transfer: "
            f"{then.size} bytes of {then.mtime}, now {now.size} of {now.mtime}"
        )


def stored_sha256(session: Session, path: str, progress: Progress = no_progress) -> str:
    """Return the sha256 (hex) of a file from its storage: computed by the machine itself where it can, else read
    back.
    """
    digest = session.digest(path, progress)
    if digest is not None:
        return digest
    sha256 = hashlib.sha256()
    with session.open_read(path) as reader:
        for block in reader.blocks():
            sha256.update(block)
            progress(0)
    return sha256.hexdigest()


def _source_sha256(job: Job, found: Found, control: Control) -> str:
    with job.origin.storage.session() as session:
        return stored_sha256(session, found.source_path, control.watch)
