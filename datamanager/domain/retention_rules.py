"""retention.toml: the rules by which old objects are archived or deleted, typed, checked, and said in sentences.

A file that is not there has no rules. An unknown key or a bad value is refused with one line that names the rule and
the key: a rule that means something else than its author thought must not run.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from datamanager.domain.fields import Bytes, Count, Duration, duration_text, size_text
from datamanager.errors import DataManagerError, InvalidRules
from datamanager.machines import Machines, describe

NAME_MAX = 100
RULES_MAX = 200
GLOB_MAX = 1000
ANY_STARS = 20
"""Wildcards that one glob may have: more would make it slow to compare."""


class Action(StrEnum):
    """What a rule does with the objects that it selects."""

    ARCHIVE = "archive"
    """Into a bundle on an archive machine; the object stays and can be activated."""
    DELETE = "delete"
    """Its file is deleted; the last verified copy only where the rule says `even_last_copy`."""
    DELETE_COPIES = "delete-copies"
    """Its file is deleted while another verified copy remains."""

    @property
    def deletes(self) -> bool:
        """Whether bytes go for good."""
        return self is not Action.ARCHIVE


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


def _text_of(value: object) -> object:
    """Take the values of metadata as the catalogue compares them: as text."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


Texts = Annotated[tuple[str, ...], Field(min_length=1), BeforeValidator(_listed)]
MetaText = Annotated[str, BeforeValidator(_text_of)]


class RetentionLimits(BaseModel):
    """What one run may do at most, all rules together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_objects: Count = 10_000
    """Objects that a run acts on, and objects that it marks."""
    max_bytes: Bytes = 10 * 2**40
    wait: Duration = timedelta(hours=12)
    """How long a run waits for what it has begun; then it begins nothing more, and reports."""


class Rule(BaseModel):
    """One rule: which objects, and what to do with them. Selectors must all hold; of a list any one must."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1, max_length=NAME_MAX, pattern=r"^[^\x00-\x1f]+$")]
    action: Action
    group: Texts | None = None
    machine: Texts | None = None
    originator: Texts | None = None
    """Globs."""
    path: Texts | None = None
    """Globs over the place below base_dir: `*` and `?` stay in a directory, `**` crosses them."""
    older_than: Duration | None = None
    """Since it was registered."""
    unused_for: Duration | None = None
    """Since it was last read by a copy, moved or activated; if never, since it was registered."""
    larger_than: Bytes | None = None
    smaller_than: Bytes | None = None
    metadata: dict[str, MetaText] | None = None
    expired: bool = False
    """Only objects whose expires_at has passed."""
    status: Annotated[tuple[Literal["ACTIVE", "ARCHIVED"], ...], Field(min_length=1), BeforeValidator(_listed)] = (
        "ACTIVE",
    )
    """Of which status; to delete archived objects it must be given."""

    grace: Duration = timedelta(days=7)
    """From the mark to the act."""
    archive_to: str | None = None
    even_last_copy: bool = False
    prove: Literal["checksum", "size"] = "checksum"
    """How the copy that remains is looked at in storage before another one is deleted."""
    max_objects: Count | None = None
    max_bytes: Bytes | None = None

    @field_validator("path")
    @classmethod
    def _paths_are_below(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if any(glob.startswith("/") or ".." in glob.split("/") for glob in value or ()):
            raise ValueError("must be below base_dir: without '/' in front, and without '..'")
        return value

    @field_validator("path", "originator")
    @classmethod
    def _globs_are_short(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for glob in value or ():
            if not glob or len(glob) > GLOB_MAX or len(re.findall(r"\*+", glob)) > ANY_STARS:
                raise ValueError(f"a glob has 1 to {GLOB_MAX} characters, and at most {ANY_STARS} stars")
        return value

    @field_validator("metadata")
    @classmethod
    def _metadata_says_something(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if value is not None and not value:
            raise ValueError("must name at least one member")
        return value

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        if not self.selectors:
            raise ValueError("it selects every object; give at least one of group, machine, path, older_than, …")
        if self.action is Action.ARCHIVE:
            for key in ("even_last_copy", "prove"):
                if key in self.model_fields_set:
                    raise ValueError(f"{key}: only allowed in a rule that deletes")
            if self.status != ("ACTIVE",):
                raise ValueError("status: archived objects cannot be archived again")
        elif self.archive_to is not None:
            raise ValueError('archive_to: only allowed with action = "archive"')
        if self.action is Action.DELETE_COPIES and self.even_last_copy:
            raise ValueError('even_last_copy: only allowed with action = "delete"')
        if self.larger_than is not None and self.smaller_than is not None and self.larger_than >= self.smaller_than:
            raise ValueError("larger_than: must be less than smaller_than")
        return self

    @property
    def selectors(self) -> list[str]:
        """The names of the selectors that it has."""
        names = ("group", "machine", "originator", "path", "older_than", "unused_for", "larger_than", "smaller_than")
        found = [name for name in (*names, "metadata") if getattr(self, name) is not None]
        return [*found, *(["expired"] if self.expired else [])]

    def sentence(self) -> str:
        """Say in plain English what it does to which objects."""
        does = {Action.ARCHIVE: "archives", Action.DELETE: "deletes", Action.DELETE_COPIES: "deletes copies of"}
        parts = [f"{does[self.action]} {' or '.join(self.status)} objects"]
        parts += [text for name, text in self._said() if name in self.selectors]
        ends = [f"to {self.archive_to}"] if self.archive_to else []
        if self.action.deletes:
            kept = "also the last verified copy" if self.even_last_copy else "never the last verified copy"
            ends.append(kept if self.even_last_copy else f"{kept} (the remaining one's {self.prove} is verified first)")
        ends.append(f"{duration_text(self.grace)} after it was marked" if self.grace else "at once, without grace")
        caps = [f"at most {self.max_objects:,} objects"] if self.max_objects is not None else []
        caps += [f"at most {size_text(self.max_bytes)}"] if self.max_bytes is not None else []
        if caps:
            ends.append(" and ".join(caps) + " a run")
        return f"{self.name}: {' '.join(parts)}; {', '.join(ends)}."

    def _said(self) -> Iterator[tuple[str, str]]:
        yield "group", f"of group {_any_of(self.group)}"
        yield "machine", f"on {_any_of(self.machine)}"
        yield "originator", f"of originator {_any_of(self.originator)}"
        yield "path", f"at {_any_of(self.path)}"
        yield "older_than", f"registered more than {duration_text(self.older_than or timedelta())} ago"
        yield "unused_for", f"not used for {duration_text(self.unused_for or timedelta())}"
        yield "larger_than", f"larger than {size_text(self.larger_than or 0)}"
        yield "smaller_than", f"smaller than {size_text(self.smaller_than or 0)}"
        yield "metadata", "with " + " and ".join(f"{key} = {value}" for key, value in (self.metadata or {}).items())
        yield "expired", "that have expired"


class RetentionRules(BaseModel):
    """All rules, in the order of the file: the first that selects an object decides. And the limits of a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Annotated[tuple[Rule, ...], Field(max_length=RULES_MAX)] = ()
    limits: RetentionLimits = RetentionLimits()

    @field_validator("rule")
    @classmethod
    def _names_are_unique(cls, value: tuple[Rule, ...]) -> tuple[Rule, ...]:
        names = [rule.name for rule in value]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"duplicate rule name {name!r}")
        return value

    def named(self, name: str) -> Rule | None:
        """Return a rule by its name."""
        return next((rule for rule in self.rule if rule.name == name), None)


def load_rules(path: Path) -> RetentionRules:
    """Read retention.toml; no rules where there is no file. Raises: InvalidRules when it can't be read or is wrong."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return RetentionRules()
    except (OSError, UnicodeDecodeError) as exc:
        raise InvalidRules(f"{path.name}: can't be read: {exc}") from exc
    return parse_rules(text, path.name)


def parse_rules(text: str, name: str = "retention.toml") -> RetentionRules:
    """Read rules from TOML. Raises: InvalidRules with one line that names the rule and what is wrong."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise InvalidRules(f"{name}: {exc}") from None
    try:
        return RetentionRules.model_validate(document)
    except ValidationError as exc:
        raise InvalidRules(f"{name}: {_named(document, describe(exc))}") from None


def objections(rules: RetentionRules, machines: Mapping[str, Any]) -> list[str]:
    """Return what of the rules does not fit the configured machines: names that there are none of."""
    return [
        f"rule {rule.name!r}: machine: {machine!r} is not configured, so nothing is selected there"
        for rule in rules.rule
        for machine in rule.machine or ()
        if machine not in machines
    ]


def check_archives(rules: RetentionRules, machines: Machines) -> None:
    """Make sure that every rule's archive is one. Raises: InvalidRules."""
    for rule in rules.rule:
        if rule.archive_to is not None:
            try:
                machines.archive_for("", rule.archive_to)
            except DataManagerError as exc:
                raise InvalidRules(f"rule {rule.name!r}: archive_to: {exc.detail}") from None


@lru_cache(maxsize=1024)
def compiled(glob: str, *, path: bool) -> re.Pattern[str]:
    """Translate a glob. Of a path `*` and `?` stay in one directory, `**/` is any directories or none, a last `**` all
    that is below; else `*` is any text. Case counts; every other character means itself.
    """
    one, some = ("[^/]", "[^/]*") if path else (".", ".*")
    out, index = [], 0
    while index < len(glob):
        if path and glob.startswith("**/", index) and (index == 0 or glob[index - 1] == "/"):
            out.append("(?:.*/)?")
            index += 3
        elif glob[index] == "*":
            end = index
            while end < len(glob) and glob[end] == "*":
                end += 1
            out.append(".*" if end - index > 1 else some)
            index = end
        else:
            out.append(one if glob[index] == "?" else re.escape(glob[index]))
            index += 1
    return re.compile("".join(out), re.DOTALL)


def fits_any(globs: tuple[str, ...], text: str, *, path: bool = False) -> bool:
    """Say whether a text fits one of the globs."""
    return any(compiled(glob, path=path).fullmatch(text) for glob in globs)


def _named(document: Mapping[str, Any], line: str) -> str:
    """Say `rule 2 ("its name"): …` for pydantic's `rule.1.…`."""
    match = re.match(r"rule\.(\d+)(?:\.|: )", line)
    if match is None:
        return line
    number = int(match[1])
    try:
        name = document["rule"][number]["name"]
    except (LookupError, TypeError):
        return f"rule {number + 1}: {line[match.end() :]}"
    return f"rule {number + 1} ({name!r}): {line[match.end() :]}"


def _any_of(values: tuple[str, ...] | None) -> str:
    return " or ".join(values or ())
