"""quotas.toml: what a group or a person may have at most.

    version = 1
    [groups.fire]
    objects = 1_000_000
    bytes = "200 TiB"
    queued = 5_000
    [persons."*"]
    requests_per_second = 20

`*` is every group, or person, without an entry of its own. What an entry does not name is not limited.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datamanager.domain.fields import Bytes, Count
from datamanager.errors import SettingsError
from datamanager.machines import describe

EVERY = "*"
NAMES_MAX = 10_000
Rate = Annotated[int, Field(ge=1, le=1_000_000, strict=True)]


class Quota(BaseModel):
    """The most of each that somebody may have; None: not limited."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    objects: Count | None = None
    """Objects that are not DELETED, and those that open tasks may make."""
    bytes: Bytes | None = None
    """Of these objects."""
    queued: Count | None = None
    """Tasks that have not ended."""
    requests_per_second: Rate | None = None
    """To each process of the API."""


UNLIMITED = Quota()


class HolderKind(StrEnum):
    """Who has a quota."""

    GROUP = "group"
    PERSON = "person"


@dataclass(frozen=True, slots=True, order=True)
class Holder:
    """A group or a person, with a name."""

    kind: HolderKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind.value} {self.name!r}"


class _QuotasFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    groups: Annotated[dict[str, Quota], Field(max_length=NAMES_MAX)] = {}
    persons: Annotated[dict[Annotated[str, Field(min_length=1)], Quota], Field(max_length=NAMES_MAX)] = {}


class Quotas:
    """The quotas of all groups and persons. Immutable."""

    def __init__(self, file: _QuotasFile | None = None) -> None:
        self._quotas = {} if file is None else {HolderKind.GROUP: file.groups, HolderKind.PERSON: file.persons}

    def of(self, holder: Holder) -> Quota:
        """Return what a group or person may have."""
        quotas = self._quotas.get(holder.kind, {})
        return quotas.get(holder.name) or quotas.get(EVERY) or UNLIMITED

    @property
    def groups(self) -> list[str]:
        """The groups that the file names."""
        return [name for name in self._quotas.get(HolderKind.GROUP, {}) if name != EVERY]

    def any_of_groups(self) -> bool:
        """Say whether groups have quotas."""
        return bool(self._quotas.get(HolderKind.GROUP))

    def limited(self, person: str | None, groups: Iterable[str]) -> Iterator[tuple[Holder, Quota]]:
        """Yield those of a person and groups that have a quota, in one order for all: whoever locks them does not wait
        in a circle.
        """
        if self._quotas:
            holders = [Holder(HolderKind.GROUP, group) for group in sorted(set(groups))]
            holders += [] if person is None else [Holder(HolderKind.PERSON, person)]
            yield from ((holder, quota) for holder in holders if (quota := self.of(holder)) != UNLIMITED)


NO_QUOTAS = Quotas()


def load_quotas(path: Path) -> Quotas:
    """Read quotas.toml; nothing is limited where there is no file. Raises: SettingsError with one line that names the
    entry and what would be right.
    """
    try:
        return Quotas(_QuotasFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return NO_QUOTAS
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path}: can't be read: {exc}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise SettingsError(f"{path}: not valid TOML: {exc}") from exc
    except ValidationError as exc:
        raise SettingsError(f"{path}: {describe(exc)}") from exc
