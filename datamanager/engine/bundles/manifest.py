"""Manifests as JSON (docs/bundles.md, docs/manifest.schema.json): written, and read back strictly."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal, Self
from uuid import UUID

import orjson
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from datamanager.domain.bundle_model import (
    MEMBERS_MAX,
    Frame,
    Manifest,
    Member,
    Pack,
    SealedBundle,
    VerifyLevel,
    member_name,
)
from datamanager.domain.location import PATH_MAX, Place
from datamanager.errors import RemoteFailure
from datamanager.machines import describe
from datamanager.transports.port import Session
from datamanager.transports.values import FileKind, shown

FORMAT = "datamanager-bundle"
VERSION = 1
LENGTH_MAX = 128 * 1024 * 1024
"""Bytes of the longest manifest that is read."""

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Path = Annotated[str, Field(min_length=1, max_length=PATH_MAX)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BundleDocument(_Model):
    """The file beside which the manifest lies."""

    uuid: UUID
    pack: Pack
    machine: str
    path: _Path
    size: _Count
    sha256: _Sha256
    stream_size: _Count
    """Bytes of the tar file in it."""


class MadeDocument(_Model):
    """Who made it, when, by which request, and what was verified then."""

    at: AwareDatetime
    by: str
    transfer: UUID
    verify: VerifyLevel


class MemberDocument(_Model):
    """One object: where it was from, what its file was, and where its bytes begin in the tar file."""

    uuid: UUID
    name: str
    machine: str
    path: _Path
    size: _Count
    mode: Annotated[int, Field(ge=0, le=0o7777)]
    mtime: Annotated[int, Field(ge=-(2**63), lt=2**63)]
    sha256: _Sha256
    offset: _Count

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        parts = self.path.split("/")
        if "\0" in self.path or any(part in ("", ".", "..") for part in parts):
            raise ValueError("path must be a relative one without '.' and '..'")
        if self.name != member_name(self.uuid, parts[-1]):
            raise ValueError("name must be the object's uuid and its file's name")
        return self


class ManifestDocument(_Model):
    """The whole file."""

    format: Literal["datamanager-bundle"]
    version: Literal[1]
    bundle: BundleDocument
    made: MadeDocument
    members: Annotated[tuple[MemberDocument, ...], Field(min_length=1, max_length=MEMBERS_MAX)]
    frames: tuple[tuple[_Count, _Count], ...] = ()
    """Of a compressed bundle: each one's bytes, and how many of the tar file are in it."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        size = self.bundle.stream_size
        if any(member.offset + member.size > size for member in self.members):
            raise ValueError("a member must lie within the bundle")
        if len({member.uuid for member in self.members}) < len(self.members):
            raise ValueError("an object must be in it once")
        if (self.bundle.pack is Pack.TAR_ZST) != bool(self.frames):
            raise ValueError("a compressed bundle, and no other, must have frames")
        if self.frames and sum(length for _, length in self.frames) != size:
            raise ValueError("the frames must hold the whole bundle")
        return self


def dump(manifest: Manifest) -> bytes:
    """Return the file's bytes: the same for the same manifest."""
    bundle = manifest.bundle
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "bundle": {
            "uuid": bundle.uuid,
            "pack": bundle.pack,
            "machine": bundle.place.machine,
            "path": bundle.place.path,
            "size": bundle.size,
            "sha256": bundle.sha256,
            "stream_size": manifest.stream_size,
        },
        "made": {
            "at": manifest.made_at,
            "by": manifest.made_by,
            "transfer": manifest.transfer,
            "verify": manifest.level,
        },
        "members": [_member(member) for member in manifest.members],
        "frames": [[frame.stored, frame.size] for frame in manifest.frames],
    }
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def load(data: bytes) -> Manifest:
    """Read a manifest. Raises: RemoteFailure when it is none, or one of a version that we don't know."""
    try:
        document = ManifestDocument.model_validate_json(data)
    except ValidationError as exc:
        raise RemoteFailure(f"the manifest is invalid: {describe(exc)}") from None
    bundle, made = document.bundle, document.made
    return Manifest(
        bundle=SealedBundle(bundle.uuid, bundle.pack, Place(bundle.machine, bundle.path), bundle.size, bundle.sha256),
        made_at=datetime.fromisoformat(made.at.isoformat()),
        made_by=made.by,
        transfer=made.transfer,
        level=made.verify,
        stream_size=bundle.stream_size,
        members=tuple(
            Member(one.uuid, Place(one.machine, one.path), one.size, one.mode, one.mtime, one.sha256, one.offset)
            for one in document.members
        ),
        frames=tuple(Frame(*pair) for pair in document.frames),
    )


def read(session: Session, path: str) -> Manifest:
    """Read the manifest at a path of a machine. Raises: PathMissing; RemoteFailure for what is none."""
    with session.open_read(path) as reader:
        there = reader.stat()
        if there.kind is not FileKind.FILE or there.size > LENGTH_MAX:
            raise RemoteFailure(f"{shown(path)} is not a manifest")
        return load(b"".join(bytes(block) for block in reader.blocks(0, LENGTH_MAX)))


def _member(member: Member) -> dict[str, Any]:
    return {
        "uuid": member.uuid,
        "name": member.name,
        "machine": member.source.machine,
        "path": member.source.path,
        "size": member.size,
        "mode": member.mode,
        "mtime": member.mtime,
        "sha256": member.sha256,
        "offset": member.offset,
    }
