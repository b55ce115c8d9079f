"""Roles: lists of scopes with a name, from the packaged roles.toml or from a site's own file, which replaces it."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

import structlog
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datamanager.domain.fields import unknown_name
from datamanager.errors import InvalidRequest, SettingsError
from datamanager.identity.scopes import Scope
from datamanager.machines import describe

SCOPES_MAX = 200
"""Scopes of one role."""
ROLES_MAX = 100

log = structlog.get_logger(__name__)


class Role(BaseModel):
    """A role of roles.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    description: Annotated[str, Field(max_length=500)] = ""
    scopes: Annotated[tuple[str, ...], Field(min_length=1, max_length=SCOPES_MAX)]


class _RolesFile(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1]
    roles: Annotated[
        dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")], Role], Field(min_length=1, max_length=ROLES_MAX)
    ]


class Roles:
    """All roles, by name. Immutable."""

    def __init__(self, roles: Mapping[str, Role], origin: str) -> None:
        """Raises: SettingsError that names the role with a wrong scope; `origin` is the file in it."""
        self.roles = dict(roles)
        self._scopes: dict[str, tuple[Scope, ...]] = {}
        for name, role in roles.items():
            try:
                self._scopes[name] = tuple(
                    Scope.parse(text, f"roles.{name}.scopes.{number}") for number, text in enumerate(role.scopes)
                )
            except InvalidRequest as exc:
                raise SettingsError(f"{origin}: {exc.detail}") from exc

    def scopes_of(self, names: Iterable[str]) -> tuple[Scope, ...]:
        """Return the scopes of these roles together. Raises: InvalidRequest when one is unknown."""
        found: dict[Scope, None] = {}
        for name in names:
            if name not in self._scopes:
                raise InvalidRequest.of({"role": f"{name[:100]!r} is {unknown_name(name, self._scopes)}"})
            found.update(dict.fromkeys(self._scopes[name]))
        return tuple(found)

    def known(self, names: Iterable[str]) -> list[str]:
        """Return those of the names that there are roles of: one that was taken away permits nothing."""
        return [name for name in names if name in self._scopes]


def load_roles(path: Path | None = None) -> Roles:
    """Read a roles.toml; without a path the packaged one.

    Raises: SettingsError with one line that names the role and what would be right.
    """
    try:
        text = (path or files("datamanager.identity") / "roles.toml").read_text(encoding="utf-8")
        return Roles(_RolesFile.model_validate(tomllib.loads(text)).roles, str(path or "roles.toml"))
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path}: can't be read: {exc}") from exc
    except tomllib.TOMLDecodeError as exc:
        raise SettingsError(f"{path}: not valid TOML: {exc}") from exc
    except ValidationError as exc:
        raise SettingsError(f"{path}: {describe(exc)}") from exc


class RolesFile:
    """The roles of a file, read again when it has changed; safe to share between threads. Without a path those of the
    packaged one.
    """

    def __init__(self, path: Path | None = None) -> None:
        """Raises: SettingsError."""
        self._path = path
        self._seen = self._look()
        self._roles = load_roles(path)

    def current(self) -> Roles:
        """Return the roles as the file says now; while it can't be read, or is wrong, those before."""
        seen = self._look()
        if seen != self._seen:
            try:
                self._roles = load_roles(self._path)
            except SettingsError as exc:
                log.warning("roles_not_read", error=exc.detail, in_force="those before")
            self._seen = seen
        return self._roles

    def _look(self) -> tuple[int, int, int] | None:
        try:
            found = None if self._path is None else self._path.stat()
        except OSError:
            return None
        return None if found is None else (found.st_ino, found.st_size, found.st_mtime_ns)
