"""The first step: look at both ends before a byte moves.

Source there and regular, destination's directory made, its name free, space enough.

(docs/transfer-protocol.md, the publish protocol, 1 and 2)
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, replace

from datamanager.domain.location import Place
from datamanager.domain.states import Route, TransferKind, plan
from datamanager.engine.attempt import Attempt, Content, Endpoint, Found, Intent
from datamanager.engine.path_confinement import ResolvedDirectory, canonical_of, directory_of, followed, make, real_base
from datamanager.engine.single.restart import part_paths, parts_among, remove_earlier
from datamanager.engine.single.same_file import refuse_one_file
from datamanager.engine.single.source_removal import machine_time
from datamanager.engine.single.transfer import can_go_direct
from datamanager.engine.single.verify import holds
from datamanager.errors import (
    DestinationExists,
    NoSpace,
    PathExists,
    PathMissing,
    SourceMissing,
    TransportError,
)
from datamanager.transports.port import Session
from datamanager.transports.values import FileKind, FileStat


@dataclass(frozen=True, slots=True)
class Read:
    """What is to be read: the real path and stat of a file, or a content with the stat that it shows.

    No stat where the file is missing: an earlier attempt may have renamed it.
    """

    path: str
    stat: FileStat | None
    is_link: bool = False
    content: Content | None = None


def probe(job: Attempt, *, size: int | None = None) -> Found:
    """Look at both ends and say how the bytes will go; `size` is a download's announced length (None: unknown).

    Makes the destination's directory; removes partial files of this transfer there that can't be resumed.

    Raises: SourceMissing, DestinationExists, NoSpace, PathNotAllowed, and what the transports raise.
    """
    if job.source is None:
        return probe_destination(job, Read("", None), size=size)
    read = _probe_source(job.source)
    found = probe_destination(job, read, size=read.stat.size if read.stat else size)
    if job.kind is not TransferKind.MOVE or found.route is Route.RENAME or found.published is not None:
        return found
    with job.source.storage.session() as session:
        return replace(found, read=machine_time(session, posixpath.dirname(read.path)))


def probe_destination(job: Attempt, read: Read, *, size: int | None) -> Found:
    """Look at the destination of what is to be read; `size`: the bytes that it needs there (None: unknown).

    Raises: what `probe` raises.
    """
    target = job.target
    with target.storage.session() as session:
        base = real_base(session, target.machine)
        parent = directory_of(session, target.machine, base, target.place.path)
        directory, final = parent.path, posixpath.join(parent.path, target.place.name)
        paths = part_paths(job, directory)
        looks = _look_at_names(session, parent, [final, *paths], target)
        parts = parts_among({path: looks[path] for path in paths if path in looks})
        route = _route(job, read, session)
        found = Found(
            route=route,
            directory=directory,
            final=final,
            part=paths[0],
            source_path=read.path,
            source=read.stat,
            canonical=canonical_of(target.machine, base, final),
            taken=isinstance(there := looks.get(final), FileStat),
            published=published_before(session, job, final, read.stat),
            content=read.content,
        )
        if found.published is None:
            if read.stat is None and job.source is not None:
                raise SourceMissing(f"{job.source.place}: no such file")
            if read.stat is not None and job.source is not None:
                job.known.require(job.source.place, read.stat.size)
            refuse_one_file(job, session, read.path, None if read.content else read.stat, final, there)
            if isinstance(there, FileStat) and (
                fault := why_not_replaced(target.place, there.kind, overwrite=job.overwrite)
            ):
                raise fault
        stored = _resumable(session, job, found, parts)
        if found.published is None and route is not Route.RENAME:
            _require_space(session, directory, size, stored, target)
        return found


def _route(job: Attempt, read: Read, session: Session) -> Route:
    if read.content is not None:
        return Route.RELAY
    route = plan(
        job.kind,
        source_machine=job.source.machine.name if job.source else None,
        destination_machine=job.target.machine.name,
        can_copy_within=session.programs.can_copy,
        can_go_direct=can_go_direct(job),
    )
    if route is Route.RENAME and read.is_link:
        # renaming a link would move the link and leave the bytes; the bytes are what is to be moved
        return Route.WITHIN if session.programs.can_copy else Route.RELAY
    return route


def _probe_source(end: Endpoint) -> Read:
    machine, place = end.machine, end.place
    with end.storage.session() as session:
        base = real_base(session, machine)
        path = posixpath.join(directory_of(session, machine, base, place.path).path, place.name)
        try:
            stat = session.lstat(path)
            if is_link := stat.kind is FileKind.SYMLINK:
                path = followed(session, machine, base, place.path, path)
                stat = session.stat(path)
        except PathMissing:
            return Read("", None)
    if stat.kind is not FileKind.FILE:
        raise SourceMissing(f"{end.place} is not a regular file")
    return Read(path, stat, is_link)


def _look_at_names(
    session: Session, parent: ResolvedDirectory, names: Sequence[str], target: Endpoint
) -> dict[str, FileStat | TransportError]:
    """Return what lies at these paths in the destination's directory, which is made if it is missing.

    Raises: DestinationExists when a file exists there of that.
    """
    if parent.missing:
        for fault in make(session, [parent]).values():
            if isinstance(fault, PathExists):
                raise _in_the_way(target) from fault
            raise fault
        return {}
    paths = [parent.path, *names]
    looks = {paths[index]: found for index, found in session.bulk.lstat(paths)}
    above = looks.pop(parent.path)
    if isinstance(above, FileStat) and above.kind is not FileKind.DIRECTORY:
        raise _in_the_way(target)
    for found in (above, *looks.values()):
        if isinstance(found, TransportError) and not isinstance(found, PathMissing):
            raise found
    return looks


def _in_the_way(target: Endpoint) -> DestinationExists:
    return DestinationExists(f"{target.place}: a file exists where a directory is required")


def published_before(session: Session, job: Attempt, final: str, source: FileStat | None) -> Intent | None:
    """Say whether an earlier attempt, which recorded its intent, got as far as publishing: the right bytes have the
    name.
    """
    intent = job.intent
    if intent is None:
        return None
    if intent.sha256 is None and source is not None and job.overwrite:
        return None  # size and mtime could be those of the file that is to be replaced; doing it again is safe
    return intent if holds(session, final, intent) else None


def why_not_replaced(place: Place, there: FileKind, *, overwrite: bool) -> DestinationExists | None:
    """Return why what is at a destination can't be replaced, None when it can."""
    if there is FileKind.DIRECTORY:
        return DestinationExists(f"{place} is a directory")
    return None if overwrite else DestinationExists(f"{place}: an unregistered file exists; overwrite=true replaces it")


def _require_space(session: Session, directory: str, size: int | None, there: int, target: Endpoint) -> None:
    free = session.free_space(directory)
    if free is not None and size is not None and size - there > free:
        raise NoSpace(f"{target.machine.name}: {size - there} bytes are needed, {free} are free")


def _resumable(session: Session, job: Attempt, found: Found, parts: Sequence[tuple[int, str]]) -> int:
    """Return the bytes that earlier attempts stored and this one can resume; removes the parts that it can't."""
    sent = found.route in (Route.RELAY, Route.DIRECT) and found.published is None
    if sent and found.source is not None and job.restart is not None and job.restart.fits(found.source):
        return sum(size for size, _ in parts)
    if found.route is Route.DOWNLOAD and found.published is None and job.restart is not None and job.restart.version:
        return sum(size for size, _ in parts)
    remove_earlier(session, [path for _, path in parts])
    return 0
