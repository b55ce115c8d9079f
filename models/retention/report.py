"""What a survey found and a run did, counted, with the first objects one by one: the same for a plan and a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy.orm import Session

from datamanager.domain.retention_decisions import Decider, Decision, Verdict
from datamanager.domain.retention_rules import RetentionRules, check_archives
from datamanager.errors import InvalidRequest
from datamanager.identity.grant import Grant
from datamanager.machines import Machines
from models.database import Database, now
from models.retention.facts import machines_away
from models.retention.runs import RetentionTerms
from models.retention.survey import Survey

LINES = 500
"""Objects that a report lists one by one: so many that something is done with, and as many that are spared."""
VOID = "void"

_Key = tuple[str, str, str, str | None]


@dataclass
class Report:
    """Counts by rule, action, verdict and reason, and lines of objects."""

    _objects: Counter[_Key] = field(default_factory=Counter)
    _bytes: Counter[_Key] = field(default_factory=Counter)
    _done: list[dict[str, Any]] = field(default_factory=list)
    _spared: list[dict[str, Any]] = field(default_factory=list)
    truncated: bool = False
    """There are more objects than lines."""

    def add(self, decision: Decision) -> None:
        """Count a decision."""
        reason = None if decision.reason is None else decision.reason.value
        key = decision.rule.name, decision.rule.action.value, decision.verdict.value, reason
        self._objects[key] += 1
        self._bytes[key] += decision.bytes
        lines = self._spared if decision.verdict is Verdict.SPARE else self._done
        if len(lines) < LINES:
            lines.append(_line(decision))
        else:
            self.truncated = True

    def add_void(self, objects: int) -> None:
        """Count marks that do not hold any more."""
        if objects:
            self._objects["", "", VOID, None] += objects

    @property
    def counts(self) -> list[dict[str, Any]]:
        """How many objects, and how many bytes, by rule, action, verdict and reason; `void` are marks taken away."""
        keys = sorted(self._objects, key=lambda key: (*key[:3], key[3] or ""))
        return [
            {
                "rule": rule,
                "action": action,
                "verdict": verdict,
                "reason": reason,
                "objects": self._objects[rule, action, verdict, reason],
                "bytes": self._bytes[rule, action, verdict, reason],
            }
            for rule, action, verdict, reason in keys
        ]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The first objects: what is acted on and marked, then what is spared."""
        acts = [line for line in self._done if line["verdict"] == Verdict.ACT.value]
        return [*acts, *(line for line in self._done if line not in acts), *self._spared]

    def objects(self, verdict: Verdict) -> int:
        """Return how many objects got a verdict."""
        return sum(count for key, count in self._objects.items() if key[2] == verdict.value)

    def bytes(self, verdict: Verdict) -> int:
        """Return how many bytes these have."""
        return sum(size for key, size in self._bytes.items() if key[2] == verdict.value)


def make_decider(session: Session, rules: RetentionRules, machines: Machines, terms: RetentionTerms) -> Decider:
    """Make what a plan and a run decide by, as of now. Caps of the request can only lower those of the file.

    Raises: InvalidRequest for a rule that there is none of; InvalidRules when a rule's archive is none.
    """
    if terms.rule and rules.named(terms.rule) is None:
        names = ", ".join(rule.name for rule in rules.rule) or "none"
        raise InvalidRequest(f"rule: there is no rule {terms.rule!r}; there are: {names}", {"rule": f"one of {names}"})
    check_archives(rules, machines)
    limits = rules.limits.model_copy(
        update={
            name: min(given, getattr(rules.limits, name))
            for name, given in (("max_objects", terms.max_objects), ("max_bytes", terms.max_bytes))
            if given is not None
        }
    )
    away = machines_away(session)
    return Decider(rules, now(session), machines=machines, away=away, only=terms.rule, limits=limits)


def plan(
    database: Database, rules: RetentionRules, machines: Machines, terms: RetentionTerms, by: Grant | None
) -> tuple[Decider, Report]:
    """Say what a run that `by` requests would do now; nothing is changed. Blocks. Raises: what `make_decider` raises,
    CatalogueUnavailable.
    """
    with database.read() as session:
        decider = make_decider(session, rules, machines, terms)
    survey, report = Survey(database, decider, by), Report()
    report.add_void(sum(1 for _ in survey.stale()))
    for decision in survey.decisions():
        report.add(decision)
    return decider, report


def total(counts: Iterable[dict[str, Any]], verdict: str) -> tuple[int, int]:
    """Return objects and bytes of a verdict, from the counts of a report."""
    mine = [one for one in counts if one["verdict"] == verdict]
    return sum(one["objects"] for one in mine), sum(one["bytes"] for one in mine)


def _line(decision: Decision) -> dict[str, Any]:
    subject = decision.subject
    return {
        "object": str(subject.id),
        "machine": subject.machine,
        "place": subject.place,
        "rule": decision.rule.name,
        "action": decision.rule.action.value,
        "verdict": decision.verdict.value,
        "reason": None if decision.reason is None else decision.reason.value,
        "detail": decision.detail or None,
        "bytes": subject.size,
        "due": None if decision.due is None else decision.due.isoformat(),
        "survivor": None if decision.survivor is None else str(decision.survivor),
    }
