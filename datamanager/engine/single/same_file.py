"""Whether two names are one file for the file system, whatever their text: by a link, a bind mount, two machine names
of one host, or names that differ in case or Unicode form only where a server folds them. (docs/adr/0014-one-file.md)

A file system that tells device and inode is asked. Where none does (SFTP version 3), an empty file of ours, created in
one directory, is looked for in the other one.
"""

from __future__ import annotations

import posixpath
import time
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from uuid import uuid4

from datamanager.domain.location import Place, folded, temporary_name
from datamanager.engine.attempt import Attempt, Endpoint
from datamanager.engine.path_confinement import ResolvedDirectory, directories_of, lstat_or_none, real_base
from datamanager.engine.single.other_names import may_be_mounted_twice
from datamanager.errors import DestinationExists, PathMissing, PathReplaced, TransportError
from datamanager.machines import TransportKind
from datamanager.transports.port import Session
from datamanager.transports.values import FileKind, FileStat, KeptAttributes, NewFile, own_file, own_file_gone

Name = tuple[Session, str]
"""A file's absolute path with its directory's links resolved, and a session of its machine."""

_MARK_MAX = 64
"""Bytes of a mark at most."""


def name_keys(names: Sequence[Name]) -> list[Hashable]:
    """Return a key for each name; two are equal if and only if both names are one entry of one directory. The files
    need not exist.

    Names that differ in more than case and Unicode form cost nothing. For others directories are compared: on this host
    by device and inode, else by a file of ours that is made in each and removed again. A directory where none can be
    made counts as another one: nothing of it can be replaced or removed either.

    Raises: what breaks a connection.
    """
    common = Counter(folded(posixpath.basename(path)) for _, path in names)
    keys: list[Hashable] = list(range(len(names)))
    doubtful = [index for index, (_, path) in enumerate(names) if common[folded(posixpath.basename(path))] > 1]
    directories = list(dict.fromkeys((names[index][0], posixpath.dirname(names[index][1])) for index in doubtful))
    known = _directory_keys(directories)
    spellings: dict[tuple[Hashable, str], list[str]] = {}
    for index in doubtful:
        session, path = names[index]
        directory, name = posixpath.split(path)
        there = known[session, directory]
        others = spellings.setdefault((there, folded(name)), [])
        spelling = next((other for other in others if other == name or _is_folded(session, directory, other, name)), "")
        if not spelling:
            others.append(spelling := name)
        keys[index] = there, spelling
    return keys


def is_one_name(name: Name, other: Name) -> bool:
    """Say whether two names are one entry of one directory; see `name_keys`."""
    first, second = name_keys([name, other])
    return first == second


def refuse_one_file(
    job: Attempt, session: Session, source: str, stat: FileStat | None, final: str, there: object
) -> None:
    """Refuse to put a file onto itself by another name: replacing or removing it would destroy it. Hard links are one
    file here, too.

    `source` and `stat` are what is read (stat: None if that is no file of its own), `final` the destination, `there`
    the FileStat of what lies there, `session` one of its machine. Two machines that tell no inodes are compared by the
    partial file later (`endpoints.refuse_one_place`). Raises: DestinationExists.
    """
    if job.source is None:
        return
    one_machine = job.source.machine.name == job.target.machine.name
    if (one_machine and source == final) or (
        stat is not None
        and isinstance(there, FileStat)
        and _is_one_file(session, source, stat, final, there, one_machine=one_machine)
    ):
        raise DestinationExists(f"{job.source.place} and {job.target.place} are the same file")


def same_files(
    ends: Sequence[Endpoint], others: Sequence[Endpoint], sources: Mapping[Place, Place] | None = None
) -> dict[Place, Place]:
    """Return which of the ends' places are one file with another place, each with that one; what has no file has none.
    `sources`: the other place that does not count, by place. All directories are compared at once. Blocks.

    A machine of `others` that can't be asked is left out. Raises: what the transports raise of a machine of `ends`.
    """
    found, spared = dict[Place, Place](), sources or {}
    theirs = _by_machine(others)
    for machine, mine in _by_machine(ends).items():
        for other, there in theirs.items():
            storages = {machine: mine[0].storage, other: there[0].storage}
            try:
                with ExitStack() as stack:  # in the sequence of their names, as `endpoints.acquire_sessions` does
                    sessions = {name: stack.enter_context(storages[name].session()) for name in sorted(storages)}
                    pairs = _one_files(sessions[machine], mine, sessions[other], there)
            except TransportError:
                if machine == other:
                    raise
                with storages[machine].session() as session:
                    real_base(session, mine[0].machine)  # it answers, so it was the other one
                continue
            for place, same in pairs:
                if same not in (place, spared.get(place)):
                    found.setdefault(place, same)
    return found


def _one_files(
    session: Session, ends: Sequence[Endpoint], there: Session, others: Sequence[Endpoint]
) -> list[tuple[Place, Place]]:
    """Return the pairs of places that are one file."""
    mine, theirs = _looked_at(session, ends), _looked_at(there, others)
    told = all(stat.identity is not None for _, stat in (*mine.values(), *theirs.values()))

    def sign(seen: tuple[str, FileStat]) -> Hashable:
        """Return what two names of one file have in common."""
        path, stat = seen
        return folded(posixpath.basename(path)), stat.identity if told else stat.size

    both = {sign(seen) for seen in mine.values()} & {sign(seen) for seen in theirs.values()}
    left, alike = ({place: seen[0] for place, seen in some.items() if sign(seen) in both} for some in (mine, theirs))
    names = [*((session, path) for path in left.values()), *((there, path) for path in alike.values())]
    keys = name_keys(names)
    by_key: dict[Hashable, list[Place]] = {}
    for place, key in zip(alike, keys[len(left) :], strict=True):
        by_key.setdefault(key, []).append(place)
    return [(place, same) for place, key in zip(left, keys, strict=False) for same in by_key.get(key, ())]


def _looked_at(session: Session, ends: Sequence[Endpoint]) -> dict[Place, tuple[str, FileStat]]:
    """Return the path and stat of those places of one machine where something is."""
    paths = {end.place: path for end, path in zip(ends, _paths(session, ends), strict=True) if path is not None}
    places = list(paths)
    looks = session.bulk.lstat(list(paths.values()))
    return {places[index]: (paths[places[index]], stat) for index, stat in looks if isinstance(stat, FileStat)}


def _by_machine(ends: Sequence[Endpoint]) -> dict[str, list[Endpoint]]:
    found: dict[str, list[Endpoint]] = {}
    for end in ends:
        found.setdefault(end.machine.name, []).append(end)
    return found


def _is_one_file(
    session: Session, source: str, stat: FileStat, final: str, there: FileStat, *, one_machine: bool
) -> bool:
    if there.kind is FileKind.SYMLINK:
        with suppress(PathMissing):
            return one_machine and session.real_path(final) == source
        return False
    if None not in (stat.identity, there.identity):
        return stat.identity == there.identity
    return one_machine and stat.size == there.size and is_one_name((session, source), (session, final))


def second_names(ends: Mapping[int, Endpoint], paths: Mapping[int, str], taken: Collection[int]) -> dict[int, int]:
    """Return which destinations of a batch are one file with an earlier one, by number, each with that one's number.

    `paths` are the destinations' absolute paths, links resolved; at those of `taken` files lie, and hard links of one
    file are one. Directories of one SFTP machine are compared only if it may have one of them twice. Blocks.

    Raises: what the transports raise.
    """
    names = {number: folded(posixpath.basename(path)) for number, path in sorted(paths.items())}
    common = Counter(names.values())
    alike = [number for number, name in names.items() if common[name] > 1]
    found = dict[int, int]()
    storages = {ends[number].machine.name: ends[number].storage for number in (*alike, *taken)}
    with ExitStack() as stack:
        sessions = {name: stack.enter_context(storages[name].session()) for name in sorted(storages)}
        by_machine: dict[str, list[int]] = {}
        for number in sorted(taken):
            by_machine.setdefault(ends[number].machine.name, []).append(number)
        inodes = dict[Hashable, int]()
        for name, numbers in by_machine.items():
            for index, stat in sessions[name].bulk.lstat([paths[number] for number in numbers]):
                if isinstance(stat, FileStat) and stat.identity is not None:
                    first = inodes.setdefault(stat.identity, numbers[index])
                    if first != numbers[index]:
                        found[numbers[index]] = first
        for some in _to_compare(ends, paths, alike, sessions):
            firsts = dict[Hashable, int]()
            keys = name_keys([(sessions[ends[number].machine.name], paths[number]) for number in some])
            for number, key in zip(some, keys, strict=True):
                if (first := firsts.setdefault(key, number)) != number:
                    found[number] = first
    return found


def _to_compare(
    ends: Mapping[int, Endpoint], paths: Mapping[int, str], alike: Sequence[int], sessions: Mapping[str, Session]
) -> Iterable[Sequence[int]]:
    """Return what is to be compared with each other: all of it, but where no directory has another name each alone."""
    machines = {ends[number].machine.name: ends[number].machine for number in alike}
    if len(machines) == 1:
        [(name, machine)] = machines.items()
        if machine.transport is TransportKind.SFTP and may_be_mounted_twice(sessions[name], machine) is False:
            directories: dict[str, list[int]] = {}
            for number in alike:
                directories.setdefault(posixpath.dirname(paths[number]), []).append(number)
            return directories.values()
    return [alike]


def _paths(session: Session, ends: Sequence[Endpoint]) -> list[str | None]:
    """Return the places' paths on their one machine, their directories' links resolved; None where there is none."""
    machine = ends[0].machine
    base = real_base(session, machine)
    found = directories_of(session, machine, base, {posixpath.dirname(end.place.path) for end in ends})
    paths = list[str | None]()
    for end in ends:
        directory = found[posixpath.dirname(end.place.path)]
        if isinstance(directory, ResolvedDirectory) and not directory.missing:
            paths.append(posixpath.join(directory.path, end.place.name))
        else:
            paths.append(None)
    return paths


def _directory_keys(directories: Sequence[Name]) -> dict[Name, Hashable]:
    """Return a key for each directory, equal for two names of one."""
    if len(directories) < 2:
        return dict.fromkeys(directories, 0)
    identities: dict[Name, Hashable] = {}
    for session, paths in _by_session(directories).items():
        for index, stat in session.bulk.lstat(paths):
            known = stat.identity if isinstance(stat, FileStat) else (paths[index],)  # nothing is there
            if known is None:
                return _marked_keys(directories)
            identities[session, paths[index]] = known
    return identities


def _marked_keys(directories: Sequence[Name]) -> dict[Name, Hashable]:
    """Tell directories apart by what is read from the file of ours in each: a second name of one shows the first's.

    Read back from all: some servers do not keep to O_EXCL. Raises: PathReplaced for a file that was made, but is gone.
    """
    made, removed, missing = set[Name](), set[Hashable](), list[Name]()
    name, numbers = temporary_name("same-file", uuid4(), 0), {one: number for number, one in enumerate(directories)}
    keys: dict[Name, Hashable] = {one: (number,) for one, number in numbers.items()}
    by_session = _by_session(directories)
    try:
        for session, paths in by_session.items():
            marks = [posixpath.join(path, name) for path in paths]
            now, contents = int(time.time()), [str(numbers[session, path]).encode() for path in paths]
            files = [NewFile(mark, data, 0o644, now) for mark, data in zip(marks, contents, strict=True)]
            for index, kept in session.bulk.write(files):
                if isinstance(kept, KeptAttributes | PathReplaced):  # what was not written is not read either
                    made.add((session, paths[index]))
        for session, paths in by_session.items():
            marks = [posixpath.join(path, name) for path in paths]
            for index, found in session.bulk.read(marks, _MARK_MAX):
                if not isinstance(found, TransportError):
                    keys[session, paths[index]] = found.data
    finally:
        for session, paths in by_session.items():
            for index, error in session.bulk.remove([posixpath.join(path, name) for path in paths]):
                one = session, paths[index]
                if error is None:
                    removed.add(keys[one])
                elif isinstance(error, PathMissing) and one in made:
                    missing.append(one)
    for one in missing:
        if keys[one] not in removed:  # under another name of the directory
            raise own_file_gone(posixpath.join(one[1], name))
    return keys


def _is_folded(session: Session, directory: str, name: str, other: str) -> bool:
    """Say whether a directory takes one name for the other: a file of ours is made whose name has the one in it, and is
    looked for by the other."""
    owner = uuid4()
    mark, same = (posixpath.join(directory, temporary_name(one, owner, 0)) for one in (name, other))
    try:
        with session.create(mark):
            pass
    except TransportError as exc:
        if exc.retryable:
            raise
        return False  # nothing can be replaced or removed there either
    try:
        return lstat_or_none(session, same) is not None
    finally:
        with own_file(mark):
            session.remove(mark)


def _by_session(names: Sequence[Name]) -> dict[Session, list[str]]:
    found: dict[Session, list[str]] = {}
    for session, path in names:
        found.setdefault(session, []).append(path)
    return found
