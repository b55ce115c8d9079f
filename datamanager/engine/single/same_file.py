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
from datamanager.errors import DestinationExists, PathMissing, TransportError
from datamanager.machines import TransportKind
from datamanager.transports.port import Session
from datamanager.transports.values import FileKind, FileStat, NewFile

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
        and _is_one_file(session, source, stat, final, there, one_machine)
    ):
        raise DestinationExists(f"{job.source.place} and {job.target.place} are the same file")


def same_as_one_of(end: Endpoint, others: Sequence[Endpoint]) -> Place | None:
    """Return which of the other places is the same file as that of `end`, under another name; None when none is, or
    when there is no file. A machine that can't be asked is left out, unless it is that of `end`. Blocks.

    Raises: what the transports raise of the machine of `end`.
    """
    by_machine: dict[str, list[Endpoint]] = {}
    for other in others:
        if other.place != end.place:
            by_machine.setdefault(other.machine.name, []).append(other)
    for machine, here in by_machine.items():
        storages = {one.machine.name: one.storage for one in (end, here[0])}
        try:
            with ExitStack() as stack:  # in the sequence of their names, as `endpoints.acquire_sessions` does
                sessions = {name: stack.enter_context(storages[name].session()) for name in sorted(storages)}
                found = _same_there(sessions[end.machine.name], end, sessions[machine], here)
        except TransportError:
            if machine == end.machine.name:
                raise
            continue
        if found is not None:
            return found
    return None


def _is_one_file(session: Session, source: str, stat: FileStat, final: str, there: FileStat, one_machine: bool) -> bool:
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
    common = Counter(folded(posixpath.basename(path)) for path in paths.values())
    alike = [number for number in sorted(paths) if common[folded(posixpath.basename(paths[number]))] > 1]
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


def _same_there(session: Session, end: Endpoint, there: Session, others: Sequence[Endpoint]) -> Place | None:
    paths = _paths(session, [end])
    mine = None if paths[0] is None else lstat_or_none(session, paths[0])
    if paths[0] is None or mine is None:
        return None
    theirs = _paths(there, others)
    known = [index for index, path in enumerate(theirs) if path is not None]
    alike = list[int]()
    for number, stat in there.bulk.lstat([theirs[index] or "" for index in known]):
        if isinstance(stat, FileStat) and _are_alike(stat, mine):
            alike.append(known[number])
    if not alike:
        return None
    mark, *keys = name_keys([(session, paths[0]), *((there, theirs[index] or "") for index in alike)])
    return next((others[index].place for index, key in zip(alike, keys, strict=True) if key == mark), None)


def _are_alike(stat: FileStat, other: FileStat) -> bool:
    if None not in (stat.identity, other.identity):
        return stat.identity == other.identity
    return (stat.kind, stat.size) == (other.kind, other.size)


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

    Read back from all: some servers do not keep to O_EXCL.
    """
    name, numbers = temporary_name("same-file", uuid4(), 0), {one: number for number, one in enumerate(directories)}
    keys: dict[Name, Hashable] = {one: (number,) for one, number in numbers.items()}
    by_session = _by_session(directories)
    try:
        for session, paths in by_session.items():
            marks = [posixpath.join(path, name) for path in paths]
            now, contents = int(time.time()), [str(numbers[session, path]).encode() for path in paths]
            files = [NewFile(mark, data, 0o644, now) for mark, data in zip(marks, contents, strict=True)]
            for _ in session.bulk.write(files):
                pass  # what was not written is not read either
        for session, paths in by_session.items():
            marks = [posixpath.join(path, name) for path in paths]
            for index, found in session.bulk.read(marks, _MARK_MAX):
                if not isinstance(found, TransportError):
                    keys[session, paths[index]] = found.data
    finally:
        for session, paths in by_session.items():
            for _ in session.bulk.remove([posixpath.join(path, name) for path in paths]):
                pass  # gone under another name already, or was never made
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
        session.remove(mark)


def _by_session(names: Sequence[Name]) -> dict[Session, list[str]]:
    found: dict[Session, list[str]] = {}
    for session, path in names:
        found.setdefault(session, []).append(path)
    return found
