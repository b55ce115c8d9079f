"""Confinement on the machine: symbolic links are resolved there, and must not lead out of the base directory, nor out
of what a person reaches of it (`MachineWithin`).

A user who may write below `base_dir` can exchange a directory for a link between this check and the use. On this host
the transport notices it before anything is done (`transports.local.beneath`). SFTP v3 has no `openat`: there a look
behind each act notices it (`transports.sftp.looks`), and one per directory behind the acts on many small files
(`moved_away`). docs/security.md says what remains.
"""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from datamanager.errors import (
    DataManagerError,
    PathMissing,
    PathNotAllowed,
    PathReplaced,
    RemoteFailure,
    TransportError,
)
from datamanager.machines import Machine, MachineWithin, reaches
from datamanager.transports.bulk_port import InOneTurn, Results, SurveyedDirectory
from datamanager.transports.port import Session
from datamanager.transports.values import FileKind, FileStat, path_replaced, shown


@dataclass(frozen=True, slots=True)
class ResolvedDirectory:
    """A directory on a machine: the absolute path of what exists of it, links resolved, and the rest."""

    existing: str
    missing: str

    @property
    def path(self) -> str:
        """All of it."""
        return posixpath.join(self.existing, self.missing) if self.missing else self.existing

    @property
    def ways(self) -> list[str]:
        """What is to be made, each one's parent before it; what exists too, as it may be a file."""
        paths = [self.existing]
        for name in self.missing.split("/") if self.missing else []:
            paths.append(posixpath.join(paths[-1], name))
        return paths


class BulkLookup(Protocol):
    """Looks at many names at once; see the port's Bulk."""

    @property
    def in_one_turn(self) -> InOneTurn | None:
        """Several steps at once."""

    def lstat(self, paths: Sequence[str]) -> Results[FileStat | TransportError]:
        """Yield each path's lstat."""

    def real_path(self, paths: Sequence[str]) -> Results[str | TransportError]:
        """Yield each path with every link resolved."""


class PathLookup(Protocol):
    """What directories are resolved with; a Session is one."""

    def real_path(self, path: str) -> str:
        """Return a path with every link resolved."""

    @property
    def bulk(self) -> BulkLookup:
        """Look at many names at once."""


def confined(
    session: Session, machine: Machine, place_path: str, *, follow: bool = True, base: str | None = None
) -> str:
    """Return the absolute path on the machine of a normalised path below its base directory, links resolved.

    The nearest existing ancestor is resolved and compared with the resolved base directory (on HPC it often is a link
    itself). With `follow`, a last component that is a link is resolved too and must stay inside; without, the link
    itself is meant. `base`: `real_base`, where the caller has it.

    Raises: PathNotAllowed when links lead out; RemoteFailure when the base directory does not exist.
    """
    base = real_base(session, machine) if base is None else base
    real = posixpath.join(directory_of(session, machine, base, place_path).path, posixpath.basename(place_path))
    there = lstat_or_none(session, real) if follow else None
    is_link = there is not None and there.kind is FileKind.SYMLINK
    return followed(session, machine, base, place_path, real) if is_link else real


def followed(session: Session, machine: Machine, base: str, place_path: str, link: str) -> str:
    """Resolve a link that a place turned out to be, as `confined` does; `base` is `real_base`.

    Raises: PathNotAllowed when it leads out; PathMissing when it leads nowhere.
    """
    try:
        real = session.real_path(link)
    except PathMissing:
        raise PathMissing(f"{machine.name}:{place_path} is a dangling link") from None
    if not _is_within(machine, base, real):
        raise _leads_out(machine, place_path)
    return real


def directory_of(session: PathLookup, machine: Machine, base: str, place_path: str) -> ResolvedDirectory:
    """Resolve and confine a place's directory below `base` (`real_base`) as `confined` does. Raises: PathNotAllowed."""
    directory = posixpath.dirname(place_path)
    found = _resolved(session, machine, base, [directory])[directory]
    if isinstance(found, DataManagerError):
        raise found
    return found


def directories_of(
    session: PathLookup, machine: Machine, base: str, directories: Iterable[str]
) -> dict[str, ResolvedDirectory | DataManagerError]:
    """Resolve and confine many directories below `base`, as `confined` does one; "" is that itself (`real_base`).

    Raises: what would go otherwise another time, as when a connection broke.
    """
    found = _resolved(session, machine, base, directories)
    for error in found.values():
        if isinstance(error, DataManagerError) and error.retryable:
            raise error
    return found


def confined_directory(
    machine: Machine, base: str, directory: str, found: SurveyedDirectory
) -> ResolvedDirectory | DataManagerError:
    """Judge what a survey of the machine found of a directory below `base`, as `directories_of` does."""
    if not found.existing and found.error is not None:
        return found.error
    resolved = ResolvedDirectory(found.existing, found.missing)
    if found.outside or not _is_within(machine, base, resolved.path):
        return _leads_out(machine, directory)
    return _dangling(machine, resolved.ways[1]) if found.dangling else resolved


def make(session: Session, directories: Sequence[ResolvedDirectory]) -> dict[str, TransportError]:
    """Make what is missing of these directories, all of one depth at once; return what is none in the end, and why.

    PathExists: a file exists there. Raises: what breaks the connection.
    """
    faults = dict[str, TransportError]()
    levels = defaultdict[int, set[str]](set)
    begins = sorted({one.existing for one in directories})
    there = {
        begins[index]
        for index, found in session.bulk.lstat(begins)
        if isinstance(found, FileStat) and found.kind is FileKind.DIRECTORY
    }
    for one in directories:
        for path in one.ways:
            if path not in there:
                levels[path.count("/")].add(path)
    for _, paths in sorted(levels.items()):
        level = sorted(path for path in paths if posixpath.dirname(path) not in faults)
        faults |= {level[index]: fault for index, fault in session.bulk.make_dir(level) if fault is not None}
        faults |= {path: faults[posixpath.dirname(path)] for path in paths.difference(level)}
    made = sorted({one.path for one in directories if one.missing and one.path not in faults})
    for index, now in session.bulk.real_path(made):
        if isinstance(now, TransportError):
            faults[made[index]] = RemoteFailure(f"{shown(made[index])}: changed while it was checked: {now.detail}")
        elif now != made[index]:
            faults[made[index]] = _replaced(made[index], now)
    return faults


def moved_away(session: PathLookup, paths: Iterable[str]) -> dict[str, TransportError]:
    """Look once more at directories (absolute, links resolved) that something was done in; return those that lead
    elsewhere now, each with PathReplaced. One that is gone leads nowhere. Raises: what breaks the connection.
    """
    directories = sorted(set(paths))
    return {
        directories[index]: _replaced(directories[index], now)
        for index, now in session.bulk.real_path(directories)
        if isinstance(now, str) and now != directories[index]
    }


def _replaced(directory: str, now: str) -> PathReplaced:
    return path_replaced(
        f"{shown(directory)} leads to {shown(now)} now; what was done there may have been done outside of the base "
        "directory"
    )


def acted_elsewhere(session: PathLookup, paths: Iterable[str]) -> dict[str, TransportError]:
    """Do `moved_away` for directories in which the session's `bulk` did something. Where a program did it there is
    nothing to look at: it follows no link, and works nowhere else.
    """
    return moved_away(session, paths) if session.bulk.in_one_turn is None else {}


def relative(session: Session, machine: Machine, real: str) -> str:
    """Return a resolved path of `confined` relative to the resolved base directory: the one canonical place of a file
    or directory, "" for the base directory itself. Raises: PathNotAllowed.
    """
    path = canonical_of(machine, real_base(session, machine), real)
    return "" if path == "." else path


def canonical_of(machine: Machine, base: str, real: str) -> str:
    """Return a resolved path relative to `base`, the resolved base directory. Raises: PathNotAllowed."""
    path = posixpath.relpath(real, base)
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        raise PathNotAllowed(f"links lead to a directory of {machine.name} whose name is not valid UTF-8") from None
    return path


def real_base(session: PathLookup, machine: Machine) -> str:
    """Return the machine's base directory with links resolved. Raises: RemoteFailure when it does not exist."""
    try:
        return session.real_path(machine.base_dir)
    except PathMissing:
        raise no_base_dir(machine) from None


def no_base_dir(machine: Machine) -> RemoteFailure:
    """Return the error for a machine without its base directory."""
    return RemoteFailure(f"base_dir {machine.base_dir} does not exist on {machine.name}")


def _resolved(
    session: PathLookup, machine: Machine, base: str, directories: Iterable[str]
) -> dict[str, ResolvedDirectory | DataManagerError]:
    """Resolve the nearest existing ancestor of each directory below base and append the rest, which does not exist yet.

    All of one depth at once, then the parents of what does not exist.
    """
    found = dict[str, ResolvedDirectory | DataManagerError]()
    ancestors = {directory: directory for directory in directories}
    while ancestors:
        looked = _real_paths(session, base, sorted({ancestor for ancestor in ancestors.values() if ancestor}))
        looked[""] = base
        for directory, ancestor in list(ancestors.items()):
            real = looked[ancestor]
            if isinstance(real, PathMissing):
                ancestors[directory] = posixpath.dirname(ancestor)
                continue
            del ancestors[directory]
            if isinstance(real, DataManagerError):
                found[directory] = real
            else:
                resolved = ResolvedDirectory(real, directory[len(ancestor) :].lstrip("/"))
                inside = _is_within(machine, base, resolved.path)
                found[directory] = resolved if inside else _leads_out(machine, directory)
    return found | _not_made(session, machine, found)


def _real_paths(session: PathLookup, base: str, places: Sequence[str]) -> dict[str, str | TransportError]:
    """Resolve what exists."""
    paths = [posixpath.join(base, place) for place in places]
    return {places[index]: found for index, found in session.bulk.real_path(paths)}


def _not_made(
    session: PathLookup, machine: Machine, found: Mapping[str, ResolvedDirectory | DataManagerError]
) -> dict[str, DataManagerError]:
    """Return which directories can't be made, though they are missing: a dangling link is no missing directory, making
    it would write wherever it points.
    """
    missing = {
        directory: one.ways[1] for directory, one in found.items() if isinstance(one, ResolvedDirectory) and one.missing
    }
    paths = sorted(set(missing.values()))
    faults = dict[str, DataManagerError]()
    for index, there in session.bulk.lstat(paths):
        if isinstance(there, FileStat) and there.kind is FileKind.SYMLINK:
            faults[paths[index]] = _dangling(machine, paths[index])
        elif isinstance(there, TransportError) and not isinstance(there, PathMissing):
            faults[paths[index]] = there
    return {directory: faults[path] for directory, path in missing.items() if path in faults}


def _dangling(machine: Machine, path: str) -> PathNotAllowed:
    return PathNotAllowed(f"{machine.name}: {shown(posixpath.basename(path))} is a dangling link")


def _is_within(machine: Machine, base: str, real: str) -> bool:
    above = base.rstrip("/") + "/"
    return reaches(machine, "") if real == base else real.startswith(above) and reaches(machine, real[len(above) :])


def _leads_out(machine: Machine, given: str) -> PathNotAllowed:
    where = "the directories of the scopes" if isinstance(machine, MachineWithin) else "the machine's base directory"
    return PathNotAllowed(f"{machine.name}:{given} leads out of {where} through a symbolic link")


def lstat_or_none(session: Session, path: str) -> FileStat | None:
    """Return what is at a path, be it a link that leads nowhere; None when there is nothing."""
    try:
        return session.lstat(path)
    except PathMissing:
        return None
