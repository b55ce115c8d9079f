"""The first look at files that are to become members, all of them at once."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from uuid import UUID

from datamanager.domain.bundle_model import WantedMember
from datamanager.domain.location import Place
from datamanager.engine.bundles.format.layout import BundleEntry
from datamanager.engine.path_confinement import ResolvedDirectory, confined, directories_of, real_base
from datamanager.errors import DataManagerError, PathMissing, SourceMissing
from datamanager.machines import Machine
from datamanager.transports.port import Session, Storage
from datamanager.transports.values import FileKind, FileStat


def look(
    machine: Machine, storage: Storage, wanted: Sequence[WantedMember], failed: dict[UUID, DataManagerError]
) -> list[BundleEntry]:
    """Return what the files are, in their order; in `failed` is noted why one can't be a member.

    Raises: what breaks the connection, and what is wrong with the machine as a whole.
    """
    with storage.session() as session:
        paths = dict[int, str]()
        for index, found in enumerate(real_paths(session, machine, [one.source for one in wanted])):
            if isinstance(found, str):
                paths[index] = found
            else:
                failed[wanted[index].uuid] = found
        stats = dict[int, FileStat | DataManagerError]()
        indices = list(paths)
        for number, stat in session.bulk.lstat(list(paths.values())):
            stats[indices[number]] = stat
        for index in [index for index, stat in stats.items() if _is_link(stat)]:
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


def real_paths(session: Session, machine: Machine, places: Sequence[Place]) -> list[str | DataManagerError]:
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


def _is_link(stat: FileStat | DataManagerError) -> bool:
    return isinstance(stat, FileStat) and stat.kind is FileKind.SYMLINK


def _followed(session: Session, machine: Machine, place: Place, path: str) -> tuple[str, FileStat | DataManagerError]:
    """Return the path and stat of what a link leads to, or why it can't be read."""
    try:
        real = confined(session, machine, place.path)
        return real, session.stat(real)
    except DataManagerError as exc:
        if exc.retryable:
            raise
        return path, exc
