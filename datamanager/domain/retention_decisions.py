"""What retention decides: which rule an object falls under, and whether it is marked, acted on or spared, and why.

Pure: facts go in, decisions come out. A dry run and a real one decide by the same lines.

Copies are objects with the same sha256, each verified by checksum. Of such a group one is the **keeper**: a copy that
no rule wants to delete if there is one, else the oldest. The keeper is never deleted by a rule that may not take the
last copy, and no other copy counts as the one that remains. So two copies can never be each other's reason to go.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from datamanager.domain.retention_rules import RetentionLimits, RetentionRules, Rule, fits_any
from datamanager.domain.states import ObjectStatus, Verified


class Verdict(StrEnum):
    """What becomes of an object that a rule selects."""

    ACT = "act"
    """It is due: archived or deleted now."""
    MARK = "mark"
    """It is noted, and due after the rule's grace."""
    SPARE = "spare"
    """Nothing is done; the reason says why."""


class Reason(StrEnum):
    """Why an object is spared."""

    HELD = "held"
    """A user holds it."""
    RESTORED = "restored"
    """A user restored it from this rule, and the time given has not passed."""
    UNDER_WAY = "under_way"
    """An earlier run's transfer of it has not ended."""
    LAST_VERIFIED_COPY = "last_verified_copy"
    """No other copy is proved by checksum, or this is the one that is kept."""
    IN_GRACE = "in_grace"
    """It is marked, and not due yet."""
    IN_USE = "in_use"
    """A transfer reads or writes it."""
    MACHINE_DRAINED = "machine_drained"
    MACHINE_UNAVAILABLE = "machine_unavailable"
    UNKNOWN_MACHINE = "unknown_machine"
    """Its machine is not configured any more."""
    OVER_CAP = "over_cap"
    """The run may not do more."""
    SURVIVOR_NOT_PROVED = "survivor_not_proved"
    """The copy that would remain was looked at in storage, and is not what the catalogue says."""
    CHANGED = "changed_meanwhile"
    """It (in the catalogue or in storage), or the copy that would remain, is not any more what was decided on."""
    REFUSED = "refused"
    """The catalogue refused the transfer; the detail says why."""


@dataclass(frozen=True, slots=True)
class Mark:
    """An open mark on an object: by which rule, when it is due; `transfer` once it was acted on."""

    rule: str
    action: str
    due: datetime
    transfer: UUID | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """What is to be known of an object. `bytes_on` is the machine that has its bytes: the archive of an ARCHIVED one.

    `claim`: `read` or `write` when a transfer has it. `restored`: the rules that it was restored from, for now.
    """

    id: UUID
    machine: str
    place: str
    bytes_on: str
    status: ObjectStatus
    size: int | None
    checksum: str | None
    verified: str
    group: str
    originator: str
    metadata: Mapping[str, Any]
    registered: datetime
    last_used: datetime | None = None
    expires: datetime | None = None
    held: bool = False
    claim: str | None = None
    mark: Mark | None = None
    restored: frozenset[str] = frozenset()

    @property
    def proved(self) -> bool:
        """Whether it is a live copy whose sha256 was verified."""
        live = self.status in (ObjectStatus.ACTIVE, ObjectStatus.ARCHIVED)
        return live and self.checksum is not None and self.verified == Verified.SHA256


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one object, and why. `survivor` is the copy that remains when this one is deleted."""

    subject: Subject
    rule: Rule
    verdict: Verdict
    reason: Reason | None = None
    due: datetime | None = None
    survivor: UUID | None = None
    detail: str = ""

    @property
    def bytes(self) -> int:
        """The object's size; 0 where it is unknown."""
        return self.subject.size or 0


@dataclass
class Budget:
    """What a run may still do: `limits` for all rules together, each rule's own caps besides. An object that does not
    fit is left for another run; smaller ones after it may still fit.
    """

    limits: RetentionLimits
    _objects: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    _bytes: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def admit(self, rule: Rule, size: int) -> bool:
        """Take an object's part of it; False, and nothing is taken, when it does not fit."""
        caps = (
            ("", self.limits.max_objects, self.limits.max_bytes),
            (f"={rule.name}", rule.max_objects, rule.max_bytes),
        )
        for key, objects, most in caps:
            if objects is not None and self._objects[key] + 1 > objects:
                return False
            if most is not None and self._bytes[key] + size > most:
                return False
        for key, _, _ in caps:
            self._objects[key] += 1
            self._bytes[key] += size
        return True


class Decider:
    """Decides on objects, one after the other, the oldest first. `away` are machines that may not be used now,
    and why; `only` is the one rule that is to be carried out ("": all) - the others still decide what is a copy.
    """

    def __init__(
        self,
        rules: RetentionRules,
        now: datetime,
        *,
        machines: Iterable[str] | None = None,
        away: Mapping[str, Reason] | None = None,
        only: str = "",
        limits: RetentionLimits | None = None,
    ) -> None:
        self.rules = rules
        self.now = now
        self.away = dict(away or {})
        self._machines = None if machines is None else set(machines)
        self._only = only
        self._acts, self._marks = Budget(limits or rules.limits), Budget(limits or rules.limits)

    def decide(self, subject: Subject, keeper: UUID | None) -> Decision | None:
        """Return what becomes of an object, None where no rule (that is to be carried out) selects it.

        `keeper` is that of its group (`keeper_of`). What is admitted is taken from the run's caps.
        """
        rule = rule_of(self.rules, subject, self.now)
        if rule is None or self._only not in ("", rule.name):
            return None
        found = self._judged(subject, rule, keeper)
        budget = {Verdict.ACT: self._acts, Verdict.MARK: self._marks}.get(found.verdict)
        if budget is not None and not budget.admit(rule, found.bytes):
            return Decision(subject, rule, Verdict.SPARE, Reason.OVER_CAP, found.due, found.survivor)
        return found

    def voids(self, subject: Subject, keeper: UUID | None) -> str | None:
        """Return why an object's mark is no longer valid, None while it is."""
        rule = rule_of(self.rules, subject, self.now)
        if rule is None or not marked_by(subject, rule):
            return "its rule no longer selects it"
        reason = self._judged(subject, rule, keeper).reason
        if reason in (Reason.HELD, Reason.RESTORED, Reason.LAST_VERIFIED_COPY):
            return reason.value
        return None

    def _judged(self, subject: Subject, rule: Rule, keeper: UUID | None) -> Decision:
        mark = subject.mark
        if subject.held:
            return Decision(subject, rule, Verdict.SPARE, Reason.HELD)
        if rule.name in subject.restored:
            return Decision(subject, rule, Verdict.SPARE, Reason.RESTORED)
        if mark is not None and mark.transfer is not None:
            return Decision(subject, rule, Verdict.SPARE, Reason.UNDER_WAY)
        survivor = None
        if rule.action.deletes and not rule.even_last_copy:
            if not subject.proved or keeper is None or keeper == subject.id:
                return Decision(subject, rule, Verdict.SPARE, Reason.LAST_VERIFIED_COPY)
            survivor = keeper
        marked = marked_by(subject, rule)
        due = mark.due if mark is not None and marked else self.now + rule.grace
        if due > self.now:
            if marked:
                return Decision(subject, rule, Verdict.SPARE, Reason.IN_GRACE, due, survivor)
            return Decision(subject, rule, Verdict.MARK, None, due, survivor)
        hindrance = self._hindrance(subject)
        if hindrance is not None:
            return Decision(subject, rule, Verdict.SPARE, hindrance, due, survivor)
        return Decision(subject, rule, Verdict.ACT, None, due, survivor)

    def _hindrance(self, subject: Subject) -> Reason | None:
        if subject.claim is not None:
            return Reason.IN_USE
        if subject.status == ObjectStatus.ARCHIVED:
            return None  # to delete it touches no machine
        if self._machines is not None and subject.machine not in self._machines:
            return Reason.UNKNOWN_MACHINE
        return self.away.get(subject.machine)


def rule_of(rules: RetentionRules, subject: Subject, now: datetime) -> Rule | None:
    """Return the first rule that selects an object."""
    return next((rule for rule in rules.rule if selects(rule, subject, now)), None)


def selects(rule: Rule, subject: Subject, now: datetime) -> bool:
    """Say whether all selectors of a rule hold for an object. One of unknown size fits no selector of size."""
    used = max(subject.last_used or subject.registered, subject.registered)
    size = subject.size
    return (
        subject.status.value in rule.status
        and (rule.group is None or subject.group in rule.group)
        and (rule.machine is None or subject.machine in rule.machine)
        and (rule.older_than is None or subject.registered < now - rule.older_than)
        and (rule.unused_for is None or used < now - rule.unused_for)
        and (rule.larger_than is None or (size is not None and size > rule.larger_than))
        and (rule.smaller_than is None or (size is not None and size < rule.smaller_than))
        and (not rule.expired or (subject.expires is not None and subject.expires <= now))
        and (rule.path is None or fits_any(rule.path, subject.place, path=True))
        and (rule.originator is None or fits_any(rule.originator, subject.originator))
        and all(_member(subject.metadata, key) == text for key, text in (rule.metadata or {}).items())
    )


def marked_by(subject: Subject, rule: Rule) -> bool:
    """Say whether an object's mark is of this rule, and for what it does now."""
    mark = subject.mark
    return mark is not None and mark.rule == rule.name and mark.action == rule.action.value


def doomed_by(rules: RetentionRules, subject: Subject, now: datetime) -> Rule | None:
    """Return the rule that wants to delete an object, sooner or later; None for one that nothing wants to delete."""
    rule = rule_of(rules, subject, now)
    if rule is None or not rule.action.deletes or subject.held or rule.name in subject.restored:
        return None
    return rule


def keeper_of(
    rules: RetentionRules, members: Iterable[Subject], now: datetime, away: Mapping[str, Reason]
) -> UUID | None:
    """Return the copy of a group that is kept whatever the rules say, None when there is none.

    Of those that no rule wants to delete the one that can be looked at now, an ACTIVE one before an ARCHIVED, then the
    oldest. Where rules want to delete all, the oldest of them; but never one that a rule may take as the last copy.
    """
    best: tuple[tuple[Any, ...], UUID] | None = None
    for member in members:
        under_way = member.mark is not None and member.mark.transfer is not None
        if not member.proved or member.claim == "write" or under_way:
            continue
        rule = doomed_by(rules, member, now)
        if rule is not None and rule.even_last_copy:
            continue
        there = member.bytes_on not in away
        rank = (rule is not None, not there, member.status != ObjectStatus.ACTIVE, member.registered, member.id.hex)
        if best is None or rank < best[0]:
            best = rank, member.id
    return None if best is None else best[1]


def _member(metadata: Mapping[str, Any], key: str) -> str | None:
    """Return a member of the metadata as text, as the catalogue's filters compare it."""
    value = metadata.get(key)
    return value if value is None or isinstance(value, str) else json.dumps(value)
