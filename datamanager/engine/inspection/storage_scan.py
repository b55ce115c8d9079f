"""Scan what lies on a machine, for audits. It reads names, sizes and bytes, and changes nothing.

Bounded: the caller brings rows a page at a time, and takes the entries of a directory one by one. Links are resolved as
everywhere (`engine.path_confinement`) and never followed out of base_dir; what lies behind such a link is unseen.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace

from datamanager.domain.audit_rules import Expected, Look, Sight
from datamanager.engine.inspection.directory_walk import listed
from datamanager.engine.path_confinement import (
    ResolvedDirectory,
    canonical_of,
    confined,
    directories_of,
    real_base,
    relative,
)
from datamanager.engine.single.verify import READ_BACK, stored_sha256
from datamanager.errors import DataManagerError, PathMissing, RemoteFailure, TransportError
from datamanager.machines import Machine
from datamanager.transports.port import Session
from datamanager.transports.values import FileKind, FileStat, Progress, no_progress

_NOTHING = Look(Sight.NOTHING)


@dataclass(frozen=True, slots=True)
class BaseDirectory:
    """A machine's base directory, links resolved; `empty`: there is no entry in it."""

    path: str
    empty: bool


@dataclass(frozen=True, slots=True)
class ScannedFile:
    """A regular file of a directory: its name, bytes, mtime (seconds since 1970)."""

    name: str
    size: int
    mtime: int


def look_at_base(session: Session, machine: Machine) -> BaseDirectory:
    """Look whether the machine's base directory is there and can be read.

    Raises: RemoteFailure when it is not (its file system may not be mounted), PermissionDenied.
    """
    path = real_base(session, machine)
    if session.stat(path).kind is not FileKind.DIRECTORY:
        raise RemoteFailure(f"base_dir {machine.base_dir} of {machine.name} is not a directory")
    with closing(listed(session, path)) as entries:
        return BaseDirectory(path, next(entries, None) is None)


def look_at(session: Session, machine: Machine, rows: Sequence[Expected]) -> list[Look]:
    """Look at the files of a page of rows, all of them at once; return what is there, in the order of the rows.

    Raises: what breaks the connection; RemoteFailure when the base directory is gone.
    """
    base = real_base(session, machine)
    directories = directories_of(session, machine, base, {posixpath.dirname(row.place) for row in rows})
    looks = list[Look]([_NOTHING] * len(rows))
    paths = dict[int, str]()
    for index, row in enumerate(rows):
        found = directories[posixpath.dirname(row.place)]
        if not isinstance(found, ResolvedDirectory):
            looks[index] = _unseen(found)
        elif not found.missing:
            paths[index] = posixpath.join(found.path, posixpath.basename(row.place))
    indices = list(paths)
    links = list[int]()
    with closing(session.bulk.lstat(list(paths.values()))) as results:
        for number, stat in results:
            index = indices[number]
            if isinstance(stat, FileStat) and stat.kind is FileKind.SYMLINK:
                links.append(index)
            else:
                looks[index] = _seen(machine, base, paths[index], stat)
    for index in links:
        looks[index] = _followed(session, machine, base, rows[index].place)
    return looks


def digests(
    session: Session, looks: Sequence[Look], progress: Progress = no_progress, small: int = READ_BACK
) -> Iterator[tuple[int, Look]]:
    """Hash files that were looked at; yield each with its index, its `sha256` filled in, or UNSEEN.

    Those of at most `small` bytes go together, larger ones one by one: on the machine where it has a shell, else they
    are read back. `progress` is called now and then, and may raise. Raises: what breaks the connection.
    """
    few = [index for index, look in enumerate(looks) if (look.size or 0) <= small]
    with closing(session.bulk.digest([looks[index].path for index in few], small)) as results:
        for number, found in results:
            progress(0)
            yield few[number], _hashed(looks[few[number]], found)
    for index in sorted(set(range(len(looks))) - set(few)):
        try:
            yield index, _hashed(looks[index], stored_sha256(session, looks[index].path, progress))
        except TransportError as exc:
            if exc.retryable:
                raise
            yield index, _hashed(looks[index], exc)


def look_at_paths(session: Session, machine: Machine, paths: Sequence[str]) -> list[Look]:
    """Look at files by paths below base_dir whose directories hold no link, odd names included; in their order.

    Raises: what breaks the connection; RemoteFailure when the base directory is gone.
    """
    base = real_base(session, machine)
    looks = list[Look]([_NOTHING] * len(paths))
    with closing(session.bulk.lstat([posixpath.join(base, path) for path in paths])) as results:
        for index, stat in results:
            if isinstance(stat, FileStat) and stat.kind is FileKind.FILE:
                looks[index] = Look(Sight.FILE, stat.size, stat.mtime, posixpath.join(base, paths[index]))
            elif isinstance(stat, TransportError) and not isinstance(stat, PathMissing):
                looks[index] = _unseen(stat)
    return looks


def canonical_directory(session: Session, machine: Machine, directory: str) -> str | None:
    """Return where a directory ("" is base_dir) is below base_dir with links resolved; None when it is gone.

    Raises: PathNotAllowed when links lead out, or to a name that is not valid UTF-8; what breaks the connection.
    """
    if not directory:
        return ""
    try:
        real = confined(session, machine, directory)
        session.stat(real)
    except PathMissing:
        return None
    return relative(session, machine, real)


def files_of(
    session: Session, machine: Machine, directory: str, below: Callable[[str], None] | None = None
) -> Iterator[ScannedFile]:
    """Yield the regular files of a canonical directory, links not followed; `below` gets the directories' names.

    A directory that is gone has none. The session must not be used for anything else meanwhile. Raises:
    PermissionDenied, RemoteFailure, what breaks the connection.
    """
    path = posixpath.join(real_base(session, machine), directory) if directory else real_base(session, machine)
    try:
        with closing(listed(session, path)) as entries:
            for name, stat in entries:
                if stat.kind is FileKind.FILE:
                    yield ScannedFile(name, stat.size, stat.mtime)
                elif stat.kind is FileKind.DIRECTORY and below is not None:
                    below(name)
    except PathMissing:
        return


def _seen(machine: Machine, base: str, path: str, stat: FileStat | TransportError) -> Look:
    if isinstance(stat, PathMissing):
        return _NOTHING
    if isinstance(stat, TransportError):
        return _unseen(stat)
    if stat.kind is not FileKind.FILE:
        return _NOTHING
    try:
        canonical = canonical_of(machine, base, path)
    except DataManagerError as exc:
        return _unseen(exc)
    return Look(Sight.FILE, stat.size, stat.mtime, path, canonical)


def _followed(session: Session, machine: Machine, base: str, place: str) -> Look:
    """Look at what a link leads to."""
    try:
        real = confined(session, machine, place)
        return _seen(machine, base, real, session.stat(real))
    except PathMissing:
        return _NOTHING
    except DataManagerError as exc:
        return _unseen(exc)


def _unseen(error: DataManagerError) -> Look:
    if error.retryable:
        raise error
    return Look(Sight.UNSEEN, why=f"{error.code}: {error.detail}")


def _hashed(look: Look, found: str | TransportError) -> Look:
    if isinstance(found, str):
        return replace(look, sha256=found)
    return _NOTHING if isinstance(found, PathMissing) else _unseen(found)
