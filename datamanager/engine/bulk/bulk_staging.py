"""Many small files from one machine to another, through the mover, by the publish protocol, some hundred at a time.

Each step is done for the whole chunk before the next begins, with many requests in flight: look at both ends, read and
write into partial files, verify what is stored, look at the sources again. `bulk_publish` then gives the names. One
item's failure is its own; what breaks a connection ends the chunk, which a later attempt does again. Reading feeds
writing: what is in memory is what both ends have in flight. (docs/transfer-protocol.md, the publish protocol, 3 and 4)
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from contextlib import closing, suppress
from hashlib import sha256
from typing import cast

from datamanager.domain.location import folded
from datamanager.engine.bulk.bulk_chunk import (
    BulkEndpoints,
    BulkRules,
    Chunk,
    Outcome,
    SmallFileSource,
    SmallItem,
    SmallTask,
    beside,
)
from datamanager.engine.bulk.bulk_probe import look, require_space, resolve
from datamanager.engine.control import Control
from datamanager.engine.path_confinement import acted_elsewhere, real_base
from datamanager.engine.single.same_file import is_one_name
from datamanager.errors import (
    ChecksumMismatch,
    DataManagerError,
    DestinationExists,
    NotSupported,
    PathExists,
    PathMissing,
    SizeMismatch,
    SourceChanged,
    SourceMissing,
    TransportError,
)
from datamanager.transports.bulk_port import InOneTurn
from datamanager.transports.values import FileKind, FileStat, KeptAttributes, NewFile, path_replaced

_log = logging.getLogger(__name__)

_WORTH_REPEATING = (PathExists, SizeMismatch, ChecksumMismatch)
"""What a second writing mends: a partial file left by an earlier try of this attempt, a fault of the storage."""


def stage(
    ends: BulkEndpoints[SmallFileSource], items: Sequence[SmallItem], rules: BulkRules, control: Control
) -> list[Outcome]:
    """Bring the items' bytes into partial files beside their destinations and verify them.

    One outcome per item, in the items' order. The ends' sessions are two. `control` is advanced by the bytes of what is
    done. Where the machine can, what is staged is on stable storage.

    Raises: what breaks a connection (retryable) and what `control` raises; the partial files made here are removed
    first, if the machine can be reached.
    """
    chunk = Chunk(ends, rules, control)
    try:
        resolve(chunk, items)
        look(chunk)
        require_space(chunk)
        _ask_time(chunk)
        with ends.target.bulk.syncing() as sync:
            _carry(chunk)
            _refuse_one_place(chunk)
            _require_unchanged(chunk)
            _require_in_place(chunk)
            directories = sorted({task.directory for task in chunk.left()})
            if directories and not chunk.synced:
                try:
                    sync(directories)
                except NotSupported:  # some machines have no way to do it
                    _note_unsynced(chunk)
        control.check()
    except BaseException:
        with suppress(TransportError):  # what leads here matters more, and a later attempt removes these names, too
            chunk.remove_parts(list(chunk.made.values()))
        raise
    chunk.remove_parts([task for task in chunk.made.values() if task.number in chunk.outcomes])
    outcomes = chunk.outcomes | {task.number: task.staged(chunk.intent(task)) for task in chunk.left()}
    return [outcomes[item.number] for item in items]


def _note_unsynced(chunk: Chunk) -> None:
    """Note that what is staged may not be on stable storage."""
    for task in chunk.left():
        kept = task.kept or KeptAttributes(chunk.intent(task).mtime)
        task.kept = kept._replace(not_kept=(*kept.not_kept, "fsync"))


def _ask_time(chunk: Chunk) -> None:
    """Note the source machine's time; the file systems of one machine are taken to have the same."""
    tasks = chunk.left()
    if chunk.rules.clock is not None and tasks:
        chunk.read = chunk.rules.clock(tasks[0].source_directory)


def _carry(chunk: Chunk) -> None:
    """Bring every item's bytes into its partial file; what is stored wrongly is brought once more."""
    wrong = _bring(chunk, chunk.left(), packed=chunk.rules.packed)
    again = [task for task, error in wrong.items() if isinstance(error, _WORTH_REPEATING)]
    chunk.remove_parts(again)
    for task in again:
        del wrong[task]
    wrong |= _bring(chunk, again, packed=False)
    for task, error in wrong.items():
        chunk.fail(task.number, error)


def _refuse_one_place(chunk: Chunk) -> None:
    """Refuse to replace a file by itself: two machine names can stand for one directory.

    If a partial file, just made, shows beside the source, both are one place; and one file if the two names are one
    there. Without `overwrite` the destination,
    which is the source then, was found to be taken.
    """
    if not chunk.rules.overwrite:
        return
    target = chunk.ends.target
    tasks = [task for task in chunk.left() if folded(task.item.source.name) == folded(task.item.destination.name)]
    names = [beside(task.source_directory, task.part_name) for task in tasks]
    looked = list(chunk.ends.source.bulk.lstat(names))
    for task in (tasks[index] for index, found in looked if not isinstance(found, PathMissing)):
        item = task.item
        if is_one_name((target, task.final), (target, beside(task.directory, item.source.name))):
            chunk.fail(item.number, DestinationExists(f"{item.source} and {item.destination} are the same file"))


def _require_unchanged(chunk: Chunk) -> None:
    """Check that the sources still have the size and mtime that they had at first."""
    tasks = chunk.left()
    for index, now in chunk.ends.source.bulk.lstat([task.source_path for task in tasks]):
        task, place = tasks[index], tasks[index].item.source
        if isinstance(now, PathMissing):
            chunk.fail(task.number, SourceChanged(f"{place} disappeared during the transfer"))
        elif isinstance(now, TransportError):
            chunk.fail(task.number, now)
        elif now.kind is not FileKind.FILE or not now.is_version(task.stat):
            chunk.fail(task.number, _changed(task))


def _require_in_place(chunk: Chunk) -> None:
    """Check that the items' directories are where they were when the bytes were read and written."""
    ends = chunk.ends
    sources = acted_elsewhere(ends.source, [task.source_directory for task in chunk.left()])
    targets = acted_elsewhere(ends.target, [task.directory for task in chunk.left()])
    for task in chunk.left() if sources or targets else ():
        away = sources.get(task.source_directory) or targets.get(task.directory)
        if away is not None:
            chunk.fail(task.number, away)


def _bring(chunk: Chunk, tasks: Sequence[SmallTask], *, packed: bool) -> dict[SmallTask, DataManagerError]:
    """Write and compare; return what went wrong at the target. What is wrong with a source is noted."""
    wrong: dict[SmallTask, DataManagerError] = {}
    if chunk.ends.target.bulk.in_one_turn is not None:
        return _store(chunk, tasks, chunk.ends.target.bulk.in_one_turn)
    if not (packed and _unpack(chunk, tasks)):
        wrong |= _write(chunk, tasks)
    stored = [task for task in tasks if task not in wrong and task.number not in chunk.outcomes]
    return wrong | _compare(chunk, stored)


def _store(chunk: Chunk, tasks: Sequence[SmallTask], program: InOneTurn) -> dict[SmallTask, DataManagerError]:
    """Write, compare and sync in one turn; return what went wrong."""
    wrong: dict[SmallTask, DataManagerError] = {}
    sent = list[SmallTask]()
    with (
        closing(_files(chunk, tasks, sent)) as files,
        closing(program.store(files, hashed=chunk.rules.hashed)) as results,
    ):
        try:
            for index, found in results:
                task = sent[index]
                if isinstance(found, KeptAttributes):
                    task.kept = found
                    chunk.count(task)
                elif task.kept is None:
                    wrong[task] = cast("TransportError", found)
                elif (fault := _why_wrong(task, found)) is not None:
                    wrong[task] = fault
            chunk.synced = True
        except NotSupported:
            chunk.synced = False  # otherwise, in the end
    chunk.tell()
    return {task: fault for task, fault in wrong.items() if task.number not in chunk.outcomes}


def _write(chunk: Chunk, tasks: Sequence[SmallTask]) -> dict[SmallTask, DataManagerError]:
    wrong: dict[SmallTask, DataManagerError] = {}
    sent = list[SmallTask]()
    with closing(_files(chunk, tasks, sent)) as files, closing(chunk.ends.target.bulk.write(files)) as results:
        for index, kept in results:
            if isinstance(kept, TransportError):
                wrong[sent[index]] = kept
            else:
                sent[index].kept = kept
                chunk.count(sent[index])
    chunk.tell()
    return wrong


def _unpack(chunk: Chunk, tasks: Sequence[SmallTask]) -> bool:
    """Bring all by one stream, whose end alone shows whether it succeeded; False when not, and nothing is left."""
    sent = list[SmallTask]()
    base = real_base(chunk.ends.target, chunk.ends.destination)
    try:
        with closing(_files(chunk, tasks, sent)) as files:
            chunk.ends.target.bulk.unpack(files, base)
    except NotSupported as exc:
        _log.info("%d files are written one by one: %s", len(tasks), exc.detail)
        chunk.remove_parts(sent)
        return False
    for task in sent:
        chunk.count(task)
    chunk.tell()
    return True


def _files(chunk: Chunk, tasks: Sequence[SmallTask], sent: list[SmallTask]) -> Generator[NewFile, None, None]:
    """Read the sources and yield what is to be written; `sent` receives the task of each one."""
    waiting = [task for task in tasks if task.number not in chunk.outcomes]
    paths = [task.source_path for task in waiting]
    largest = max((task.stat.size for task in waiting), default=0)
    hashed = chunk.rules.hashed or chunk.rules.moving
    with closing(chunk.ends.source.bulk.read(paths, chunk.rules.most, largest)) as results:
        for index, found in results:
            chunk.control.check()
            task = waiting[index]
            if isinstance(found, PathMissing):
                chunk.fail(task.number, SourceMissing(f"{task.item.source}: no such file"))
            elif isinstance(found, DataManagerError):
                chunk.fail(task.number, found)
            elif len(found.data) != found.stat.size or not found.stat.is_version(task.stat):
                chunk.fail(task.number, _changed(task))
            else:
                task.sha256 = sha256(found.data).hexdigest() if hashed else None
                if (changed := task.why_not_known(chunk.rules.known.get(task.number), found.stat)) is not None:
                    chunk.fail(task.number, changed)
                    continue
                sent.append(task)
                chunk.made[task.number], task.kept = task, None
                yield NewFile(task.part, found.data, task.stat.mode & 0o777, chunk.mtime(task))


def _compare(chunk: Chunk, tasks: Sequence[SmallTask]) -> dict[SmallTask, DataManagerError]:
    """Compare what is stored with what was read: the hashes, or with the policy `size` the sizes."""
    wrong: dict[SmallTask, DataManagerError] = {}
    bulk, parts = chunk.ends.target.bulk, [task.part for task in tasks]
    for index, far in bulk.digest(parts, chunk.rules.most) if chunk.rules.hashed else bulk.lstat(parts):
        if (fault := _why_wrong(tasks[index], far)) is not None:
            wrong[tasks[index]] = fault
    return wrong


def _why_wrong(task: SmallTask, far: FileStat | str | TransportError) -> DataManagerError | None:
    """Say why what is stored of an item (its stat, or its sha256) is not what was read."""
    place = task.item.destination
    if isinstance(far, PathMissing):
        return path_replaced(f"{place}: its partial file was written, but is not in its directory")
    elif isinstance(far, TransportError):
        return far
    elif isinstance(far, FileStat):
        if far.size != task.stat.size:
            return SizeMismatch(f"{place}: {far.size} bytes are stored, {task.stat.size} were sent")
    elif far != task.sha256:
        return ChecksumMismatch(f"{place}: sha256 {far} is stored, {task.sha256} was read")
    return None


def _changed(task: SmallTask) -> SourceChanged:
    return SourceChanged(f"{task.item.source} changed during the transfer")
