r"""identity.toml: rules that make a person, groups, roles and a login of the claims of a bearer token.

The language is that of globus-identity-mapping: `source` is a text with claims in braces, `match` is compared with the
whole of it, `output` is what comes out, with the groups of `match` by number and claims by name. In `match` only
`. ? * | ( )` are special, and `\` before one of them takes that away; `literal` takes it away from all,
`ignore_case` compares ASCII letters without case.

    [[person]]
    source = "{email}"
    match = '(.*)@example\.org'
    output = "{0}"

Of the rules of `person` and `principal` the first that matches counts, of `groups` and `roles` all. A claim that is
missing, or is no text, matches nothing; one that is a list is tried item by item; `{a.b}` is a claim in a claim.
What a claim contains is data: braces in it are not read again. Values and patterns are bounded, so that no claim makes
a rule slow.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from datamanager.errors import NotAllowed, SettingsError
from datamanager.identity.grant import is_reserved
from datamanager.identity.roles import Roles
from datamanager.machines import describe

RULES_MAX = 200
PATTERN_MAX = 8192
"""Characters of a rule's texts."""
VALUE_MAX = 256
"""Characters that are compared, and of a result."""
ITEMS_MAX = 500
"""Items of a claim that are looked at; a token with more is refused."""
WORK_MAX = 24.0
"""Binary logarithm of the ways in which a pattern may have to be tried."""
PRINCIPAL = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")
"""A login of a machine."""
_NAME = re.compile(r"\{([^{}]*)\}")
_PIECE = re.compile(r"\\(.)|(.)", re.DOTALL)
_SPECIAL = ".?*|()\\"


class MappingRule(BaseModel):
    """One rule."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Annotated[str, Field(min_length=1, max_length=PATTERN_MAX)]
    match: Annotated[str, Field(min_length=1, max_length=PATTERN_MAX)]
    output: Annotated[str, Field(min_length=1, max_length=PATTERN_MAX)]
    ignore_case: bool = False
    literal: bool = False
    _pattern: re.Pattern[str]

    @model_validator(mode="after")
    def _is_sound(self) -> Self:
        text = re.escape(self.match) if self.literal else _translate(self.match)
        # without ASCII, `i` would match a dotless ı, and `k` the sign of Kelvin
        self._pattern = re.compile(text, re.ASCII | (re.IGNORECASE if self.ignore_case else 0))
        for template in (self.source, self.output):
            if any(brace in _NAME.sub("", template) for brace in "{}"):
                raise ValueError(f"{template!r} has a brace without its partner")
        if not all(_NAME.findall(self.source)) or any(name.isdecimal() for name in _NAME.findall(self.source)):
            raise ValueError("source: must have names of claims between braces")
        for name in _NAME.findall(self.output):
            if not name or (name.isdecimal() and int(name) >= self._pattern.groups):
                raise ValueError(
                    f"output: {{{name}}} does not exist; match has {self._pattern.groups} groups, from 0 on"
                )
        return self

    def outputs(self, claims: Mapping[str, Any]) -> Iterator[str]:
        """Yield what comes out, for each item of a claim that is a list. Raises: NotAllowed for too many items."""
        values = ((name, _claim(claims, name)) for name in _NAME.findall(self.source))
        lists = {name: value for name, value in values if isinstance(value, list)}
        if len(lists) > 1:
            return  # which item goes with which is not known
        for name, items in lists.items() or [("", [None])]:
            if len(items) > ITEMS_MAX:
                raise NotAllowed(f"the claim {name} has more than {ITEMS_MAX} items")
            for item in items:
                result = self._output(claims, name, item)
                if result is not None:
                    yield result

    def _output(self, claims: Mapping[str, Any], listed: str, item: object) -> str | None:
        def value(name: str) -> object:
            return item if name == listed else _claim(claims, name)

        source = _filled(self.source, value)
        found = None if source is None else self._pattern.fullmatch(source)
        if found is None:
            return None
        groups = found.groups()
        return _filled(self.output, lambda name: groups[int(name)] if name.isdecimal() else value(name))


@dataclass(frozen=True, slots=True)
class Mapped:
    """What the rules make of claims."""

    person: str
    groups: frozenset[str]
    roles: tuple[str, ...]
    principal: str | None


class IdentityRules(BaseModel):
    """All rules. Without any nobody is known."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Literal[1] = 1
    person: Annotated[tuple[MappingRule, ...], Field(max_length=RULES_MAX)] = ()
    groups: Annotated[tuple[MappingRule, ...], Field(max_length=RULES_MAX)] = ()
    roles: Annotated[tuple[MappingRule, ...], Field(max_length=RULES_MAX)] = ()
    principal: Annotated[tuple[MappingRule, ...], Field(max_length=RULES_MAX)] = ()

    def map(self, claims: Mapping[str, Any], roles: Roles) -> Mapped:
        """Apply the rules. A role that does not exist is none: its name came from a claim.

        Raises: NotAllowed when no rule gives a person, or a name that is no person's (`is_reserved`).
        """
        person = next(_all(self.person, claims), None)
        if person is None:
            raise NotAllowed("no rule of identity.toml makes a person of this token's claims")
        if is_reserved(person):
            raise NotAllowed("identity.toml makes a person of this token's claims whose name is reserved")
        logins = (login for login in _all(self.principal, claims) if PRINCIPAL.fullmatch(login) and login != "root")
        return Mapped(
            person,
            frozenset(_all(self.groups, claims)),
            tuple(dict.fromkeys(name for name in _all(self.roles, claims) if name in roles.roles)),
            next(logins, None),
        )


def load_identity_rules(path: Path) -> IdentityRules:
    """Read identity.toml; a file that is not there has no rules.

    Raises: SettingsError with one line that names the rule and what would be right.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return IdentityRules()
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path}: can't be read: {exc}") from exc
    try:
        return IdentityRules.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as exc:
        raise SettingsError(f"{path}: not valid TOML: {exc}") from exc
    except ValidationError as exc:
        raise SettingsError(f"{path}: {describe(exc)}") from exc


def _all(rules: tuple[MappingRule, ...], claims: Mapping[str, Any]) -> Iterator[str]:
    for rule in rules:
        yield from rule.outputs(claims)


def _claim(claims: Mapping[str, Any], name: str) -> object:
    """Return a claim; a name with dots leads into claims that are objects, unless a claim has it as it is."""
    if name in claims:
        return claims[name]
    value: object = claims
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _filled(template: str, value_of: Any) -> str | None:
    """Fill in a template; None when a value is missing, or the result can't be a name."""
    values = {name: value_of(name) for name in _NAME.findall(template)}
    if not all(isinstance(value, str) for value in values.values()):
        return None
    text = _NAME.sub(lambda found: values[found[1]], template)
    return text if 0 < len(text) <= VALUE_MAX and text.isprintable() and text == text.strip() else None


def _translate(match: str) -> str:
    """Return a pattern as Python has it. Raises: ValueError for what is not in the language, or may take too long."""
    translated, before, work, alternatives = "", "(", 0.0, [0]
    for escaped, plain in _PIECE.findall(match):
        piece = plain or f"\\{escaped}"
        if escaped and escaped not in _SPECIAL + '"':
            raise ValueError(f"match: {piece!r} is no escape; there are those of {_SPECIAL}")
        if plain in ("*", "?"):
            if before in ("(", "|", "*", "?") or (plain == "*" and before == ")"):
                raise ValueError(f"match: {plain!r} must follow a character" + (", or a group" if plain == "?" else ""))
            work += math.log2(VALUE_MAX) if plain == "*" else 1
        elif plain == "(":
            alternatives.append(0)
        elif plain == ")":
            if len(alternatives) == 1:
                raise ValueError("match: a parenthesis is closed that is not open")
            work += math.log2(alternatives.pop() + 1)
        elif plain == "|":
            alternatives[-1] += 1
        elif plain == "\\":
            raise ValueError("match: ends with a backslash")
        translated += plain if plain and plain in _SPECIAL else re.escape(escaped or plain)
        before = piece
    if len(alternatives) > 1:
        raise ValueError("match: a parenthesis is not closed")
    if work + math.log2(alternatives[0] + 1) > WORK_MAX:
        raise ValueError("match: may take too long; at most three *, and fewer with many ? and |")
    return translated
