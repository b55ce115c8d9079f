"""One attempt at a transfer, as the engine sees it: two ends, names and rules, and what is read where that is a virtual
file (a bundle in the making, a member of one). No catalogue, no Prefect."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from typing import Protocol
from uuid import UUID

from datamanager.domain.location import Place, temporary_name
from datamanager.domain.states import Route, TransferKind, Verified
from datamanager.errors import InternalError, SourceChanged
from datamanager.machines import Machine, TransportKind, VerifyPolicy
from datamanager.transports.port import Reader, Session, Storage
from datamanager.transports.values import Bytes, FileStat, KeptAttributes, clamped_mtime


class Digest(Protocol):
    """A hash that is fed in order; hashlib's are."""

    def update(self, data: Bytes, /) -> None:
        """Take the next bytes."""

    def hexdigest(self) -> str:
        """Return the sha256 (hex) of all bytes so far."""


class Content(Protocol):
    """A virtual file: it has a size and bytes at every offset, and may be read over several sessions at once."""

    def open(self, session: Session) -> AbstractContextManager[Reader]:
        """Open it over a session of its machine. Raises: what makes it unreadable, maybe only while it is read."""

    def digest(self) -> Digest:
        """Return a new hash for all of its bytes."""

    def require_unchanged(self, session: Session) -> None:
        """Look whether it still is what was read. Raises: SourceChanged."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One end of a transfer: a place, and the machine and storage it is on."""

    place: Place
    machine: Machine
    storage: Storage


@dataclass(frozen=True, slots=True)
class KnownFile:
    """What the catalogue knows of an object's file: size in bytes, sha256 (hex); None: not known."""

    size: int | None = None
    sha256: str | None = None

    def require(self, place: Place, size: int, sha256: str | None = None) -> None:
        """Check that the file at a place, of this size and sha256 (None: not hashed), may be the object's.

        Raises: SourceChanged.
        """
        if self.size is not None and size != self.size:
            raise SourceChanged(f"{place} is not the object's file any more: {size} bytes instead of {self.size}")
        if None not in (self.sha256, sha256) and sha256 != self.sha256:
            raise SourceChanged(f"{place} is not the object's file any more: it has another sha256")


@dataclass(frozen=True, slots=True)
class SourceMark:
    """What the source of a move was when it was read, as far as the intent does not say it: by this it is known again
    before it is removed (`engine.single.source_removal`).

    `mtime` in seconds. `read`: the source machine's time before the first byte was read (seconds since 1970), None if
    it could not be had. `inode` where the machine tells it. `sha256` (hex) of what was read, where the intent has none.
    """

    mtime: int
    read: float | None = None
    inode: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Intent:
    """What was recorded before a name was given: how a later attempt recognises its own work after a crash.

    `size` in bytes, `sha256` hex or None, `mtime` that the file gets or, where its machine keeps another one, has
    (seconds). `source`: of a move; those of earlier versions have none. `not_kept`: what of `mode`, `mtime` and `fsync`
    the machine does not keep as the source has it.
    """

    size: int
    sha256: str | None
    mtime: int
    source: SourceMark | None = None
    not_kept: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Accept what was read back from a note, which is JSON."""
        source: object = self.source
        if source is not None and isinstance(source, Mapping):
            object.__setattr__(self, "source", SourceMark(**source))
        if type(self.not_kept) is not tuple:
            object.__setattr__(self, "not_kept", tuple(self.not_kept))

    @property
    def source_mark(self) -> SourceMark:
        """What the source was; of an intent without a mark all that its own fields say."""
        return self.source or SourceMark(self.mtime)

    def note(self) -> dict[str, object]:
        """Return what is recorded of it: JSON, of which `Intent(**…)` makes it again."""
        source = None if self.source is None else asdict(self.source)
        return {
            "size": self.size,
            "sha256": self.sha256,
            "mtime": self.mtime,
            "source": source,
            "not_kept": self.not_kept,
        }

    def stored_as(self, kept: KeptAttributes) -> Intent:
        """Return the intent with what the machine keeps of mode, mtime and fsync."""
        if kept.mtime == self.mtime and not kept.not_kept:
            return self
        return replace(self, mtime=kept.mtime, not_kept=tuple(dict.fromkeys((*self.not_kept, *kept.not_kept))))


def kept_mtime(machine: Machine, mtime: int) -> tuple[int, tuple[str, ...]]:
    """Return the time nearest to `mtime` (seconds) that the machine can be told, and what is not kept by that."""
    kept = clamped_mtime(mtime) if machine.transport is TransportKind.SFTP else mtime
    return kept, () if kept == mtime else ("mtime",)


@dataclass(frozen=True, slots=True)
class Restart:
    """The restart marker: whose bytes a partial file has, recorded before the first of them (`single.restart`).

    `size` (bytes) and `mtime` (seconds) are the source's; `window` is how many bytes may be missing before the partial
    file's end. An external source has no `mtime` (0) but a `version`; then the first `done` bytes were stored, and
    `sha256` (hex) is theirs (`engine.fetching.download`).
    """

    size: int
    mtime: int
    window: int
    version: str | None = None
    done: int = 0
    sha256: str | None = None

    def fits(self, source: FileStat) -> bool:
        """Say whether the source is still the one that the partial file was read from."""
        return (self.size, self.mtime) == (source.size, source.mtime)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt. `source` is None for downloads, `destination` for deletes."""

    transfer: UUID
    epoch: int
    kind: TransferKind
    source: Endpoint | None
    destination: Endpoint | None
    overwrite: bool = False
    verify: VerifyPolicy = VerifyPolicy.SHA256
    intent: Intent | None = None
    """Recorded by an earlier attempt that may have published."""
    restart: Restart | None = None
    """Recorded by an earlier try or attempt before it wrote a partial file."""
    known: KnownFile = KnownFile()
    """Of a move: what its object's file must be."""
    limited: bool = False
    """A bandwidth limit is in force: the bytes must go through the mover, which keeps to it."""

    @property
    def origin(self) -> Endpoint:
        """The source. Raises: InternalError when this kind has none."""
        if self.source is None:
            raise InternalError(f"{self.kind} has no source")
        return self.source

    @property
    def target(self) -> Endpoint:
        """The destination. Raises: InternalError when this kind has none."""
        if self.destination is None:
            raise InternalError(f"{self.kind} has no destination")
        return self.destination

    @property
    def proof_level(self) -> Verified:
        """What its policy proves of the bytes."""
        return Verified.SHA256 if self.verify is VerifyPolicy.SHA256 else Verified.SIZE

    @property
    def part_name(self) -> str:
        """The name of this attempt's partial file."""
        return temporary_name(self.target.place.name, self.transfer, self.epoch)

    @property
    def earlier_part_names(self) -> list[str]:
        """The names of partial files that earlier attempts of this transfer may have left; epoch 0 is an earlier try of
        the first one (`engine.fetching.remote_download`)."""
        name = self.target.place.name
        return [temporary_name(name, self.transfer, epoch) for epoch in range(max(0, self.epoch - 20), self.epoch)]


@dataclass(frozen=True, slots=True)
class Found:
    """What the probe saw. Paths are absolute on their machines, links resolved."""

    route: Route
    directory: str
    """The destination's directory."""
    final: str
    """The destination."""
    part: str
    """The attempt's partial file beside it."""
    source_path: str = ""
    source: FileStat | None = None
    canonical: str = ""
    """The destination below the base directory with links resolved; differs from the requested place below a linked
    directory, and is claimed too then."""
    taken: bool = False
    """A file is at the destination: whose it is has to be looked up before it is replaced, or accepted as ours."""
    published: Intent | None = None
    """An earlier attempt of this transfer has published already: go straight to the catalogue."""
    content: Content | None = None
    """What is read; None for the file at `source_path`, as it is."""
    read: float | None = None
    """Of a move: the source machine's time before a byte of it was read; see `SourceMark`."""

    @property
    def size(self) -> int | None:
        """The source's size in bytes; None when only the transfer will tell."""
        return self.source.size if self.source else None

    @property
    def source_stat(self) -> FileStat:
        """The source's stat. Raises: InternalError for a download."""
        if self.source is None:
            raise InternalError("a download has no source file")
        return self.source

    def intent(self, job: Attempt, size: int, sha256: str | None = None) -> Intent:
        """Return what is to be recorded before the source's bytes get their name. Raises: InternalError for a
        download."""
        source = self.source_stat
        mtime, not_kept = kept_mtime(job.target.machine, source.mtime)
        mark = SourceMark(source.mtime, self.read, source.inode) if job.kind is TransferKind.MOVE else None
        return Intent(size, sha256, mtime, mark, not_kept)

    def open(self, session: Session) -> AbstractContextManager[Reader]:
        """Open what is read, over a session of its machine. Raises: PathMissing, or what the content raises."""
        return session.open_read(self.source_path) if self.content is None else self.content.open(session)

    def digest(self) -> Digest:
        """Return a new hash for what is read."""
        return hashlib.sha256() if self.content is None else self.content.digest()


@dataclass(frozen=True, slots=True)
class Moved:
    """What the transfer step did: bytes that are in the partial file, and, where it was taken meanwhile, the sha256
    (hex) of what was read, and that of what is stored, read from the destination's storage.
    """

    size: int
    sha256: str | None = None
    stored: str | None = None


@dataclass(frozen=True, slots=True)
class Proof:
    """What the verify step proved of the partial file: size in bytes, sha256 (hex) with the policy `sha256`."""

    size: int
    sha256: str | None
    verified: Verified
