"""A grant: who asks, and what they may. It is what all other code asks, and what a transfer's row keeps."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import product
from typing import Any, Self

from datamanager.errors import InvalidRequest, NotAllowed
from datamanager.identity.scopes import ACTIONS, AccessTarget, Condition, Scope

Clause = tuple[Condition, ...]
"""Conditions that must all hold; an empty one always does."""
NOWHERE = AccessTarget()
PERSON_OF_TOKEN = "token:"  # noqa: S105  # no secret
"""What the person of a service token begins with; its name follows."""
RESERVED = frozenset({"*", "local", "nobody", "service"})
"""No persons: everybody in quotas.toml, whoever asks where authentication is off, and the service's own work."""


class Means(StrEnum):
    """How a person has proved who they are."""

    TOKEN = "token"  # noqa: S105  # no secret
    """A service token."""
    OIDC = "oidc"
    """A bearer token of the OIDC issuer."""
    SESSION = "session"
    """A browser's session that began at the OIDC issuer; one that began with a service token is that token's."""
    BROKER = "broker"
    """A user of the message broker that the settings name."""
    NONE = "none"
    """Authentication is off."""


@dataclass(frozen=True, slots=True)
class Grant:
    """A person, their groups and scopes. Immutable; it holds no secret."""

    person: str
    groups: frozenset[str]
    scopes: tuple[Scope, ...]
    means: Means
    credential: str | None = None
    """Which one: a service token's id, or the issuer's subject; None where there is none."""
    principal: str | None = None
    """The login that the person has on machines that act as the caller."""
    roles: tuple[str, ...] = ()
    """Those whose scopes are among `scopes`: when roles.toml changes, they are read again."""
    _clauses: Mapping[str, tuple[Clause, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        clauses: dict[str, dict[Clause, None]] = {}
        for scope in self.scopes:
            clause = scope.conditions(self.person, self.groups)
            if all(condition.values for condition in clause):  # `!group` of a person without groups permits nothing
                clauses.setdefault(scope.action, {})[clause] = None
        # one without conditions makes the others superfluous
        whole = {action: ((),) if () in found else tuple(found) for action, found in clauses.items()}
        object.__setattr__(self, "_clauses", whole)

    def may(self, action: str, target: AccessTarget = NOWHERE) -> bool:
        """Say whether `action`, one of ACTIONS, may be done to `target`. Raises: ValueError for an unknown action."""
        return any(all(condition.holds(target) for condition in clause) for clause in self.filters_of(action))

    def filters_of(self, action: str) -> tuple[Clause, ...]:
        """Return to which targets `action` may be done: those for which one of the clauses holds.

        () is none at all, ((),) all. Raises: ValueError for an unknown action.
        """
        if action not in ACTIONS:
            raise ValueError(f"{action!r} is no action")
        return self._clauses.get(action, ())

    def require(self, action: str, target: AccessTarget = NOWHERE) -> None:
        """Raises: NotAllowed unless `action` may be done to `target`."""
        if not self.may(action, target):
            raise NotAllowed(f"the scope {action} is missing, or its filters exclude this")

    def covers(self, other: Grant, actions: Iterable[str] = ACTIONS) -> bool:
        """Say whether what `other` permits of these actions is permitted by this one too, as far as single clauses
        tell: what only several of them permit together is seen for groups alone.
        """
        return all(
            any(_covers(wide, narrow) for wide in self.filters_of(action))
            for action in actions
            for clause in other.filters_of(action)
            for narrow in _single(clause)
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON for a row."""
        return {
            "person": self.person,
            "groups": sorted(self.groups),
            "scopes": [str(scope) for scope in self.scopes],
            "means": self.means.value,
            "credential": self.credential,
            "principal": self.principal,
            "roles": list(self.roles),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave. Raises: NotAllowed for anything else: what can't be read permits nothing."""
        try:
            return cls(
                _text(value["person"]),
                frozenset(map(_text, value["groups"])),
                tuple(map(Scope.parse, _texts(value["scopes"]))),
                Means(value["means"]),
                None if value["credential"] is None else _text(value["credential"]),
                None if value["principal"] is None else _text(value["principal"]),
                tuple(_texts(value["roles"])),
            )
        except (KeyError, TypeError, ValueError, InvalidRequest) as exc:
            raise NotAllowed("the grant cannot be read") from exc


EVERYBODY = Grant("local", frozenset(), tuple(map(Scope, ACTIONS)), Means.NONE)
"""Whoever asks where authentication is off."""


def is_reserved(person: str) -> bool:
    """Say whether a person of an issuer could be taken for a service token, or for none: also by letters that only look
    so.
    """
    seen = unicodedata.normalize("NFKC", person).casefold().strip()
    return seen.startswith(PERSON_OF_TOKEN) or seen in RESERVED


def _single(clause: Clause) -> Iterator[Clause]:
    """Yield the clauses, each with one value a condition, one of which holds where `clause` does."""
    yield from product(*([replace(one, values=frozenset({value})) for value in one.values] for one in clause))


def _covers(wide: Clause, narrow: Clause) -> bool:
    """Say whether one clause holds wherever the other one does, condition by condition."""
    return all(any(theirs.implies(ours) for theirs in narrow) for ours in wide)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("must be a text")
    return value


def _texts(value: Iterable[object]) -> list[str]:
    return [_text(one) for one in value]
