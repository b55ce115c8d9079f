"""The file gets its name. (docs/transfer-protocol.md, the publish protocol, 5)"""

from __future__ import annotations

from contextlib import suppress

from datamanager.engine.attempt import Attempt, Found, Intent
from datamanager.engine.path_confinement import lstat_or_none
from datamanager.engine.single.endpoints import vanished
from datamanager.engine.single.verify import holds, part_is_gone
from datamanager.errors import (
    DestinationExists,
    PathExists,
    PathMissing,
    RemoteFailure,
    SourceChanged,
)

PLAIN_MODE = 0o644  # of a downloaded file; a copy carries its source's mode


def set_attributes(job: Attempt, found: Found, intent: Intent) -> Intent:
    """Give the verified partial file its mode and modification time; return the intent with what the machine keeps of
    them, to be recorded before `publish`.

    Raises: PathReplaced when the partial file is gone, and what the transports raise.
    """
    mode = found.source.mode & 0o777 if found.source else PLAIN_MODE
    with job.target.storage.session() as session:
        try:
            return intent.stored_as(session.set_attributes(found.part, mode=mode, mtime=intent.mtime))
        except PathMissing as exc:
            raise part_is_gone(job) from exc


def publish(job: Attempt, found: Found, intent: Intent) -> None:
    """Give the verified partial file its name, atomically; readers see nothing or the whole file.

    A file that already has the name is accepted when it has the right bytes and the intent was recorded (a retry of
    ours).

    Raises: DestinationExists, and what the transports raise.
    """
    with job.target.storage.session() as session:
        try:
            session.rename(found.part, found.final, overwrite=job.overwrite)
        except PathMissing as exc:
            # our own earlier try may have renamed it before its answer was lost
            if not holds(session, found.final, intent):
                raise part_is_gone(job) from exc
        except PathExists as exc:
            if not holds(session, found.final, intent):
                raise DestinationExists(f"{job.target.place}: another file was created there") from exc
            session.remove(found.part)


def rename(job: Attempt, found: Found) -> bool:
    """Move by rename on one machine; False when the names are on different file systems (nothing done).

    The caller has recorded the intent: source gone and destination matching is done, not missing. What was renamed
    is looked at: another file, which got the source's name meanwhile, gets its name back.

    Raises: DestinationExists, SourceMissing, SourceChanged, RemoteFailure (the destination's directory disappeared).
    """
    source = found.source_stat
    with job.target.storage.session() as session:
        try:
            if not session.stat(found.source_path).is_version(source):
                raise SourceChanged(f"{job.origin.place} changed during the transfer")
            session.rename(found.source_path, found.final, overwrite=job.overwrite)
        except PathExists as exc:
            raise DestinationExists(f"{job.target.place}: another file exists there") from exc
        except PathMissing as exc:
            if holds(session, found.final, Intent(source.size, None, source.mtime)):
                return True
            raise vanished(job, found, session) from exc
        except RemoteFailure:
            # SFTP v3 has no code for EXDEV; if both names are as they were, copy instead
            if lstat_or_none(session, found.source_path) and (job.overwrite or not lstat_or_none(session, found.final)):
                return False
            raise
        if not session.lstat(found.final)._replace(identity=None).is_version(source):
            with suppress(PathExists, PathMissing):
                session.rename(found.final, found.source_path, overwrite=False)
            raise SourceChanged(f"{job.origin.place} changed during the transfer")
    return True
