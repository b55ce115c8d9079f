"""A chunk of a batch: some hundred small files that go from one machine to another in step. What each one is and how it
ended; no work is done here but tidying up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, Protocol, TypeVar
from uuid import UUID, uuid5

from datamanager.domain.location import Place, temporary_name
from datamanager.engine.attempt import Intent, KnownFile, SourceMark, kept_mtime
from datamanager.engine.bulk.bulk_survey import Surveyed
from datamanager.engine.control import Control
from datamanager.engine.path_confinement import BulkLookup, PathLookup
from datamanager.errors import DataManagerError, SourceChanged
from datamanager.machines import Machine, VerifyPolicy
from datamanager.transports.bulk_port import Results
from datamanager.transports.port import Session
from datamanager.transports.values import FileKind, FileStat, KeptAttributes, SmallFile

SMALL = 512 * 1024
"""Bytes up to which a file is small: 64 are in memory at each end of the way, 64 MiB at the most."""

TOLD_TOGETHER = 64 * 1024
"""Bytes that are counted at once: for each file it takes longer than to compare its hash."""


def item_id(transfer: UUID, number: int) -> UUID:
    """Return what an item is to the one-file engine: a transfer, so that it has a partial file's name of its own."""
    return uuid5(transfer, str(number))


def part_name(transfer: UUID, number: int, name: str, epoch: int) -> str:
    """Name the partial file of an item that goes together with others, as a transfer of this file alone would.

    Where the name is too long to be kept whole the item's number goes before it: names that begin alike would share a
    partial file.
    """
    plain = temporary_name(name, transfer, epoch)
    return plain if plain.startswith(f".{name}.") else temporary_name(f"{number}.{name}", transfer, epoch)


def beside(directory: str, name: str) -> str:
    """Return the path of a name in a directory (absolute, normalised)."""
    return f"{directory}/{name}" if directory != "/" else f"/{name}"


class SmallItem(NamedTuple):
    """One file to carry; `number` is the caller's, unique within the transfer."""

    number: int
    source: Place
    destination: Place


class Staged(NamedTuple):
    """An item whose verified bytes are in the partial file `part`, ready for its name `final`.

    Paths are absolute on their machines, links resolved; `canonical` is the destination below its base directory. Size
    in bytes and mode are the source's; sha256 (hex) is there with that policy. `intent` is to be recorded before the
    file gets its name. `published`: an earlier attempt got that far, and there is no partial file.
    """

    number: int
    source_path: str
    final: str
    part: str
    canonical: str
    size: int
    mode: int
    sha256: str | None
    intent: Intent
    published: bool = False
    taken: bool = False
    """A file lies at the destination: see `engine.attempt.Found`."""

    @property
    def mtime(self) -> int:
        """The time that the file has (seconds)."""
        return self.intent.mtime


class Failed(NamedTuple):
    """An item that can't be carried, and why; nothing of it is left."""

    number: int
    error: DataManagerError


class Deferred(NamedTuple):
    """An item that is not for this way (large, a link, …): the one-file engine carries it, or says what is wrong."""

    number: int


_NOTHING_SEEN = FileStat(FileKind.OTHER, 0, 0, 0)

Outcome = Staged | Failed | Deferred


class BulkReads(BulkLookup, Protocol):
    """Looks at many small files and reads them; see the port's Many."""

    def read(self, paths: Sequence[str], most: int, likely: int | None = None) -> Results[SmallFile | DataManagerError]:
        """Yield whole regular files of at most `most` bytes each, or why not; `likely`: bytes of the largest."""


class SmallFileSource(PathLookup, Protocol):
    """Where small files are read; a Session is one, a bundle's members are another. (`bundles.recall`)"""

    @property
    def bulk(self) -> BulkReads:
        """Work on many small files at once."""


SourceT_co = TypeVar("SourceT_co", bound=SmallFileSource, covariant=True)


@dataclass(frozen=True, slots=True)
class BulkEndpoints(Generic[SourceT_co]):
    """The two machines, the one's files and a session of the other one."""

    source: SourceT_co
    target: Session
    origin: Machine
    destination: Machine


@dataclass(frozen=True, slots=True)
class BulkRules:
    """What holds for every item. `packed`: by a tar stream where the target can. `most`: bytes of the largest file.
    `ours`: what earlier attempts recorded before they published, by item number; a destination that has just that
    counts as published. Of a move: `known` is what the objects' files must be; `clock` tells the time of a directory's
    machine, and what the sources were, and when, is kept in the intents.
    """

    transfer: UUID
    epoch: int
    verify: VerifyPolicy = VerifyPolicy.SHA256
    overwrite: bool = False
    packed: bool = False
    most: int = SMALL
    ours: Mapping[int, Intent] = field(default_factory=dict)
    known: Mapping[int, KnownFile] = field(default_factory=dict)
    clock: Callable[[str], float | None] | None = None
    keys: Mapping[int, tuple[UUID, int]] = field(default_factory=dict)
    """Items that are transfers of their own, and their epochs: their partial files are named as if each went alone."""

    @property
    def moving(self) -> bool:
        """Say whether the sources are to go in the end."""
        return self.clock is not None

    @property
    def hashed(self) -> bool:
        """Say whether contents are compared, not sizes alone."""
        return self.verify is VerifyPolicy.SHA256

    def epoch_of(self, item: SmallItem) -> int:
        """Return the epoch of an item."""
        return self.keys[item.number][1] if self.keys else self.epoch

    def part_name(self, item: SmallItem, epoch: int) -> str:
        """Name an item's partial file."""
        if self.keys:
            return temporary_name(item.destination.name, self.keys[item.number][0], epoch)
        return part_name(self.transfer, item.number, item.destination.name, epoch)


@dataclass(slots=True, eq=False)
class SmallTask:
    """An item under way; `stat` is the source's, as first seen."""

    item: SmallItem
    source_directory: str
    directory: str
    """The destination's."""
    part_name: str
    canonical: str
    stat: FileStat = _NOTHING_SEEN
    sha256: str | None = None
    """Of the bytes read (hex)."""
    taken: bool = False
    kept: KeptAttributes | None = None
    """What the machine keeps of mode, mtime and fsync; None: all, as far as is known."""

    number: int = field(init=False)
    source_path: str = field(init=False)
    final: str = field(init=False)
    part: str = field(init=False)

    def __post_init__(self) -> None:
        """Put the paths together."""
        item = self.item
        self.number = item.number
        self.source_path = beside(self.source_directory, item.source.name)
        self.final = beside(self.directory, item.destination.name)
        self.part = beside(self.directory, self.part_name)

    def why_not_known(self, known: KnownFile | None, stat: FileStat) -> SourceChanged | None:
        """Return why this is not the file that its object knows; None when it may be."""
        try:
            if known is not None:
                known.require(self.item.source, stat.size, self.sha256)
        except SourceChanged as changed:
            return changed
        return None

    def staged(self, intent: Intent, *, published: bool = False) -> Staged:
        """Return the good outcome."""
        return Staged(
            self.number,
            self.source_path,
            self.final,
            self.part,
            self.canonical,
            intent.size,
            self.stat.mode & 0o777,
            intent.sha256,
            intent,
            published,
            self.taken,
        )


@dataclass(slots=True)
class Chunk:
    """The items of one call. One that has an outcome is not touched any more, except to remove what it made."""

    ends: BulkEndpoints[SmallFileSource]
    rules: BulkRules
    control: Control
    tasks: list[SmallTask] = field(default_factory=list)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    made: dict[int, SmallTask] = field(default_factory=dict)
    """Those that may have a partial file, by number."""
    counted: set[int] = field(default_factory=set)
    """Those whose bytes were counted."""
    untold: int = 0
    """Bytes of those that the control has not heard of yet."""
    kept_mtimes: dict[int, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    """What the destination keeps of the sources' times."""
    read: float | None = None
    """The source machine's time before a byte was read; see `SourceMark`."""
    synced: bool = False
    """Whether all that was written is on stable storage."""
    sources: Surveyed = field(init=False)
    targets: Surveyed = field(init=False)

    def intent(self, task: SmallTask) -> Intent:
        """Return what is to be recorded of an item that is staged."""
        mtime, not_kept = self._kept_mtime(task.stat.mtime)
        mark = SourceMark(task.stat.mtime, self.read, task.stat.inode, task.sha256) if self.rules.moving else None
        intent = Intent(task.stat.size, task.sha256 if self.rules.hashed else None, mtime, mark, not_kept)
        return intent if task.kept is None else intent.stored_as(task.kept)

    def mtime(self, task: SmallTask) -> int:
        """Return the time (seconds) that an item's file gets."""
        return self._kept_mtime(task.stat.mtime)[0]

    def _kept_mtime(self, mtime: int) -> tuple[int, tuple[str, ...]]:
        """Return what is kept of a source's time, of which many files have the same."""
        if mtime not in self.kept_mtimes:
            self.kept_mtimes[mtime] = kept_mtime(self.ends.destination, mtime)
        return self.kept_mtimes[mtime]

    def left(self) -> list[SmallTask]:
        """Return the items that have no outcome yet."""
        return [task for task in self.tasks if task.number not in self.outcomes]

    def fail(self, number: int, error: DataManagerError) -> None:
        """Note that an item can't be carried."""
        self.outcomes[number] = Failed(number, error)

    def count(self, task: SmallTask) -> None:
        """Count an item's bytes as done, once; the control hears of them together with others (`tell`). Raises: the
        reason that the control was stopped with."""
        if task.number not in self.counted:
            self.counted.add(task.number)
            self.untold += task.stat.size
            if self.untold >= TOLD_TOGETHER:
                self.tell()

    def tell(self) -> None:
        """Count for the control what it has not heard of yet. Raises: the reason that it was stopped with."""
        told, self.untold = self.untold, 0
        self.control.advance(told)

    def remove_parts(self, tasks: Sequence[SmallTask]) -> None:
        """Remove what there is of these partial files. Raises: what breaks the connection."""
        for _ in self.ends.target.bulk.remove([task.part for task in tasks]):
            pass  # it was not there, or can't be removed: the sweep of partial files reports it
        for task in tasks:
            self.made.pop(task.number, None)
