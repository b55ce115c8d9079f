"""Bundles: how archived objects lie in an archive. Names, members, manifests, and which objects go together.

A bundle is one file, its manifest another one beside it (docs/bundles.md has the formats).
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Self
from uuid import UUID

from datamanager.domain.location import Place
from datamanager.machines import Machine

MEMBERS_MAX = 10_000
"""Members of one bundle: what bounds its manifest, a few MiB."""


class Pack(StrEnum):
    """How a bundle's bytes are laid out."""

    TAR = "tar"
    """A tar file (pax)."""
    TAR_ZST = "tar.zst"
    """A tar file in the seekable format of zstd: many frames, and a table of them at the end."""
    NONE = "none"
    """One object, its bytes as they are."""

    @property
    def suffix(self) -> str:
        """What such a bundle's name ends with."""
        return ".data" if self is Pack.NONE else f".{self}"


class VerifyLevel(StrEnum):
    """What is proved of a bundle before its members count as archived (htar's words, `-Hverify`)."""

    SIZES = "sizes"
    """The bundle has as many bytes as were sent."""
    CHECKSUMS = "checksums"
    """The sha256 of the bundle, read from the archive's storage, is that of what was sent."""
    PARANOID = "paranoid"
    """That, and every member is read back from the bundle and has the sha256 of what was read from its source."""


@dataclass(frozen=True, slots=True)
class WantedMember:
    """An object that is to be archived: its file, and the size (bytes) that the catalogue knows, 0 if unknown."""

    uuid: UUID
    source: Place
    size: int = 0


@dataclass(frozen=True, slots=True)
class Member:
    """An object in a bundle: its bytes are `size` from `offset` of the uncompressed bundle.

    `source`: where its file was. mtime in seconds since 1970, mode the permission bits, sha256 in hex.
    """

    uuid: UUID
    source: Place
    size: int
    mode: int
    mtime: int
    sha256: str
    offset: int

    @property
    def name(self) -> str:
        """Its name in the tar file."""
        return member_name(self.uuid, self.source.name)


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a compressed bundle: how many bytes it has, and how many of the tar file are in it."""

    stored: int
    size: int


@dataclass(frozen=True, slots=True)
class SealedBundle:
    """A bundle as the catalogue has it: where it lies, its bytes and their sha256 (hex)."""

    uuid: UUID
    pack: Pack
    place: Place
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in a bundle: what the catalogue knows of it, and what stands in the file beside it.

    `made_by`: for whom; `transfer`: by which request; `made_at` is aware. `stream_size`: bytes of the uncompressed
    bundle. `frames` is empty unless it is compressed.
    """

    bundle: SealedBundle
    made_at: datetime
    made_by: str
    transfer: UUID
    level: VerifyLevel
    stream_size: int
    members: tuple[Member, ...]
    frames: tuple[Frame, ...] = ()


def bundle_place(machine: Machine, directory: str, bundle: UUID, pack: Pack) -> Place:
    """Return the place of a bundle in a directory of an archive machine. Raises: PathNotAllowed."""
    return Place.of(machine, directory, f"{bundle}{pack.suffix}")


def manifest_place(bundle: UUID, place: Place) -> Place:
    """Return the place of a bundle's manifest: beside it."""
    return Place(place.machine, posixpath.join(posixpath.dirname(place.path), f"{bundle}.manifest.json"))


def member_name(uuid: UUID, filename: str) -> str:
    """Name an object's member of a tar file."""
    return f"{uuid}/{filename}"


@dataclass(frozen=True, slots=True)
class Group:
    """Objects that become one bundle: all of one machine."""

    machine: str
    wanted: tuple[WantedMember, ...]

    @classmethod
    def each(cls, wanted: Iterable[WantedMember], bundle_size: int, *, alone: bool = False) -> list[Self]:
        """Group objects, in their order, by machine and up to `bundle_size` bytes; a larger one is by itself.

        `alone`: every object is by itself.
        """
        groups: list[list[WantedMember]] = []
        last: dict[str, int] = {}
        room: dict[str, int] = {}
        for one in wanted:
            machine = one.source.machine
            full = machine not in last or len(groups[last[machine]]) >= MEMBERS_MAX or one.size > room[machine]
            if alone or full:
                last[machine], room[machine] = len(groups), bundle_size
                groups.append([])
            groups[last[machine]].append(one)
            room[machine] -= one.size
        return [cls(group[0].source.machine, tuple(group)) for group in groups]
