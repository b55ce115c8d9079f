"""What a machine says of many places before anything is done there: where their directories are in truth (made, at the
destination) and what has their names. In one turn where a program of the machine tells it, else step by step.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from datamanager.domain.location import Place
from datamanager.engine.path_confinement import (
    BulkLookup,
    PathLookup,
    ResolvedDirectory,
    confined_directory,
    directories_of,
    make,
    no_base_dir,
    real_base,
)
from datamanager.errors import DataManagerError, PathMissing, TransportError
from datamanager.machines import Machine
from datamanager.transports.bulk_port import InOneTurn
from datamanager.transports.port import Session
from datamanager.transports.values import FileStat


@dataclass(slots=True)
class Surveyed:
    """`directories`: the whole path of each directory below the base directory, links resolved, or why there is none.

    `not_made`: why such a path is no directory in the end. `seen`: the lstat of each file's path, None where that is
    still to be asked; `free`: bytes, of the directories that were asked for it.
    """

    base: str
    directories: dict[str, str | DataManagerError]
    not_made: dict[str, TransportError] = field(default_factory=dict)
    seen: dict[str, FileStat | TransportError] | None = None
    free: dict[str, int | None] = field(default_factory=dict)

    def lstat(self, bulk: BulkLookup, paths: Sequence[str]) -> Iterator[tuple[int, FileStat | TransportError]]:
        """Yield each path's lstat, as the port's Bulk does."""
        if self.seen is None:
            return bulk.lstat(paths)
        return enumerate([self.seen[path] for path in paths])


def survey_sources(session: PathLookup, machine: Machine, places: Sequence[Place]) -> Surveyed:
    """Survey the places of sources. Raises: what would go otherwise another time; RemoteFailure without a base_dir."""
    if (program := session.bulk.in_one_turn) is not None:
        return _in_one_turn(program, machine, places, making=False)
    base = real_base(session, machine)
    found = directories_of(session, machine, base, {place.directory for place in places})
    return Surveyed(base, _paths_of(found))


def survey_destinations(session: Session, machine: Machine, places: Sequence[Place]) -> Surveyed:
    """Survey the places of destinations, and make their directories. Raises: as `survey_sources`."""
    if (program := session.bulk.in_one_turn) is not None:
        return _in_one_turn(program, machine, places, making=True)
    base = real_base(session, machine)
    found = directories_of(session, machine, base, {place.directory for place in places})
    faults = make(session, [one for one in found.values() if isinstance(one, ResolvedDirectory)])
    return Surveyed(base, _paths_of(found), faults)


def _in_one_turn(program: InOneTurn, machine: Machine, places: Sequence[Place], *, making: bool) -> Surveyed:
    wanted: dict[str, dict[str, None]] = {}
    for place in places:
        wanted.setdefault(place.directory, {})[place.name] = None
    try:
        found = program.survey(machine.base_dir, {where: list(names) for where, names in wanted.items()}, make=making)
    except PathMissing:
        raise no_base_dir(machine) from None
    seen = dict[str, FileStat | TransportError]()
    surveyed = Surveyed(found.base, {}, seen=seen)
    for where, one in found.directories.items():
        resolved = confined_directory(machine, found.base, where, one)
        if isinstance(resolved, ResolvedDirectory) and one.error is not None and not making:
            resolved = one.error
        if isinstance(resolved, DataManagerError):
            if resolved.retryable:
                raise resolved
            surveyed.directories[where] = resolved
            continue
        surveyed.directories[where] = path = resolved.path
        if one.error is not None:
            surveyed.not_made[path] = one.error
        else:
            surveyed.free[path] = one.free
            seen |= {posixpath.join(path, name): entry for name, entry in one.entries.items()}
    return surveyed


def _paths_of(found: Mapping[str, ResolvedDirectory | DataManagerError]) -> dict[str, str | DataManagerError]:
    """Return the whole path of each directory, or why there is none."""
    return {name: one.path if isinstance(one, ResolvedDirectory) else one for name, one in found.items()}
