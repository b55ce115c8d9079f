"""The last steps on storage: the file gets its name, a move's source goes.

(docs/transfer-protocol.md, the publish protocol, 5 and 7)
"""

from __future__ import annotations

from datamanager.engine.attempt import Attempt, Endpoint, Found, Intent
from datamanager.engine.path_confinement import confined, lstat_or_none
from datamanager.engine.single.same_file import is_one_name
from datamanager.engine.single.verify import holds
from datamanager.errors import (
    DataManagerError,
    DestinationExists,
    PathExists,
    PathMissing,
    RemoteFailure,
    SourceChanged,
    SourceMissing,
    SourceNotRemoved,
)
from datamanager.transports.values import FileKind

PLAIN_MODE = 0o644  # of a downloaded file; a copy carries its source's mode


def publish(job: Attempt, found: Found, intent: Intent) -> None:
    """Give the verified partial file its name, atomically; readers see nothing or the whole file.

    A file that already has the name is accepted when it has the right bytes and the intent was recorded (a retry of
    ours).

    Raises: DestinationExists, and what the transports raise.
    """
    with job.target.storage.session() as session:
        mode = found.source.mode & 0o777 if found.source else PLAIN_MODE
        try:
            session.set_attributes(found.part, mode=mode, mtime=intent.mtime)
            session.rename(found.part, found.final, overwrite=job.overwrite)
        except PathMissing as exc:
            # our own earlier try may have renamed it before its answer was lost
            if not holds(session, found.final, intent):
                raise RemoteFailure(f"{job.target.place}: the partial file disappeared") from exc
        except PathExists as exc:
            if not holds(session, found.final, intent):
                raise DestinationExists(f"{job.target.place}: another file was created there") from exc
            session.remove(found.part)


def rename(job: Attempt, found: Found) -> bool:
    """Move by rename on one machine; False when the names are on different file systems (nothing done).

    The caller has recorded the intent: source gone and destination matching is done, not missing.

    Raises: DestinationExists, SourceMissing, SourceChanged.
    """
    source = found.source_stat
    with job.target.storage.session() as session:
        try:
            now = session.stat(found.source_path)
            if (now.size, now.mtime) != (source.size, source.mtime):
                raise SourceChanged(f"{job.origin.place} changed during the transfer")
            session.rename(found.source_path, found.final, overwrite=job.overwrite)
        except PathExists as exc:
            raise DestinationExists(f"{job.target.place}: another file exists there") from exc
        except PathMissing as exc:
            if holds(session, found.final, Intent(source.size, None, source.mtime)):
                return True
            raise SourceMissing(f"{job.origin.place}: no such file") from exc
        except RemoteFailure:
            # SFTP v3 has no code for EXDEV; if both names are as they were, copy instead
            if lstat_or_none(session, found.source_path) and (job.overwrite or not lstat_or_none(session, found.final)):
                return False
            raise
    return True


def remove_source(end: Endpoint, intent: Intent, kept: Endpoint) -> None:
    """Remove a move's source, if it still is what was read. Fine when it is gone already. Never removes `kept`.

    Raises: SourceNotRemoved when it changed, or can't be removed; retryable transport errors as they are.
    """
    with end.storage.session() as session:
        try:
            now = session.stat(confined(session, end.machine, end.place.path))
            if (now.size, now.mtime) != (intent.size, intent.mtime):
                raise SourceNotRemoved(f"{end.place} changed after it was read, so it was not removed")
            path = confined(session, end.machine, end.place.path, follow=False)
            same_machine = end.machine.name == kept.machine.name
            own = (session, confined(session, kept.machine, kept.place.path, follow=False)) if same_machine else None
            if own is not None and is_one_name((session, path), own):
                raise SourceNotRemoved(f"{end.place} is {kept.place}, so it was not removed")
            session.remove(path)
        except PathMissing:
            return
        except DataManagerError as exc:
            if exc.retryable or isinstance(exc, SourceNotRemoved):
                raise
            raise SourceNotRemoved(f"{end.place} can't be removed: {exc.detail}") from exc


def remove_file(end: Endpoint) -> bool:
    """Remove an object's file; False when it was gone already. Raises: what the transports raise."""
    with end.storage.session() as session:
        try:
            path = confined(session, end.machine, end.place.path, follow=False)
            if session.lstat(path).kind is FileKind.DIRECTORY:
                raise RemoteFailure(f"{end.place} is a directory now; it was not changed")
            session.remove(path)
        except PathMissing:
            return False
    return True
