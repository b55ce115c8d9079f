"""The members' files on their machine: the first look at all of them at once, and their removal in the end."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from uuid import UUID, uuid5

from datamanager.domain.bundle_model import Manifest, Member, WantedMember
from datamanager.domain.location import Place
from datamanager.engine.attempt import Endpoint, Intent, SourceMark
from datamanager.engine.bulk.bulk_removal import Removal
from datamanager.engine.bulk.bulk_removal import remove_sources as remove_files
from datamanager.engine.bundles.bundle_content import ArchiveAttempt
from datamanager.engine.bundles.layout import BundleEntry
from datamanager.engine.path_confinement import ResolvedDirectory, confined, directories_of, real_base
from datamanager.engine.single.source_removal import remove_source
from datamanager.errors import DataManagerError, PathMissing, PathReplaced, SourceMissing, SourceNotRemoved
from datamanager.machines import Machine
from datamanager.transports.port import Session, Storage
from datamanager.transports.values import FileKind, FileStat, Progress, no_progress


def look(
    machine: Machine, storage: Storage, wanted: Sequence[WantedMember], failed: dict[UUID, DataManagerError]
) -> list[BundleEntry]:
    """Return what the files are, in their order; in `failed` is noted why one can't be a member.

    Raises: what breaks the connection, and what is wrong with the machine as a whole.
    """
    with storage.session() as session:
        paths = dict[int, str]()
        for index, found in enumerate(_real_paths(session, machine, [one.source for one in wanted])):
            if isinstance(found, str):
                paths[index] = found
            else:
                failed[wanted[index].uuid] = found
        stats = dict[int, FileStat | DataManagerError]()
        indices = list(paths)
        for number, stat in session.bulk.lstat(list(paths.values())):
            stats[indices[number]] = stat
        links = [n for n, stat in stats.items() if isinstance(stat, FileStat) and stat.kind is FileKind.SYMLINK]
        for index in links:
            paths[index], stats[index] = _followed(session, machine, wanted[index].source, paths[index])
    entries = list[BundleEntry]()
    for index, path in paths.items():
        one, seen = wanted[index], stats[index]
        if isinstance(seen, PathMissing):
            failed[one.uuid] = SourceMissing(f"{one.source}: no such file")
        elif isinstance(seen, DataManagerError):
            failed[one.uuid] = seen
        elif seen.kind is not FileKind.FILE:
            failed[one.uuid] = SourceMissing(f"{one.source} is not a regular file")
        else:
            entries.append(BundleEntry(one.uuid, one.source, path, seen.size, seen.mode & 0o777, seen.mtime))
    return entries


def remove_sources(
    job: ArchiveAttempt, manifest: Manifest, progress: Progress = no_progress
) -> dict[UUID, DataManagerError]:
    """Remove the members' files, those that still are what was read; return those that are left, and why. The bundle is
    never removed. A link goes, too, if what it leads to is what was read.

    Fine where one is gone already. SourceNotRemoved for one that changed or can't be removed. Raises: what breaks the
    connection (retryable: do it again).
    """
    machine, storage = job.machine, job.storage
    left: dict[UUID, DataManagerError] = {}
    files, links = dict[UUID, Removal](), list[Member]()
    read = job.intent.source_mark.read if job.intent is not None else None

    def intent(one: Member) -> Intent:
        return Intent(one.size, one.sha256, one.mtime, SourceMark(one.mtime, read))

    with storage.session() as session:
        members, to = manifest.members, str(manifest.bundle.place)
        for one, path in zip(members, _real_paths(session, machine, [one.source for one in members]), strict=True):
            if isinstance(path, str):
                files[one.uuid] = Removal(path, intent(one), to, aside_key(job.transfer, one.uuid))
            elif not isinstance(path, PathMissing):
                left[one.uuid] = SourceNotRemoved(f"{one.source} was not removed: {path.detail}")
        there = [one for one in members if one.uuid in files]
        for index, stat in session.bulk.lstat([files[one.uuid].path for one in there]):
            if isinstance(stat, FileStat) and stat.kind is FileKind.SYMLINK:
                links.append(there[index])
                del files[there[index].uuid]
    for one in links:  # before what they lead to
        try:
            end = Endpoint(one.source, machine, storage)
            remove_source(end, intent(one), job.destination, aside_key(job.transfer, one.uuid), progress)
        except (SourceNotRemoved, PathReplaced) as exc:
            left[one.uuid] = exc
    with storage.session() as session:
        outcomes = zip(files, remove_files(session, list(files.values()), progress), strict=True)
        return left | {uuid: error for uuid, error in outcomes if error is not None}


def aside_key(transfer: UUID, object_id: UUID) -> UUID:
    """Return by what a member's file is called that was taken aside (`location.aside_name`)."""
    return uuid5(transfer, str(object_id))


def _real_paths(session: Session, machine: Machine, places: Sequence[Place]) -> list[str | DataManagerError]:
    """Return each place's path with its directory's links resolved (not its own), or why there is none.

    Raises: what breaks the connection, and what is wrong with the machine as a whole.
    """
    base = real_base(session, machine)
    directories = directories_of(session, machine, base, {posixpath.dirname(place.path) for place in places})
    paths = list[str | DataManagerError]()
    for place in places:
        found = directories[posixpath.dirname(place.path)]
        paths.append(posixpath.join(found.path, place.name) if isinstance(found, ResolvedDirectory) else found)
    return paths


def _followed(session: Session, machine: Machine, place: Place, path: str) -> tuple[str, FileStat | DataManagerError]:
    """Return the path and stat of what a link leads to, or why it can't be read."""
    try:
        real = confined(session, machine, place.path)
        return real, session.stat(real)
    except DataManagerError as exc:
        if exc.retryable:
            raise
        return path, exc
