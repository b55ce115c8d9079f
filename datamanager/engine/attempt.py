"""One attempt at a transfer, as the engine sees it: two ends, names and rules, and what is read where that is a virtual
file (a bundle in the making, a member of one). No catalogue, no Prefect."""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from datamanager.domain.location import Place, temporary_name
from datamanager.domain.states import Route, TransferKind, Verified
from datamanager.errors import InternalError
from datamanager.machines import Machine, VerifyPolicy
from datamanager.transports.port import Reader, Session, Storage
from datamanager.transports.values import Bytes, FileStat


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
class Intent:
    """What was recorded before a name was given: how a later attempt recognises its own work after a crash.

    `size` in bytes, `sha256` hex or None, `mtime` of the file whose bytes these are (seconds).
    """

    size: int
    sha256: str | None
    mtime: int


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
