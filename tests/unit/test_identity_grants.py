"""Scopes, roles and grants: what is written, what it permits, and that `may` and `filters_of` agree."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamanager.domain.location import Place
from datamanager.errors import InvalidRequest, NotAllowed, PathNotAllowed, SettingsError
from datamanager.identity.grant import Clause, Grant, Means
from datamanager.identity.roles import load_roles
from datamanager.identity.scopes import ACTIONS, AccessTarget, Filter, FilterKind, Scope

GROUPS, MACHINES, PEOPLE = ("fire", "flood", "a b!%="), ("m1", "m2"), ("jo", "ann")
PATHS = ("a", "a/b", "a/bc", "a/b/c", "A/b", "a b!/%c", "b")


def grant(*scopes: str, groups: tuple[str, ...] = ("fire", "flood"), person: str = "jo") -> Grant:
    return Grant(person, frozenset(groups), tuple(map(Scope.parse, scopes)), Means.TOKEN, "id")


def test_actions_are_those_of_the_contract() -> None:
    assert " ".join(ACTIONS) == (
        "list:objects read:objects write:objects transfers delete:objects archive read:machines drain:machines "
        "read:tasks control:tasks schedules retention audits admin:tokens admin:trail"
    )


FIRE = AccessTarget("fire", "m1", "a/b/c", "jo")


@pytest.mark.parametrize(
    ("scopes", "permitted"),
    [
        (["read:objects"], True),
        (["write:objects"], False),
        ([], False),
        (["read:objects!group=fire"], True),
        (["read:objects!group=fir"], False),
        (["read:objects!group=flood"], False),
        (["read:objects!group"], True),
        (["read:objects!user"], True),
        (["read:objects!machine=m1"], True),
        (["read:objects!machine=m2"], False),
        (["read:objects!prefix=m1:a/b/"], True),
        (["read:objects!prefix=m1:a/b"], True),
        (["read:objects!prefix=m1:a//./b/"], True),
        (["read:objects!prefix=m1:a/b/c/"], True),
        (["read:objects!prefix=m1:"], True),
        (["read:objects!prefix=m2:a/b/"], False),
        (["read:objects!prefix=m1:a/b/c/d/"], False),
        (["read:objects!group=fire!machine=m2"], False),  # AND
        (["read:objects!group=fire!group=flood"], False),
        (["read:objects!group=flood", "read:objects!user!machine=m1"], True),  # OR
    ],
)
def test_grant_permits_what_its_scopes_say(scopes: list[str], permitted: bool) -> None:
    assert grant(*scopes).may("read:objects", FIRE) is permitted


def test_prefix_is_compared_by_whole_components() -> None:
    held = grant("write:objects!prefix=m1:a/b/")
    assert not held.may("write:objects", AccessTarget(machine="m1", path="a/bc"))
    assert not held.may("write:objects", AccessTarget(machine="m1", path="A/b/c"))
    assert held.may("write:objects", AccessTarget.at(Place("m1", "a/b/c")))


@pytest.mark.parametrize("path", ["a/b/../../etc", "a//b", "./a", "/a", "a/", "a\0"])
def test_target_has_a_normalised_path(path: str) -> None:
    with pytest.raises(PathNotAllowed):
        AccessTarget(machine="m1", path=path)


def test_what_is_not_known_of_a_target_matches_no_filter() -> None:
    nothing = AccessTarget()
    for scope in ("group=None", "group", "machine=None", "prefix=None:", "user"):
        assert not grant(f"read:objects!{scope}", groups=("None",), person="None").may("read:objects", nothing)
    assert grant("read:objects").may("read:objects", nothing)


def test_own_groups_of_a_person_without_any_are_none() -> None:
    assert grant("read:objects!group", groups=()).filters_of("read:objects") == ()


def test_scope_without_filters_makes_the_others_superfluous() -> None:
    assert grant("read:objects!user", "read:objects").filters_of("read:objects") == ((),)


def test_unknown_action_is_a_mistake_of_ours() -> None:
    with pytest.raises(ValueError, match="no action"):
        grant("read:objects").may("read:object", FIRE)


def test_require_raises() -> None:
    grant("audits").require("audits")
    with pytest.raises(NotAllowed, match="delete:objects"):
        grant("audits").require("delete:objects", FIRE)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("read:object", "scope 'read:object' is unknown; did you mean read:objects?"),
        ("", "scope '' is unknown; known: "),
        ("*", "is unknown"),
        ("read:objects!grup=fire", "filter 'grup' of read:objects is unknown; did you mean group?"),
        ("audits!group=fire", "filter 'group' of audits is unknown; known: machine"),
        ("admin:trail!user", "filter 'user' of admin:trail is unknown; there are no fields here"),
        ("read:objects!", "filter '' of read:objects is unknown"),
        ("read:objects!group=", "needs a value, such as !group=fire"),
        ("read:objects!group=%zz", "needs a value"),
        ("read:objects!group=%ff", "needs a value"),
        ("read:objects!group=%00", "needs a value"),
        ("read:objects!machine", "needs a value, such as !machine=archer2"),
        ("read:objects!machine=m1:a/", "with a directory it is !prefix="),
        ("read:objects!machine=-x", "must name a machine"),
        ("read:objects!prefix=m1", "must be machine:path/"),
        ("read:objects!prefix=m1:/a", "relative to the machine's base_dir"),
        ("read:objects!prefix=m1:a/../b", "'..'"),
        ("read:objects!user=ann", "filter user has no value"),
        ("read:objects" + "!user" * 9, "8 filters"),
        ("read:objects!group=" + "x" * 9000, "8192 characters"),
    ],
)
def test_wrong_scope_is_named_with_what_would_be_right(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        Scope.parse(text, "scope")
    assert words in error.value.detail
    assert list(error.value.fields) == ["scope"]
    assert len(error.value.detail) < 500


def test_scope_is_written_in_one_way() -> None:
    scope = Scope.parse("read:objects!user!prefix=m1:a//b!group=fire!group=fire")
    assert str(scope) == "read:objects!group=fire!prefix=m1:a/b/!user"
    assert (scope.verb, scope.resource, Scope.parse("transfers").verb) == ("read", "objects", "")
    assert scope == Scope.parse("read:objects!group=fire!user!prefix=m1:a/b/")


def filters_for(action: str) -> st.SearchStrategy[list[Filter]]:
    values = {
        FilterKind.GROUP: st.none() | st.sampled_from(GROUPS) | st.text(min_size=1).filter(_is_storable),
        FilterKind.MACHINE: st.sampled_from(MACHINES),
        FilterKind.PREFIX: st.builds("{}:{}/".format, st.sampled_from(MACHINES), st.sampled_from(PATHS)),
        FilterKind.USER: st.none(),
    }
    kinds = sorted(ACTIONS[action][1])
    return st.lists(st.one_of(*(st.builds(Filter, st.just(kind), values[kind]) for kind in kinds)), max_size=3)


def _is_storable(text: str) -> bool:
    return "\0" not in text and text.encode("utf-8", "ignore").decode() == text


def scopes_of(action: str) -> st.SearchStrategy[Scope]:
    return filters_for(action).map(lambda filters: Scope(action, tuple(sorted(set(filters), key=str))))


@settings(max_examples=40)
@given(scopes_of("read:objects"))
def test_scope_is_read_as_it_was_written(scope: Scope) -> None:
    text = str(scope)
    assert Scope.parse(text) == scope
    assert str(Scope.parse(text)) == text
    assert not set(text) & set(" \t\r\n")


TARGETS = [
    AccessTarget(group, machine, path, owner)
    for group in (None, *GROUPS)
    for machine in (None, *MACHINES)
    for path in (None, *PATHS)
    for owner in (None, *PEOPLE)
]


@pytest.fixture(scope="module")
def rows() -> Iterator[sqlite3.Connection]:
    """All targets as rows of a table, so that clauses are judged by SQL and not by the code under test."""
    with closing(sqlite3.connect(":memory:", check_same_thread=False)) as connection:
        connection.execute('CREATE TABLE target (id INTEGER, "group" TEXT, machine TEXT, path TEXT, owner TEXT)')
        connection.executemany(
            "INSERT INTO target VALUES (?,?,?,?,?)",
            [(number, one.group, one.machine, one.path, one.owner) for number, one in enumerate(TARGETS)],
        )
        yield connection


def sql_of(clauses: tuple[Clause, ...]) -> tuple[str, list[str]]:
    columns = {FilterKind.GROUP: '"group"', FilterKind.USER: "owner"}
    alternatives, values = ["0"], []
    for clause in clauses:
        parts = ["1"]
        for condition in clause:
            marks = ",".join("?" * len(condition.values))
            parts.append(f"{columns.get(condition.kind, 'machine')} IN ({marks})")
            values += sorted(condition.values)
            if condition.kind is FilterKind.PREFIX:
                parts.append("path IS NOT NULL AND (? = '' OR path = ? OR substr(path, 1, length(?) + 1) = ? || '/')")
                values += [condition.path] * 4
        alternatives.append(f"({' AND '.join(parts)})")
    return " OR ".join(alternatives), values


@settings(max_examples=80)
@given(
    scopes=st.lists(st.sampled_from(["read:objects", "transfers"]).flatmap(scopes_of), max_size=4),
    groups=st.frozensets(st.sampled_from(GROUPS)),
    person=st.sampled_from(PEOPLE),
)
def test_may_and_filters_agree(
    rows: sqlite3.Connection, scopes: list[Scope], groups: frozenset[str], person: str
) -> None:
    held = Grant(person, groups, tuple(scopes), Means.OIDC)
    where, values = sql_of(held.filters_of("read:objects"))
    selected = {number for (number,) in rows.execute(f"SELECT id FROM target WHERE {where}", values)}
    assert selected == {number for number, one in enumerate(TARGETS) if held.may("read:objects", one)}
    for one in TARGETS[::7]:
        single = any(scope.permits("read:objects", one, person, groups) for scope in scopes)
        assert held.may("read:objects", one) is single
    assert Grant.from_json(held.to_json()) == held


@settings(max_examples=80)
@given(
    wide=st.lists(scopes_of("read:objects"), max_size=3),
    narrow=st.lists(scopes_of("read:objects"), max_size=3),
    groups=st.lists(st.frozensets(st.sampled_from(GROUPS)), min_size=2, max_size=2),
)
def test_what_a_grant_covers_it_permits(wide: list[Scope], narrow: list[Scope], groups: list[frozenset[str]]) -> None:
    more, less = (Grant("jo", *held, Means.OIDC) for held in zip(groups, (tuple(wide), tuple(narrow)), strict=True))
    assert more.covers(more, ["read:objects"])
    if more.covers(less, ["read:objects"]):
        assert all(more.may("read:objects", one) for one in TARGETS if less.may("read:objects", one))


@pytest.mark.parametrize(
    ("wide", "narrow", "covered"),
    [
        ("audits", "audits!machine=m1", True),
        ("audits!machine=m1", "audits", False),
        ("read:objects!group", "read:objects!group=fire", True),
        ("read:objects!group=fire", "read:objects!group", False),
        ("read:objects!machine=m1", "read:objects!prefix=m1:a/!user", True),
        ("read:objects!prefix=m1:", "read:objects!prefix=m1:a/", True),
        ("read:objects!prefix=m1:a/b/", "read:objects!prefix=m1:a/bc/", False),
        ("read:objects!prefix=m1:a/", "read:objects!machine=m1", False),
        ("read:objects!user", "read:objects!group", False),
    ],
)
def test_grant_covers_what_has_more_filters(wide: str, narrow: str, covered: bool) -> None:
    action = narrow.partition("!")[0]
    assert grant(wide).covers(grant(narrow), [action]) is covered


@pytest.mark.parametrize(
    "change",
    [{"scopes": ["everything"]}, {"scopes": "read:objects"}, {"means": "magic"}, {"person": ""}, {"groups": [5]}],
    ids=str,
)
def test_grant_that_cannot_be_read_permits_nothing(change: dict[str, object]) -> None:
    with pytest.raises(NotAllowed):
        Grant.from_json({**grant("audits").to_json(), **change})


# --- roles -----------------------------------------------------------------------------------------------------------


def test_packaged_roles() -> None:
    roles = load_roles()
    assert list(roles.roles) == ["reader", "mover", "archivist", "operator", "admin"]
    assert {scope.action for scope in roles.scopes_of(["admin"])} == set(ACTIONS)
    assert not any(scope.filters for scope in roles.scopes_of(["admin"]))
    mover = Grant("jo", frozenset({"fire"}), roles.scopes_of(["mover"]), Means.TOKEN)
    assert mover.may("transfers", AccessTarget("fire", "m1"))
    assert not mover.may("transfers", AccessTarget("flood", "m1"))
    assert not any(mover.may(action) for action in ("admin:tokens", "admin:trail", "audits", "drain:machines"))
    for action in ("write:objects", "delete:objects", "transfers", "archive"):
        assert not Grant("jo", frozenset(), roles.scopes_of(["operator", "reader"]), Means.TOKEN).may(action)


def test_own_roles_replace_the_packaged_ones(tmp_path: Path) -> None:
    file = tmp_path / "roles.toml"
    file.write_text('version = 1\n[roles.guest]\nscopes = ["list:objects!group=open"]\n')
    roles = load_roles(file)
    assert [str(scope) for scope in roles.scopes_of(["guest", "guest"])] == ["list:objects!group=open"]
    with pytest.raises(InvalidRequest, match="role: 'admin' is unknown; known: guest"):
        roles.scopes_of(["admin"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[roles.x]\nscopes = ["audits"]', "version: Field required"),
        ("version = 1\nroles = 5", "roles: "),
        ('version = 1\n[roles.x]\nscopes = ["audits"]\ngroup = "fire"', "roles.x.group: unknown key"),
        ("version = 1\n[roles.x]\nscopes = []", "roles.x.scopes: "),
        ('version = 1\n[roles.x]\nscopes = ["audits", "audit"]', "roles.x.scopes.1: 'audit': scope 'audit' is unknown"),
        ("version =", "not valid TOML"),
    ],
)
def test_wrong_roles_are_one_clear_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "roles.toml"
    file.write_text(text)
    with pytest.raises(SettingsError) as error:
        load_roles(file)
    assert words in error.value.detail
    assert str(file) in error.value.detail
    assert "\n" not in error.value.detail
