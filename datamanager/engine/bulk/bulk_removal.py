"""Sources of many small files go, all of a chunk at once: each is taken aside, looked at and removed, as
`single.source_removal` does it with one: six requests a file at the most, in seven rounds with the look at directories.
(docs/transfer-protocol.md, the publish protocol, 7)
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from datamanager.domain.location import aside_name
from datamanager.engine.attempt import Intent
from datamanager.engine.bulk.bulk_chunk import SMALL
from datamanager.engine.path_confinement import acted_elsewhere
from datamanager.engine.single.source_removal import may_be, surely_is
from datamanager.engine.single.verify import stored_sha256
from datamanager.errors import DataManagerError, PathExists, PathMissing, PathReplaced, SourceNotRemoved, TransportError
from datamanager.transports.port import Session
from datamanager.transports.values import FileStat, Progress, no_progress, own_file_gone, shown

CHANGED = "it changed after it was read"


@dataclass(frozen=True, slots=True)
class Removal:
    """A source that is to go: its path (absolute, links resolved), what was read of it, where the bytes are now (for
    messages), and whose its name aside is (`location.aside_name`)."""

    path: str
    intent: Intent
    copied_to: str
    key: UUID

    @property
    def aside(self) -> str:
        """The path under which it is looked at and removed."""
        directory, name = posixpath.split(self.path)
        return posixpath.join(directory, aside_name(name, self.key))

    @property
    def sha256(self) -> str | None:
        """What was read (hex)."""
        return self.intent.sha256 or self.intent.source_mark.sha256


def remove_sources(
    source: Session, removals: Sequence[Removal], progress: Progress = no_progress
) -> list[DataManagerError | None]:
    """Remove the sources that still are what was read; None for each that is gone, in order.

    SourceNotRemoved for one that changed or can't be removed; it has its name, or the detail says which one.
    PathReplaced for one whose directory leads elsewhere now: another file may have been removed. `progress` is called
    with 0 while large files are hashed. Raises: what breaks the connection (retryable: do it again).
    """
    results: dict[int, DataManagerError | None] = {}
    before = _take(source, removals, results)
    doubtful, good, bad = list[int](), list[int](), list[int]()
    places = list(before)
    for index, now in source.bulk.lstat([removals[place].aside for place in places]):
        place, intent = places[index], removals[places[index]].intent
        then = before[place]
        if isinstance(now, TransportError) or not may_be(now, intent):
            bad.append(place)
        elif surely_is(now, intent) or (then is not None and surely_is(then, intent) and now.is_version(then)):
            good.append(place)
        else:
            doubtful.append(place)
    hashes = _hashes(source, removals, [place for place in doubtful if removals[place].sha256 is not None], progress)
    for place in doubtful:
        (good if place in hashes and hashes[place] == removals[place].sha256 else bad).append(place)
    for index, error in source.bulk.remove([removals[place].aside for place in good]):
        if isinstance(error, PathMissing):
            results[good[index]] = own_file_gone(removals[good[index]].aside)
        elif isinstance(error, PathReplaced):
            results[good[index]] = error
        elif error is not None:
            bad.append(good[index])
    _put_back(source, removals, bad, results)
    away = acted_elsewhere(source, [posixpath.dirname(removals[place].path) for place in before])
    for place in before:
        results[place] = away.get(posixpath.dirname(removals[place].path)) or results.get(place)
    return [results.get(place) for place in range(len(removals))]


def _take(
    source: Session, removals: Sequence[Removal], results: dict[int, DataManagerError | None]
) -> dict[int, FileStat | None]:
    """Take the sources aside that may be what was read; return what each was before, None for one that an earlier
    attempt took aside."""
    before: dict[int, FileStat | None] = {}
    paths = [one.path for one in removals] + [one.aside for one in removals]
    looks = dict(source.bulk.lstat(paths))
    wanted = list[int]()
    for place, one in enumerate(removals):
        there, left = looks[place], looks[len(removals) + place]
        if isinstance(left, FileStat):
            before[place] = None
        elif isinstance(there, PathMissing):
            continue
        elif isinstance(there, TransportError):
            results[place] = _left(one, there)
        elif not may_be(there, one.intent):
            results[place] = _not_removed(one, CHANGED)
        else:
            wanted.append(place)
    names = [(removals[place].path, removals[place].aside) for place in wanted]
    for index, error in source.bulk.rename(names, overwrite=False):
        place = wanted[index]
        if error is None:
            there = looks[place]
            before[place] = there if isinstance(there, FileStat) else None
        elif not isinstance(error, PathMissing):
            results[place] = _left(removals[place], error)
    return before


def _hashes(
    source: Session, removals: Sequence[Removal], places: Sequence[int], progress: Progress
) -> dict[int, str | TransportError]:
    """Hash what was taken aside: small files together, others one by one, as those are not held in memory."""
    small = [place for place in places if removals[place].intent.size <= SMALL]
    found: dict[int, str | TransportError] = {
        small[index]: digest for index, digest in source.bulk.digest([removals[place].aside for place in small], SMALL)
    }
    for place in places:
        if place in found:
            continue
        try:
            found[place] = stored_sha256(source, removals[place].aside, progress)
        except TransportError as exc:
            if exc.retryable:
                raise
            found[place] = exc
    return found


def _put_back(
    source: Session,
    removals: Sequence[Removal],
    places: Sequence[int],
    results: dict[int, DataManagerError | None],
) -> None:
    names = [(removals[place].aside, removals[place].path) for place in places]
    for index, error in source.bulk.rename(names, overwrite=False):
        one, why = removals[places[index]], CHANGED
        if isinstance(error, PathMissing):
            results[places[index]] = own_file_gone(one.aside)
            continue
        if isinstance(error, PathExists):
            why += f"; {shown(one.aside)} has it, as its name is taken again"
        elif error is not None:
            why += f"; {shown(one.aside)} has it: {error.detail}"
        results[places[index]] = _not_removed(one, why)


def _left(one: Removal, error: TransportError) -> DataManagerError:
    return error if isinstance(error, PathReplaced) else _not_removed(one, error.detail)


def _not_removed(one: Removal, reason: str) -> SourceNotRemoved:
    return SourceNotRemoved(f"{one.path} was copied to {one.copied_to} but was not removed: {reason}")
