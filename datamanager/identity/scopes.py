"""Scopes: `verb:resource!filter`, the model of JupyterHub's (https://jupyterhub.readthedocs.io/en/stable/rbac/scopes.html).

A scope permits one action. Each of its filters must hold; of several scopes for one action one is enough. Nothing is
implied: `write:objects` does not contain `read:objects`.

    read:objects                           any object
    read:objects!group=fire                those of a group
    read:objects!group                     those of the groups of whoever asks
    transfers!machine=archer2!user         one's own, on one machine
    write:objects!prefix=archer2:data/fire/    below a directory of a machine, relative to its base_dir

In a value `%`, `!`, blanks and control characters are written as `%21`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self
from urllib.parse import quote, unquote

from datamanager.domain.fields import unknown_name
from datamanager.domain.location import Place, normalised_prefix
from datamanager.errors import InvalidRequest, PathNotAllowed
from datamanager.machines import MACHINE_NAME

SCOPE_MAX = 8192
"""Characters of a scope."""
FILTERS_MAX = 8
"""Filters of one scope."""
_ESCAPED = re.compile(r"[%!\s\x00-\x1f\x7f]")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


class FilterKind(StrEnum):
    """What a filter compares."""

    GROUP = "group"
    """The group; without a value: one of the groups of whoever asks."""
    MACHINE = "machine"
    """The machine."""
    PREFIX = "prefix"
    """`machine:path/`: the machine, and a directory below its `base_dir` with all that is in it."""
    USER = "user"
    """Only one's own; it has no value."""


_G, _M, _P, _U = FilterKind
ACTIONS: Mapping[str, tuple[str, frozenset[FilterKind]]] = {
    "list:objects": ("List objects, and count them.", frozenset({_G, _M, _P, _U})),
    "read:objects": ("Show an object, and read its file in a copy.", frozenset({_G, _M, _P, _U})),
    "write:objects": ("Register an object, change it, and write its file.", frozenset({_G, _M, _P, _U})),
    "transfers": ("Copy, move and fetch files.", frozenset({_G, _M, _P, _U})),
    "delete:objects": ("Delete an object and its file.", frozenset({_G, _M, _P, _U})),
    "archive": ("Archive and activate objects.", frozenset({_G, _M, _P, _U})),
    "read:machines": ("List machines, and show their limits and state.", frozenset({_M})),
    "drain:machines": ("Drain a machine, and change its limits.", frozenset({_M})),
    "read:tasks": ("List tasks, and show their status.", frozenset({_G, _M, _U})),
    "control:tasks": ("Cancel, pause and resume tasks, and change their limits.", frozenset({_G, _M, _U})),
    "schedules": ("Make, change and delete schedules.", frozenset({_G, _M, _U})),
    "retention": ("Run retention, release what it has marked, and hold objects.", frozenset({_G, _M})),
    "audits": ("Run audits of machines and read their reports.", frozenset({_M})),
    "admin:tokens": ("Make, list, rotate and revoke service tokens.", frozenset({_G, _U})),
    "admin:trail": ("Read and export the audit trail.", frozenset()),
}
"""Each action with its meaning and the filters that it can have. A contract: docs and OpenAPI are generated from it."""


@dataclass(frozen=True, slots=True)
class AccessTarget:
    """What an action is done to. What is None is not known, and no filter for it holds.

    An action with several (source and destination of a transfer) is asked for each.
    """

    group: str | None = None
    machine: str | None = None
    path: str | None = None
    """Normalised, below the machine's `base_dir`."""
    owner: str | None = None
    """The person who made it."""

    def __post_init__(self) -> None:
        if self.path is not None and normalised_prefix(None, self.path) != self.path:
            raise PathNotAllowed(f"{self.path!r} is not normalised")

    @classmethod
    def at(cls, place: Place, group: str | None = None, owner: str | None = None) -> Self:
        """Return the target at a place."""
        return cls(group, place.machine, place.path, owner)


@dataclass(frozen=True, slots=True)
class Condition:
    """A filter as it is for one person: `values` are names of groups, persons or machines, of which any one will do.

    Of a prefix `values` is the machine, and `path` the directory below its `base_dir`; "" is that itself.
    """

    kind: FilterKind
    values: frozenset[str]
    path: str = ""

    def holds(self, target: AccessTarget) -> bool:
        """Say whether it holds for a target."""
        match self.kind:
            case FilterKind.GROUP:
                return target.group in self.values
            case FilterKind.USER:
                return target.owner in self.values
            case FilterKind.MACHINE:
                return target.machine in self.values
        if target.path is None or target.machine not in self.values:
            return False
        return not self.path or target.path == self.path or target.path.startswith(f"{self.path}/")

    def implies(self, other: Condition) -> bool:
        """Say whether the other one holds wherever this one does."""
        if other.kind is FilterKind.PREFIX and other.path:
            below = self.path == other.path or self.path.startswith(f"{other.path}/")
            return self.kind is other.kind and self.values <= other.values and below
        on_machine = (FilterKind.MACHINE, FilterKind.PREFIX)
        if other.kind is FilterKind.MACHINE and self.kind in on_machine:
            return self.values <= other.values
        return self.kind is other.kind and self.values <= other.values


@dataclass(frozen=True, slots=True, order=True)
class Filter:
    """A filter as it is written; without a value it means what is one's own."""

    kind: FilterKind
    value: str | None = None

    def __str__(self) -> str:
        if self.value is None:
            return self.kind.value
        return f"{self.kind.value}={_ESCAPED.sub(lambda found: quote(found[0], safe=''), self.value)}"

    def condition(self, person: str, groups: Collection[str]) -> Condition:
        """Return what it means for a person of these groups."""
        match self.kind:
            case FilterKind.USER:
                return Condition(self.kind, frozenset({person}))
            case FilterKind.PREFIX:
                machine, _, path = (self.value or "").partition(":")
                return Condition(self.kind, frozenset({machine}), path.rstrip("/"))
        return Condition(self.kind, frozenset(groups) if self.value is None else frozenset({self.value}))


@dataclass(frozen=True, slots=True)
class Scope:
    """An action that is permitted, where all of `filters` hold. `str` writes it; equal scopes are written alike."""

    action: str
    filters: tuple[Filter, ...] = ()

    @classmethod
    def parse(cls, text: str, field: str = "scopes") -> Self:
        """Read a scope; `field` is its name in errors.

        Raises: InvalidRequest that says what is unknown or wrong, and what would be right.
        """

        def refuse(what: str) -> InvalidRequest:
            return InvalidRequest.of({field: f"{text[:100]!r}: {what}"})

        if len(text) > SCOPE_MAX or text.count("!") > FILTERS_MAX:
            raise refuse(f"a scope is limited to {SCOPE_MAX} characters and {FILTERS_MAX} filters")
        action, *parts = text.split("!")
        if action not in ACTIONS:
            raise refuse(f"scope {action[:100]!r} is {unknown_name(action, ACTIONS)}")
        known = sorted(ACTIONS[action][1])
        filters = set()
        for part in parts:
            name, equals, value = part.partition("=")
            if name not in known:
                raise refuse(f"filter {name[:100]!r} of {action} is {unknown_name(name, known)}")
            filters.add(_read_filter(FilterKind(name), value if equals else None, refuse))
        return cls(action, tuple(sorted(filters, key=str)))

    @property
    def verb(self) -> str:
        """The verb; "" for an action that has none, such as `transfers`."""
        return self.action.rpartition(":")[0]

    @property
    def resource(self) -> str:
        """What the action is done to."""
        return self.action.rpartition(":")[2]

    def __str__(self) -> str:
        return "!".join((self.action, *map(str, self.filters)))

    def conditions(self, person: str, groups: Collection[str]) -> tuple[Condition, ...]:
        """Return what must hold together for a person of these groups."""
        return tuple(one.condition(person, groups) for one in self.filters)

    def permits(self, action: str, target: AccessTarget, person: str, groups: Collection[str] = ()) -> bool:
        """Say whether it lets a person of these groups do `action` to `target`."""
        return action == self.action and all(one.holds(target) for one in self.conditions(person, groups))


def _read_filter(kind: FilterKind, text: str | None, refuse: Callable[[str], InvalidRequest]) -> Filter:
    """Read the value of a filter. Raises: what `refuse` makes."""
    if kind is FilterKind.USER:
        if text is not None:
            raise refuse("filter user has no value: !user is what is one's own")
        return Filter(kind)
    if text is None and kind is FilterKind.GROUP:
        return Filter(kind)
    try:
        value = "" if text is None or _BAD_ESCAPE.search(text) else unquote(text, errors="strict")
        value.encode()
    except UnicodeError:
        value = ""
    if not value or "\0" in value:
        raise refuse(f"filter {kind.value} needs a value, such as !{kind.value}={_EXAMPLES[kind]}")
    machine, colon, path = value.partition(":")
    if kind in (FilterKind.MACHINE, FilterKind.PREFIX) and not MACHINE_NAME.fullmatch(machine):
        raise refuse(f"filter {kind.value} must name a machine, such as !{kind.value}={_EXAMPLES[kind]}")
    if kind is FilterKind.MACHINE and colon:
        raise refuse("filter machine must name a machine alone; with a directory it is !prefix=machine:path/")
    if kind is FilterKind.PREFIX:
        if not colon or path.startswith("/"):
            raise refuse("filter prefix must be machine:path/, the path relative to the machine's base_dir")
        try:
            path = normalised_prefix(None, path)
        except PathNotAllowed as exc:
            raise refuse(f"filter prefix: {exc.detail}") from exc
        value = f"{machine}:{path}/" if path else f"{machine}:"
    return Filter(kind, value)


_EXAMPLES = {_G: "fire", _M: "archer2", _P: "archer2:data/fire/"}
