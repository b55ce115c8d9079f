"""The first step for many small files: look at both ends before a byte moves, all of them at once.

Directories are resolved, confined and made once each; sources there, regular and small; destinations free; space
enough. (docs/transfer-protocol.md, the publish protocol, 2)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain

from datamanager.domain.location import Place
from datamanager.engine.bulk.bulk_chunk import Chunk, Deferred, SmallItem, SmallTask, beside
from datamanager.engine.bulk.bulk_survey import survey_destinations, survey_sources
from datamanager.engine.path_confinement import canonical_of
from datamanager.engine.single.probe import why_not_replaced
from datamanager.errors import (
    DataManagerError,
    DestinationExists,
    NoSpace,
    PathExists,
    PathMissing,
    PathNotAllowed,
    SourceMissing,
    TransportError,
)
from datamanager.transports.values import FileKind, FileStat

EARLIER_EPOCHS = 20
"""How many earlier attempts' partial files are looked for."""


def resolve(chunk: Chunk, items: Sequence[SmallItem]) -> None:
    """Find each item's real paths, below the machines' base directories; make the destinations' directories.

    Raises: what would go otherwise another time, as when a connection broke.
    """
    ends = chunk.ends
    _survey(chunk, items)
    base, faults = chunk.targets.base, chunk.targets.not_made
    finals = set[tuple[str, str]]()
    together = defaultdict[tuple[str, str], list[SmallTask]](list)  # programs take files of one directory together
    canonicals = dict[str, str]()
    origins, wholes = chunk.sources.directories, chunk.targets.directories
    for item in items:
        origin, directory = origins[item.source.directory], wholes[item.destination.directory]
        if isinstance(origin, DataManagerError):
            chunk.fail(item.number, origin)
            continue
        if isinstance(directory, DataManagerError):
            chunk.fail(item.number, directory)
            continue
        if (fault := faults.get(directory)) is not None:
            chunk.fail(item.number, _not_made(item.destination, fault))
            continue
        name = item.destination.name
        if directory not in canonicals:
            try:
                canonicals[directory] = canonical_of(ends.destination, base, directory)
            except PathNotAllowed as error:
                chunk.fail(item.number, error)
                continue
        where = canonicals[directory]
        if (directory, name) in finals:
            chunk.fail(item.number, DestinationExists(f"{item.destination}: two items have this destination"))
            continue
        finals.add((directory, name))
        part = chunk.rules.part_name(item, chunk.rules.epoch_of(item))
        canonical = name if where == "." else f"{where}/{name}"
        together[directory, origin].append(SmallTask(item, origin, directory, part, canonical))
    chunk.tasks = list(chain.from_iterable(together.values()))


def _survey(chunk: Chunk, items: Sequence[SmallItem]) -> None:
    """Survey both ends, at the same time where each has a program that takes a round trip for it."""
    ends = chunk.ends
    sources = partial(survey_sources, ends.source, ends.origin, [item.source for item in items])
    targets = partial(survey_destinations, ends.target, ends.destination, [item.destination for item in items])
    programs = {ends.source.bulk.in_one_turn, ends.target.bulk.in_one_turn} - {None}
    if len(programs) == 2:
        with ThreadPoolExecutor(1, thread_name_prefix="survey") as other:
            found = other.submit(sources)
            chunk.targets = targets()
        chunk.sources = found.result()
    else:
        chunk.sources = sources()
        chunk.control.check()
        chunk.targets = targets()
    chunk.control.check()


def look(chunk: Chunk) -> None:
    """Note what can't go or need not go, and what the sources are; remove partial files of earlier attempts."""
    _look_at_destinations(chunk)
    tasks = chunk.left()
    for index, found in chunk.sources.lstat(chunk.ends.source.bulk, [task.source_path for task in tasks]):
        task = tasks[index]
        if isinstance(found, PathMissing):
            chunk.fail(task.number, SourceMissing(f"{task.item.source}: no such file"))
        elif isinstance(found, TransportError):
            chunk.fail(task.number, found)
        elif found.kind is not FileKind.FILE or found.size > chunk.rules.most:
            chunk.outcomes[task.number] = Deferred(task.number)
        elif (changed := task.why_not_known(chunk.rules.known.get(task.number), found)) is not None:
            chunk.fail(task.number, changed)
        else:
            task.stat = found
    _remove_earlier_parts(chunk)


def require_space(chunk: Chunk) -> None:
    """Let through as many items as the target has space for. A directory is asked when the first one has none left: it
    may be on another file system.
    """
    tasks = chunk.left()
    if not tasks:
        return
    first = tasks[0].directory
    spaces = {first: _free_space(chunk, first)}
    free, needed = spaces[first], 0
    for task in tasks:
        needed += task.stat.size
        if free is not None and needed > free:
            needed -= task.stat.size
            if _has_space(chunk, task, spaces):
                continue
            machine = chunk.ends.destination.name
            chunk.fail(task.number, NoSpace(f"{machine}: {task.stat.size} bytes more are needed, {free - needed} free"))


def _free_space(chunk: Chunk, directory: str) -> int | None:
    known = chunk.targets.free
    return known[directory] if directory in known else chunk.ends.target.free_space(directory)


def _has_space(chunk: Chunk, task: SmallTask, spaces: dict[str, int | None]) -> bool:
    """Say whether a directory has space for a task, which is taken from it then."""
    directory = task.directory
    if directory not in spaces:
        spaces[directory] = _free_space(chunk, directory)
        if spaces[directory] == next(iter(spaces.values())):  # as good as surely the same file system
            spaces[directory] = 0
    free = spaces[directory]
    if free is None or directory == next(iter(spaces)):
        return free is None
    spaces[directory] = free - task.stat.size
    return free >= task.stat.size


def _not_made(place: Place, fault: TransportError) -> DataManagerError:
    if isinstance(fault, PathExists):
        return DestinationExists(f"{place}: a file exists where a directory is required: {fault.detail}")
    return fault


def _look_at_destinations(chunk: Chunk) -> None:
    tasks, candidates = chunk.left(), list[SmallTask]()
    for index, found in chunk.targets.lstat(chunk.ends.target.bulk, [task.final for task in tasks]):
        task = tasks[index]
        if isinstance(found, PathMissing):
            continue
        elif isinstance(found, TransportError):
            chunk.fail(task.number, found)
            continue
        task.taken = True
        if _may_be_ours(chunk, task, found):
            task.stat = found
            candidates.append(task)
        else:
            _require_replaceable(chunk, task, found.kind)
    _accept_ours(chunk, candidates)


def _may_be_ours(chunk: Chunk, task: SmallTask, there: FileStat) -> bool:
    """Say whether an earlier attempt may have published this; with a checksum recorded that is to be looked at yet."""
    intent = chunk.rules.ours.get(task.number)
    if intent is None or there.kind is not FileKind.FILE or there.size != intent.size:
        return False
    if intent.sha256 is None:
        # to be overwritten it could be the old file of that size and mtime: doing it again is safe
        return not chunk.rules.overwrite and there.mtime == intent.mtime
    return True


def _accept_ours(chunk: Chunk, candidates: Sequence[SmallTask]) -> None:
    hashes: dict[int, str | TransportError] = {}
    hashed = [task for task in candidates if chunk.rules.ours[task.number].sha256 is not None]
    for index, digest in chunk.ends.target.bulk.digest([task.final for task in hashed], chunk.rules.most):
        hashes[hashed[index].number] = digest
    for task in candidates:
        intent = chunk.rules.ours[task.number]
        if intent.sha256 is None or hashes[task.number] == intent.sha256:
            chunk.outcomes[task.number] = task.staged(intent, published=True)
        else:
            _require_replaceable(chunk, task, FileKind.FILE)


def _require_replaceable(chunk: Chunk, task: SmallTask, kind: FileKind) -> None:
    fault = why_not_replaced(task.item.destination, kind, overwrite=chunk.rules.overwrite)
    if fault is not None:
        chunk.fail(task.number, fault)


def _remove_earlier_parts(chunk: Chunk) -> None:
    rules = chunk.rules
    parts = [
        beside(task.directory, rules.part_name(task.item, epoch))
        for task in chunk.tasks
        for epoch in range(max(1, rules.epoch_of(task.item) - EARLIER_EPOCHS), rules.epoch_of(task.item))
    ]
    for _ in chunk.ends.target.bulk.remove(parts):
        pass  # mostly there is none
