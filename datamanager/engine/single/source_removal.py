"""The end of a move's source, and of a deleted object's file: it is removed only if it is what was proved to be it.

The file is renamed to a name of ours first (taken aside): what is looked at then is what is removed, as nobody reaches
it by its name any more. What was last changed before the copy began to read is what was read; of anything younger the
bytes are hashed once more. On any doubt the file gets its name back. An attempt that died in between left the file
under the name aside: the next one continues there, and what ended transfers left is put back
(`flows.cleanup.leftovers`).

(docs/transfer-protocol.md, the publish protocol, 7; docs/adr/0015-sources-are-taken-aside.md)
"""

from __future__ import annotations

import posixpath
from contextlib import suppress
from uuid import UUID, uuid4

from datamanager.domain.location import aside_name, temporary_name
from datamanager.engine.attempt import Endpoint, Intent, KnownFile, SourceMark
from datamanager.engine.path_confinement import confined, followed, real_base
from datamanager.engine.single.same_file import is_one_name
from datamanager.engine.single.verify import stored_sha256
from datamanager.errors import (
    DataManagerError,
    NoSpace,
    PathExists,
    PathMissing,
    PathReplaced,
    PermissionDenied,
    RemoteFailure,
    SourceChanged,
    SourceNotRemoved,
    TransportError,
)
from datamanager.transports.port import Session
from datamanager.transports.values import Check, FileKind, FileStat, Progress, no_check, no_progress, own_file, shown

STEP = 2.0
"""Seconds that the times of files are apart at most: SFTP has whole ones, some file systems even ones. A file that was
changed twice within a step may show the first time only."""


def machine_time(session: Session, directory: str) -> float | None:
    """Return the time that a new file gets in a directory (seconds since 1970, rounded down): that of the machine, or
    of its file server. None where no file can be made. Raises: PathReplaced when that file is gone, retryable errors.
    """
    path, made = posixpath.join(directory, temporary_name("clock", uuid4(), 1)), False
    try:
        with session.create(path):
            made = True
        return float(session.lstat(path).mtime)
    except (PathMissing, PermissionDenied, NoSpace, RemoteFailure):
        return None
    finally:
        with suppress(PermissionDenied, NoSpace, RemoteFailure), own_file(path) if made else suppress(PathMissing):
            session.remove(path)


def may_be(now: FileStat, intent: Intent) -> bool:
    """Say whether a file has the size and time of what was read; if not, it is another one, or was changed."""
    return (now.kind, now.size, now.mtime) == (FileKind.FILE, intent.size, intent.source_mark.mtime)


def surely_is(now: FileStat, intent: Intent) -> bool:
    """Say whether a file that `may_be` what was read is that for sure: it was last changed before the reading began."""
    mark = intent.source_mark
    if mark.read is None or (None not in (mark.inode, now.inode) and mark.inode != now.inode):
        return False
    return now.last_change + STEP <= mark.read


def remove_source(end: Endpoint, intent: Intent, kept: Endpoint, key: UUID, progress: Progress = no_progress) -> None:
    """Remove a move's source, if it still is what was read. Fine when it is gone already. Never removes `kept`, whose
    bytes are compared where the intent has no checksum. `key`: whose the name aside is (`aside_name`).

    `progress` is called with 0 while bytes are hashed. Raises: SourceNotRemoved when it changed, or can't be removed:
    it has its name then, or the detail says which one; PathReplaced when another file may have been removed instead;
    retryable transport errors as they are.
    """
    try:
        sha256 = intent.sha256 or intent.source_mark.sha256
        if sha256 is None and _is_doubtful(end, intent, key):
            sha256 = _sha256_of(kept, progress)
        with end.storage.session() as session:
            path = confined(session, end.machine, end.place.path, follow=False)
            same_machine = end.machine.name == kept.machine.name
            own = (session, confined(session, kept.machine, kept.place.path, follow=False)) if same_machine else None
            if own is not None and is_one_name((session, path), own):
                raise SourceNotRemoved(f"{end.place} is {kept.place}, so it was not removed")
            _remove(session, end, path, key, intent, sha256, progress)
    except PathMissing:
        return
    except DataManagerError as exc:
        if exc.retryable or isinstance(exc, SourceNotRemoved | PathReplaced):
            raise
        if isinstance(exc, SourceChanged):
            raise SourceNotRemoved(f"{exc.detail}, so it was not removed") from exc
        raise SourceNotRemoved(f"{end.place} was not removed: {exc.detail}") from exc


def remove_file(
    end: Endpoint,
    known: KnownFile,
    key: UUID,
    progress: Progress = no_progress,
    commit: Check = no_check,
    *,
    force: bool = False,
) -> bool:
    """Remove an object's file, if it still is what the catalogue knows of it; whatever it is with `force`. False when
    it was gone already. What the catalogue does not know is not compared.

    `progress` is called with 0 while bytes are hashed, `commit` before anything is changed. Raises: SourceChanged when
    it is another file, which is left; RemoteFailure for a directory; what the transports raise.
    """
    with end.storage.session() as session:
        try:
            path = confined(session, end.machine, end.place.path, follow=False)
            if _left_aside(session, path, key):  # by an attempt that died: all is looked at once more
                with suppress(PathExists):
                    session.rename(_aside(path, key), path, overwrite=False)
            if session.lstat(path).kind is FileKind.DIRECTORY:
                raise RemoteFailure(f"{end.place} is a directory now; it was not changed")
            if force or known == KnownFile():
                commit()
                session.remove(path)
                return True
            read = machine_time(session, posixpath.dirname(path))
            try:
                bytes_at = _followed(session, end, path)
                now = session.stat(bytes_at)
            except PathMissing:  # a link that leads nowhere
                commit()
                session.remove(path)
                return True
            known.require(end.place, now.size)
            if known.sha256 is None:
                commit()
                session.remove(path)
                return True
            known.require(end.place, now.size, stored_sha256(session, bytes_at, progress))
            commit()
            intent = Intent(now.size, known.sha256, now.mtime, SourceMark(now.mtime, read, now.inode))
            _remove(session, end, path, key, intent, known.sha256, progress)
        except PathMissing:
            return False
        except SourceChanged as exc:
            raise SourceChanged(f"{exc.detail}; force=true deletes it") from exc
    return True


def _remove(
    session: Session, end: Endpoint, path: str, key: UUID, intent: Intent, sha256: str | None, progress: Progress
) -> None:
    """Take a file aside, look at it, and remove it. Raises: PathMissing; SourceChanged: it has its name again, or the
    detail says which one."""
    aside, sure, before = _aside(path, key), False, None
    if not _left_aside(session, path, key):
        before = session.stat(_followed(session, end, path))
        if not may_be(before, intent):
            raise SourceChanged(f"{end.place} changed after it was read")
        sure = surely_is(before, intent)
        session.rename(path, aside, overwrite=False)
    try:
        bytes_at = _followed(session, end, aside)
        now = session.stat(bytes_at)
        good = may_be(now, intent)
        sure = sure and before is not None and now.is_version(before)
        if good and not (sure or surely_is(now, intent)):
            good = sha256 is not None and stored_sha256(session, bytes_at, progress) == sha256
    except TransportError as exc:
        if exc.retryable or isinstance(exc, PathReplaced):
            raise
        good = False
    if good:
        with own_file(aside):
            session.remove(aside)
        return
    try:
        with own_file(aside):
            session.rename(aside, path, overwrite=False)
    except PathExists as exc:
        what = f"{end.place} changed after it was read, and has been replaced since: {shown(aside)} has it"
        raise SourceChanged(what) from exc
    raise SourceChanged(f"{end.place} changed after it was read")


def _sha256_of(kept: Endpoint, progress: Progress) -> str:
    """Return the sha256 (hex) of what was published. Raises: SourceNotRemoved when it is not there any more."""
    try:
        with kept.storage.session() as session:
            return stored_sha256(session, confined(session, kept.machine, kept.place.path), progress)
    except PathMissing:
        raise SourceNotRemoved(f"{kept.place} is missing, so its source was not removed") from None


def _is_doubtful(end: Endpoint, intent: Intent, key: UUID) -> bool:
    """Say whether a source's bytes will have to be compared. Raises: PathMissing."""
    with end.storage.session() as session:
        path = confined(session, end.machine, end.place.path, follow=False)
        return _left_aside(session, path, key) or not surely_is(session.stat(_followed(session, end, path)), intent)


def _followed(session: Session, end: Endpoint, path: str) -> str:
    """Return where a link leads to, which must be below the base directory; another path as it is."""
    if session.lstat(path).kind is not FileKind.SYMLINK:
        return path
    return followed(session, end.machine, real_base(session, end.machine), end.place.path, path)


def _aside(path: str, key: UUID) -> str:
    directory, name = posixpath.split(path)
    return posixpath.join(directory, aside_name(name, key))


def _left_aside(session: Session, path: str, key: UUID) -> bool:
    [(_, found)] = session.bulk.lstat([_aside(path, key)])
    if isinstance(found, TransportError) and not isinstance(found, PathMissing):
        raise found
    return isinstance(found, FileStat)
