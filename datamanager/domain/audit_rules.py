"""Audits: what a look at a machine means. Pure: rows and looks in, findings out.

A finding counts only when two looks, some time apart, have found it and the catalogue's row is still what it was: a
file that is being replaced, or a server that forgets for a moment, is no finding.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field

from datamanager.domain.fields import SIZE_MAX, Name, Real, Whole
from datamanager.domain.location import PART_SUFFIX
from datamanager.domain.requests import Request
from datamanager.domain.states import ObjectStatus

FEW = 10
"""As many objects may be lost whatever share of the machine's they are."""


class FindingKind(StrEnum):
    """How catalogue and storage differ."""

    LOST = "LOST"
    """A row without its file."""
    CHANGED = "CHANGED"
    """A file with another size than its row says, or (where it was hashed) another checksum."""
    DARK = "DARK"
    """A file without a row, below a directory where all files should have one."""
    FOUND = "FOUND"
    """The file of an UNKNOWN object is there again."""


class AuditStatus(StrEnum):
    """Where an audit is."""

    QUEUED = "QUEUED"
    """Requested; a mover will take it."""
    RUNNING = "RUNNING"
    """A mover looks, or waits for its second look."""
    COMPLETE = "COMPLETE"
    """The report is whole."""
    ERROR = "ERROR"
    """It could not look, or would not believe what it saw."""

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""
        return self in (AuditStatus.COMPLETE, AuditStatus.ERROR)


class AuditTerms(Request):
    """How a machine is audited."""

    scrub_share: Annotated[Real, Field(ge=0, le=1)] = 0.02
    """The share of the objects with a known checksum that are hashed again, those not hashed for longest first."""
    scrub_bytes: Annotated[Whole, Field(ge=0, le=SIZE_MAX)] = 100 * 2**30
    """Bytes after which hashing ends; one file is hashed whatever its size."""
    second_look: Annotated[Real, Field(ge=0, le=86_400)] = 60.0
    """Seconds between the first look and the second one."""
    most_lost: Annotated[Real, Field(ge=0, le=1)] = 0.1
    """More than this share of the objects (and more than 10) lost is not believed: nothing is changed then."""
    accept_losses: bool = False
    """Believe any number of losses, and a base directory that is empty."""


class AuditRequest(AuditTerms):
    """Audit a machine."""

    machine: Name


class Sight(StrEnum):
    """What became of a look at one file."""

    FILE = "file"
    """There is a regular file."""
    NOTHING = "nothing"
    """There is nothing, or no regular file."""
    UNSEEN = "unseen"
    """The machine would not say: no permission, a link that leads out, an error of its own. Never a loss."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the catalogue says of a file: `size` in bytes, `sha256` in hex, None where unknown. `modified` is the row's
    date_modified, which shows whether it is still the same row. `members`: of a bundle, the objects in it.
    """

    object_id: UUID
    place: str
    status: str
    size: int | None
    sha256: str | None
    modified: datetime
    members: int | None = None

    @property
    def is_bundle(self) -> bool:
        """Whether this is a bundle of archived objects, or its manifest."""
        return self.members is not None

    @property
    def facts(self) -> dict[str, Any]:
        """What a finding keeps of it."""
        facts: dict[str, Any] = {"status": self.status, "size": self.size, "modified": self.modified.isoformat()}
        if self.sha256 is not None:
            facts["sha256"] = self.sha256
        if self.members is not None:
            facts["members"] = self.members
        return facts


@dataclass(frozen=True, slots=True)
class Look:
    """What is there: `size` (bytes) and `mtime` (seconds since 1970) of a FILE, `path` on the machine with links
    resolved, and `canonical`, the same below base_dir. `sha256` where it was hashed; `why` it is UNSEEN.
    """

    sight: Sight
    size: int | None = None
    mtime: int | None = None
    path: str = ""
    canonical: str = ""
    sha256: str | None = None
    why: str = ""

    @property
    def facts(self) -> dict[str, Any]:
        """What a finding keeps of it."""
        facts = {"size": self.size, "mtime": self.mtime, "sha256": self.sha256}
        return {name: value for name, value in facts.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Finding:
    """A difference. `object_id` is that of the object, or of the bundle; None for what is DARK."""

    kind: FindingKind
    place: str
    object_id: UUID | None = None
    expected: Mapping[str, Any] = field(default_factory=dict)
    found: Mapping[str, Any] = field(default_factory=dict)


def judge(expected: Expected, look: Look) -> Finding | None:
    """Compare one row with one look; None where they agree, or the look says nothing."""
    if look.sight is Sight.UNSEEN:
        return None
    unknown = expected.status == ObjectStatus.UNKNOWN.value
    if look.sight is Sight.NOTHING:
        return None if unknown else _finding(FindingKind.LOST, expected, look)
    other_size = expected.size is not None and look.size != expected.size
    other_bytes = None not in (expected.sha256, look.sha256) and look.sha256 != expected.sha256
    if other_size or other_bytes:
        return _finding(FindingKind.CHANGED, expected, look)
    return _finding(FindingKind.FOUND, expected, look) if unknown else None


def proves(expected: Mapping[str, Any], found: Mapping[str, Any]) -> bool:
    """Say whether a FOUND file is the object's: the size and the sha256 that its row has, both known."""
    pairs = [(expected.get(name), found.get(name)) for name in ("size", "sha256")]
    return all(one is not None and one == other for one, other in pairs)


def may_be_dark(name: str, mtime: int, begun: float) -> bool:
    """Say whether a file that no row knows is worth a finding: no partial file, and older than the audit's beginning
    (`mtime` and `begun` in seconds since 1970).
    """
    return not name.endswith(PART_SUFFIX) and mtime < begun


def is_suspicious(lost: int, looked_at: int, most_lost: float) -> bool:
    """Say whether so many losses are not to be believed."""
    return lost > FEW and lost > most_lost * looked_at


def scrub_count(objects: int, share: float) -> int:
    """Return how many objects are to be hashed: at least one where a share is wanted at all."""
    return min(objects, max(1, round(objects * share))) if objects and share > 0 else 0


def below_any(directory: str, prefixes: Collection[str]) -> bool:
    """Say whether a directory is one of `prefixes`, or below one ("" is base_dir itself, with all below it)."""
    return any(not prefix or directory == prefix or directory.startswith(f"{prefix}/") for prefix in prefixes)


def _finding(kind: FindingKind, expected: Expected, look: Look) -> Finding:
    return Finding(kind, expected.place, expected.object_id, expected.facts, look.facts)
