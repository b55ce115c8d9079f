"""The rules of retention: how they are read and refused, what they select, and what no rule may ever do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from datamanager.domain.fields import duration_text, read_duration, read_size, size_text
from datamanager.domain.retention_decisions import (
    Decider,
    Decision,
    Mark,
    Reason,
    Subject,
    Verdict,
    keeper_of,
    selects,
)
from datamanager.domain.retention_rules import RetentionRules, Rule, check_archives, fits_any, objections, parse_rules
from datamanager.domain.states import ObjectStatus, Verified
from datamanager.errors import InvalidRules
from datamanager.machines import parse_machines

NOW = datetime(2026, 6, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def plan(decider: Decider, subjects: Iterable[Subject]) -> Iterator[Decision]:
    """Decide on all objects of a catalogue that fits into memory. `models.retention.survey` does it page by page."""
    ordered = sorted(subjects, key=lambda one: (one.registered, one.id.hex))
    groups: dict[str, list[Subject]] = defaultdict(list)
    for one in ordered:
        if one.checksum is not None:
            groups[one.checksum].append(one)
    keepers = {sum_: keeper_of(decider.rules, some, decider.now, decider.away) for sum_, some in groups.items()}
    for one in ordered:
        found = decider.decide(one, keepers.get(one.checksum or ""))
        if found is not None:
            yield found


def subject(number: int = 1, **facts: Any) -> Subject:
    """Return an ACTIVE object, registered 100 days ago, verified."""
    given = {
        "id": UUID(int=number),
        "machine": "alpha",
        "place": f"forecasts/{number}.nc",
        "bytes_on": facts.get("machine", "alpha"),
        "status": ObjectStatus.ACTIVE,
        "size": 1000,
        "checksum": "sha256:" + "a" * 64,
        "verified": Verified.SHA256.value,
        "group": "weather",
        "originator": "ifs",
        "metadata": {},
        "registered": NOW - 100 * DAY,
    }
    return Subject(**{**given, **facts})


def rules(text: str) -> RetentionRules:
    return parse_rules(text)


def rule(**keys: Any) -> Rule:
    return Rule.model_validate({"name": "r", "action": "delete-copies", "older_than": "1d", "grace": "0s", **keys})


def decided(wanted: Rule, *subjects: Subject, **options: Any) -> dict[int, Decision]:
    decider = Decider(RetentionRules(rule=(wanted,)), NOW, **options)
    return {one.subject.id.int: one for one in plan(decider, subjects)}


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[[rule]]\nname = "x"\naction = "delete"', "rule 1 ('x'): it selects every object"),
        ('[[rule]]\nname = "x"\naction = "burn"\nolder_than = "1d"', "rule 1 ('x'): action: "),
        ('[[rule]]\nname = "x"\naction = "delete"\nolder_then = "1d"', "rule 1 ('x'): older_then: unknown key"),
        ('[[rule]]\nname = "x"\naction = "delete"\nolder_than = "soon"', "older_than: must be a duration"),
        ('[[rule]]\nname = "x"\naction = "delete"\nolder_than = 30', "older_than: must be a duration"),
        ('[[rule]]\naction = "delete"\nolder_than = "1d"', "rule 1: name: "),
        ('[[rule]]\nname = "x"\naction = "delete"\ngroup = []', "group: "),
        ('[[rule]]\nname = "x"\naction = "delete"\npath = "/etc/**"', "path: must be below base_dir"),
        ('[[rule]]\nname = "x"\naction = "delete"\npath = "a/../**"', "path: must be below base_dir"),
        ('[[rule]]\nname = "x"\naction = "delete"\nlarger_than = "1 MB please"', "larger_than: must be bytes"),
        ('[[rule]]\nname = "x"\naction = "delete"\nlarger_than = 5\nsmaller_than = 5', "must be less than"),
        ('[[rule]]\nname = "x"\naction = "delete-copies"\nolder_than = "1d"\neven_last_copy = true', "even_last_copy"),
        ('[[rule]]\nname = "x"\naction = "archive"\nolder_than = "1d"\neven_last_copy = true', "even_last_copy"),
        ('[[rule]]\nname = "x"\naction = "archive"\nolder_than = "1d"\nstatus = "ARCHIVED"', "status"),
        ('[[rule]]\nname = "x"\naction = "delete"\nolder_than = "1d"\narchive_to = "tape"', "archive_to"),
        ('[[rule]]\nname = "x"\naction = "delete"\nolder_than = "1d"\nmetadata = {}', "metadata"),
        ('[[rule]]\nname = "x"\naction = "delete"\nolder_than = "1d"\nmax_objects = true', "max_objects"),
        ("[limits]\nmax_object = 5", "limits.max_object: unknown key"),
        ("[[rules]]", "rules: unknown key"),
        ("rule = 5", "rule"),
        ("[[rule", "retention.toml: "),
    ],
)
def test_what_is_wrong_is_named(text: str, told: str) -> None:
    with pytest.raises(InvalidRules) as refused:
        rules(text)
    assert told in refused.value.detail
    assert "\n" not in refused.value.detail


def test_two_rules_have_two_names() -> None:
    one = '[[rule]]\nname = "x"\naction = "delete"\nolder_than = "1d"\n'
    with pytest.raises(InvalidRules, match="duplicate rule name 'x'"):
        rules(one + one)


def test_nothing_means_no_rules() -> None:
    assert rules("").rule == ()


def test_a_rule_in_words() -> None:
    (found,) = rules("""
        [[rule]]
        name = "tidy"
        action = "delete-copies"
        group = ["weather", "fire"]
        path = "scratch/**"
        older_than = "4w"
        larger_than = "1MiB"
        grace = "7d"
        max_objects = 5
    """).rule
    assert found.sentence() == (
        "tidy: deletes copies of ACTIVE objects of group weather or fire at scratch/** "
        "registered more than 28 days ago larger than 1 MiB; "
        "never the last verified copy (the remaining one's checksum is verified first), "
        "7 days after it was marked, at most 5 objects a run."
    )


def test_machines_of_rules() -> None:
    machines = parse_machines(
        '[machines.alpha]\ntransport = "local"\nbase_dir = "/a"\n'
        '[machines.tape]\ntransport = "local"\nbase_dir = "/t"\narchive = true\n',
        "machines.toml",
    )
    assert (
        "'beta' is not configured" in objections(RetentionRules(rule=(rule(machine=["alpha", "beta"]),)), machines)[0]
    )
    check_archives(RetentionRules(rule=(rule(action="archive", archive_to="tape"),)), machines)
    for wrong in ("alpha", "nowhere"):
        with pytest.raises(InvalidRules, match="archive_to"):
            check_archives(RetentionRules(rule=(rule(action="archive", archive_to=wrong),)), machines)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30d", 30 * 86400), ("2w", 14 * 86400), ("12 h", 43200), ("90min", 5400), ("0s", 0), ("P1DT1H", 90000)],
)
def test_durations(text: str, seconds: int) -> None:
    assert read_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("wrong", ["", "d", "-1d", "1.5d", "P", "1000000000y", "999999999d", 5, None, True, "1d1h"])
def test_wrong_durations(wrong: object) -> None:
    with pytest.raises(ValueError, match="duration"):
        read_duration(wrong)


def test_sizes_and_how_they_are_said() -> None:
    assert [read_size(text) for text in ("1MiB", "1.5kB", "7", 7, "2TiB")] == [2**20, 1500, 7, 7, 2**41]
    for wrong in ("1X", -1, True, "1i", 2**63, 1.5):
        with pytest.raises(ValueError, match="bytes"):
            read_size(wrong)
    assert (size_text(2**20), size_text(5)) == ("1 MiB", "5 bytes")
    assert (duration_text(14 * DAY), duration_text(DAY / 24), duration_text(timedelta())) == (
        "14 days",
        "1 hour",
        "0 seconds",
    )


@pytest.mark.parametrize(
    ("glob", "fits", "not_these"),
    [
        ("forecasts/**", ["forecasts/a", "forecasts/a/b\nc"], ["forecasts", "xforecasts/a", "a/forecasts/b"]),
        ("**/*.nc", ["a.nc", "x/y/a.nc"], ["a.ncx", "x/y/ancx"]),
        ("*.nc", ["a.nc", ".nc"], ["x/a.nc"]),
        ("a?c", ["abc"], ["a/c", "ac"]),
        ("$(id)[x]/*", ["$(id)[x]/a"], ["$(id)x/a"]),
        ("a/**/b", ["a/b", "a/x/y/b"], ["a/xb", "ab"]),
        ("A/*", ["A/b"], ["a/b"]),
    ],
)
def test_globs(glob: str, fits: list[str], not_these: list[str]) -> None:
    assert [text for text in fits + not_these if fits_any((glob,), text, path=True)] == fits


def test_the_sample_in_the_documents_is_right() -> None:
    text = (Path(__file__).parents[2] / "docs" / "retention.md").read_text(encoding="utf-8")
    found = rules(text.split("```toml")[1].split("```")[0])
    assert [one.action.value for one in found.rule] == ["archive", "delete-copies", "delete"]
    assert found.limits == RetentionRules().limits


# --- selecting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "fits", "not_this"),
    [
        ({"group": "weather"}, {}, {"group": "fire"}),
        ({"machine": ["alpha"]}, {}, {"machine": "beta"}),
        ({"originator": "if*"}, {}, {"originator": "gfs"}),
        ({"path": "forecasts/*"}, {}, {"place": "other/1.nc"}),
        ({"older_than": "99d"}, {}, {"registered": NOW - 99 * DAY}),
        ({"unused_for": "5d"}, {"last_used": NOW - 6 * DAY}, {"last_used": NOW - 5 * DAY}),
        ({"unused_for": "5d"}, {}, {"last_used": NOW}),
        ({"larger_than": 999}, {}, {"size": None}),
        ({"smaller_than": 1001}, {}, {"size": 1001}),
        (
            {"metadata": {"model": "ifs", "run": 0}},
            {"metadata": {"model": "ifs", "run": 0}},
            {"metadata": {"run": "0"}},
        ),
        ({"metadata": {"ok": True}}, {"metadata": {"ok": True}}, {"metadata": {"ok": "yes"}}),
        ({"expired": True}, {"expires": NOW}, {"expires": NOW + DAY}),
        ({"expired": True}, {"expires": NOW - DAY}, {}),
        ({"group": "weather"}, {}, {"status": ObjectStatus.ARCHIVED}),
        ({"group": "weather", "status": "ARCHIVED"}, {"status": ObjectStatus.ARCHIVED}, {}),
        ({"group": "weather"}, {}, {"status": ObjectStatus.UNKNOWN}),
    ],
)
def test_selectors(keys: dict[str, Any], fits: dict[str, Any], not_this: dict[str, Any]) -> None:
    wanted = Rule.model_validate({"name": "r", "action": "delete", **keys})
    assert selects(wanted, subject(**fits), NOW)
    assert not selects(wanted, subject(**not_this), NOW)


# --- deciding -------------------------------------------------------------------------------------------------------


def test_of_copies_that_are_all_due_the_oldest_is_kept() -> None:
    copies = [subject(number, registered=NOW - number * 10 * DAY) for number in (1, 2, 3)]
    found = decided(rule(), *copies)
    assert {number: one.reason for number, one in found.items()} == {1: None, 2: None, 3: Reason.LAST_VERIFIED_COPY}
    assert {one.survivor for one in (found[1], found[2])} == {UUID(int=3)}


def test_a_copy_that_no_rule_wants_is_kept_before_an_older_one() -> None:
    found = decided(rule(group="weather"), subject(1, registered=NOW - 500 * DAY), subject(2, group="paper"))
    assert found[1].verdict is Verdict.ACT
    assert found[1].survivor == UUID(int=2)


@pytest.mark.parametrize(
    "other",
    [
        {"verified": "size"},
        {"checksum": "sha256:" + "b" * 64},
        {"checksum": None},
        {"status": ObjectStatus.DELETED},
        {"status": ObjectStatus.UNKNOWN},
        {"claim": "write"},
        {"mark": Mark("r", "delete", NOW - DAY, UUID(int=99))},
    ],
)
def test_what_is_no_copy(other: dict[str, Any]) -> None:
    found = decided(rule(path="forecasts/1.nc"), subject(1), subject(2, **other))
    assert found[1].reason is Reason.LAST_VERIFIED_COPY


def test_an_archived_copy_counts() -> None:
    other = subject(2, status=ObjectStatus.ARCHIVED, bytes_on="tape")
    assert decided(rule(path="forecasts/1.nc"), subject(1), other)[1].survivor == UUID(int=2)


def test_what_a_rule_may_take_as_the_last_copy_saves_no_other() -> None:
    both = RetentionRules(
        rule=(rule(name="all", action="delete", group="scratch", even_last_copy=True), rule(group="weather"))
    )
    decider = Decider(both, NOW)
    found = {one.subject.id.int: one for one in plan(decider, [subject(1), subject(2, group="scratch")])}
    assert found[1].reason is Reason.LAST_VERIFIED_COPY
    assert found[2].verdict is Verdict.ACT


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"held": True}, Reason.HELD),
        ({"restored": frozenset({"r"})}, Reason.RESTORED),
        ({"claim": "read"}, Reason.IN_USE),
        ({"mark": Mark("r", "delete", NOW - DAY, UUID(int=9))}, Reason.UNDER_WAY),
        ({"machine": "gone"}, Reason.UNKNOWN_MACHINE),
        ({"machine": "drained"}, Reason.MACHINE_DRAINED),
    ],
)
def test_who_is_spared(facts: dict[str, Any], reason: Reason) -> None:
    found = decided(
        rule(action="delete", even_last_copy=True),
        subject(1, **facts),
        machines=["alpha", "drained"],
        away={"drained": Reason.MACHINE_DRAINED},
    )
    assert found[1].reason is reason


def test_the_first_rule_that_selects_decides() -> None:
    first = rule(name="first", action="archive", group="weather")
    both = RetentionRules(rule=(first, rule(name="second", action="delete", even_last_copy=True)))
    (found,) = plan(Decider(both, NOW), [subject(1, restored=frozenset({"first"}))])
    assert (found.rule.name, found.reason) == ("first", Reason.RESTORED)


def test_grace_is_waited_for() -> None:
    wanted = rule(action="delete", even_last_copy=True, grace="7d")
    assert decided(wanted, subject(1))[1].verdict is Verdict.MARK
    assert decided(wanted, subject(1))[1].due == NOW + 7 * DAY
    early = subject(1, mark=Mark("r", "delete", NOW + DAY))
    assert decided(wanted, early)[1].reason is Reason.IN_GRACE
    due = subject(1, mark=Mark("r", "delete", NOW))
    assert decided(wanted, due)[1].verdict is Verdict.ACT
    for other in (Mark("other", "delete", NOW), Mark("r", "archive", NOW)):
        assert decided(wanted, subject(1, mark=other))[1].verdict is Verdict.MARK


def test_caps_hold_for_acts_and_for_marks() -> None:
    many = [subject(number, checksum=f"sha256:{number:064d}") for number in range(1, 9)]
    wanted = rule(action="delete", even_last_copy=True, max_objects=3)
    acted = [one.verdict for one in decided(wanted, *many).values()]
    assert (acted.count(Verdict.ACT), acted.count(Verdict.SPARE)) == (3, 5)
    marked = decided(rule(action="archive", grace="1d", max_bytes=2500), *many).values()
    assert [one.verdict for one in marked].count(Verdict.MARK) == 2
    assert {one.reason for one in marked if one.verdict is Verdict.SPARE} == {Reason.OVER_CAP}


def test_only_one_rule_is_carried_out_but_all_say_what_is_a_copy() -> None:
    both = RetentionRules(rule=(rule(name="a", group="weather"), rule(name="b", group="fire")))
    ones = [subject(1), subject(2, group="fire", registered=NOW - 50 * DAY)]
    found = list(plan(Decider(both, NOW, only="b"), ones))
    assert [(one.subject.id.int, one.verdict, one.survivor) for one in found] == [(2, Verdict.ACT, UUID(int=1))]


# --- what no rule may ever do ---------------------------------------------------------------------------------------

SUMS = [f"sha256:{letter * 64}" for letter in "abc"]
durations = st.sampled_from(["0s", "1d", "3d", "10d"])
rule_sets = st.lists(
    st.fixed_dictionaries(
        {
            "action": st.sampled_from(["archive", "delete", "delete-copies"]),
            "older_than": durations,
            "grace": durations,
        },
        optional={
            "group": st.sampled_from(["weather", "fire"]),
            "machine": st.sampled_from(["alpha", "beta"]),
            "expired": st.just(True),
            "last": st.booleans(),
            "archived_too": st.booleans(),
            "max_objects": st.integers(0, 3),
        },
    ),
    min_size=1,
    max_size=4,
)
object_sets = st.lists(
    st.fixed_dictionaries(
        {
            "checksum": st.sampled_from([*SUMS, None]),
            "verified": st.sampled_from(["sha256", "sha256", "sha256", "size", "none"]),
            "status": st.sampled_from(["ACTIVE", "ACTIVE", "ACTIVE", "ARCHIVED", "UNKNOWN", "DELETED"]),
            "group": st.sampled_from(["weather", "fire"]),
            "machine": st.sampled_from(["alpha", "beta"]),
            "age": st.integers(0, 12),
            "held": st.booleans(),
            "expires": st.sampled_from([None, -1, 3]),
        }
    ),
    min_size=1,
    max_size=8,
)
happenings = st.lists(
    st.tuples(
        st.sampled_from(["hold", "release", "use", "write", "free", "lose", "restore", "fail"]), st.integers(0, 7)
    ),
    max_size=4,
)


def _rules_of(given_rules: list[dict[str, Any]]) -> RetentionRules:
    made = []
    for number, keys in enumerate(given_rules):
        keys = dict(keys)
        last, too = keys.pop("last", False), keys.pop("archived_too", False)
        if keys["action"] == "delete":
            keys["even_last_copy"] = last
        if keys["action"] != "archive" and too:
            keys["status"] = ["ACTIVE", "ARCHIVED"]
        made.append(Rule.model_validate({"name": f"rule {number}", **keys}))
    return RetentionRules(rule=tuple(made))


@given(given_rules=rule_sets, objects=object_sets, days=st.lists(happenings, min_size=1, max_size=6))
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_rule_deletes_the_last_verified_copy_or_a_held_object(
    given_rules: list[dict[str, Any]], objects: list[dict[str, Any]], days: list[list[tuple[str, int]]]
) -> None:
    wanted = _rules_of(given_rules)
    world: dict[UUID, Subject] = {}
    for number, facts in enumerate(objects, 1):
        facts = dict(facts)
        age, expires = facts.pop("age"), facts.pop("expires")
        facts["status"] = ObjectStatus(facts["status"])
        facts["registered"] = NOW - age * DAY - timedelta(minutes=number)
        facts["expires"] = None if expires is None else NOW + expires * DAY
        world[UUID(int=number)] = subject(number, **facts)
    for day, events in enumerate(days):
        time = NOW + 2 * day * DAY
        failing = _happen(world, events, time)
        _run(world, wanted, time, failing)


def _happen(world: dict[UUID, Subject], events: list[tuple[str, int]], time: datetime) -> set[UUID]:
    """Let people do things to objects; return those whose transfers fail this day."""
    failing, ids = set(), list(world)
    for what, number in events:
        key = ids[number % len(ids)]
        one = world[key]
        match what:
            case "hold":
                world[key] = replace(one, held=True, mark=None)
            case "release":
                world[key] = replace(one, held=False)
            case "use":
                world[key] = replace(one, last_used=time)
            case "write" | "free":
                world[key] = replace(one, claim="write" if what == "write" else None)
            case "lose":
                world[key] = replace(one, status=ObjectStatus.UNKNOWN)
            case "restore" if one.mark is not None:
                world[key] = replace(one, restored=frozenset({one.mark.rule}), mark=None)
            case "fail":
                failing.add(key)
    return failing


def _run(world: dict[UUID, Subject], wanted: RetentionRules, time: datetime, failing: set[UUID]) -> None:
    decider = Decider(wanted, time)
    groups = {one.checksum: [x for x in world.values() if x.checksum == one.checksum] for one in world.values()}
    keepers = {sum_: keeper_of(wanted, some, time, {}) for sum_, some in groups.items() if sum_ is not None}
    for key, one in world.items():
        if one.mark is not None and decider.voids(one, keepers.get(one.checksum or "")) is not None:
            world[key] = replace(one, mark=None)
    before = dict(world)
    found = list(plan(decider, world.values()))
    assert len({each.subject.id for each in found}) == len(found)
    for each in found:
        old, key = before[each.subject.id], each.subject.id
        if each.verdict is Verdict.MARK:
            world[key] = replace(old, mark=Mark(each.rule.name, each.rule.action.value, each.due or time))
        if each.verdict is not Verdict.ACT:
            continue
        event(f"acts: {each.rule.action}")
        assert not old.held
        assert old.claim is None
        assert each.rule.name not in old.restored
        assert selects(each.rule, old, time)
        assert not each.rule.grace or (old.mark is not None and old.mark.due <= time)
        if key in failing:
            continue
        gone = ObjectStatus.DELETED if each.rule.action.deletes else ObjectStatus.ARCHIVED
        world[key] = replace(old, status=gone, mark=None)
    for each in found:
        if each.verdict is Verdict.ACT and each.rule.action.deletes and not each.rule.even_last_copy:
            left = [x for x in world.values() if x.checksum == each.subject.checksum and x.proved]
            assert [x for x in left if x.id == each.survivor]
    for rule_ in wanted.rule:
        acts = [each for each in found if each.rule is rule_ and each.verdict is Verdict.ACT]
        assert rule_.max_objects is None or len(acts) <= rule_.max_objects
