"""The audit trail's chain: whatever is done to a row that was linked is found, and the row is named."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.access.trail_chain import HASHED, ZEROS, Flaw, FlawKind, Link, flaws_of, hash_of, record_of

Chain = list[dict[str, Any]]


def chain_of(actions: list[str], first: Link = Link()) -> Chain:  # noqa: B008  # it is frozen
    """Return linked records that come after `first`."""
    linked, before = list[dict[str, Any]](), first
    for number, action in enumerate(actions, first.number + 1):
        record = {"number": number, "action": action, "person": "maria", "counts": {"total": number}}
        before = Link(number, hash_of(before.hash, record))
        linked.append({**record, "hash": before.hash})
    return linked


def last_of(chain: Chain) -> Link:
    return Link(chain[-1]["number"], chain[-1]["hash"])


def flaws(chain: Chain, last: Link, first: Link = Link()) -> list[tuple[FlawKind, int, int]]:  # noqa: B008
    return [(flaw.kind, flaw.number, flaw.last) for flaw in flaws_of(chain, first, last)]


CHAIN = chain_of(["copy", "move", "delete", "archive", "copy"])
LAST = last_of(CHAIN)


def test_a_chain_has_no_flaws() -> None:
    assert flaws(CHAIN, LAST) == []
    assert flaws([], Link()) == []


def test_a_pruned_chain_begins_with_the_hash_of_the_last_row_that_went() -> None:
    assert flaws(CHAIN[2:], LAST, Link(2, CHAIN[1]["hash"])) == []
    assert flaws(CHAIN[2:], LAST, Link(2, ZEROS)) == [(FlawKind.CHANGED, 3, 3)]


@given(st.integers(0, 4), st.sampled_from(["action", "person", "counts", "hash"]))
def test_a_changed_row_is_named(at: int, name: str) -> None:
    changed = [dict(one) for one in CHAIN]
    changed[at][name] = "f" * 64 if name == "hash" else "other"
    found = flaws(changed, LAST)
    assert (FlawKind.CHANGED, at + 1, at + 1) in found
    # the others are what they were; only the hash of a row is the beginning of the next one
    assert {number for _, number, _ in found} <= {at + 1, at + 2}


@given(st.integers(0, 4))
def test_a_row_whose_hash_was_made_anew_is_found_by_the_one_behind_it(at: int) -> None:
    changed = [dict(one) for one in CHAIN]
    changed[at]["person"] = "mallory"
    changed[at]["hash"] = hash_of(changed[at - 1]["hash"] if at else ZEROS, changed[at])
    expected = [(FlawKind.CHANGED, at + 2, at + 2)] if at < 4 else [(FlawKind.CUT, 5, 5)]
    assert flaws(changed, LAST) == expected


@given(st.integers(0, 4), st.integers(1, 5))
def test_removed_rows_are_named(at: int, count: int) -> None:
    gone = CHAIN[at : at + count]
    kept = [one for one in CHAIN if one not in gone]
    assert flaws(kept, LAST) == [(FlawKind.REMOVED, gone[0]["number"], gone[-1]["number"])]


@given(st.integers(0, 4), st.integers(0, 4))
def test_rows_that_changed_places_are_named(one: int, other: int) -> None:
    changed = [dict(row) for row in CHAIN]
    changed[one]["number"], changed[other]["number"] = changed[other]["number"], changed[one]["number"]
    changed.sort(key=lambda row: int(row["number"]))
    found = {number for _, number, _ in flaws(changed, LAST)}
    assert found >= ({one + 1, other + 1} if one != other else set())
    assert bool(found) == (one != other)


def test_inserted_rows_are_named() -> None:
    late = {**CHAIN[0], "number": 6}
    assert flaws([*CHAIN, late], LAST) == [(FlawKind.INSERTED, 6, 6)]
    early = {**CHAIN[0], "number": 1}
    assert flaws([early, *CHAIN[2:]], LAST, Link(2, CHAIN[1]["hash"])) == [(FlawKind.INSERTED, 1, 1)]


def test_a_chain_that_was_cut_is_found() -> None:
    assert flaws(CHAIN[:3], LAST) == [(FlawKind.REMOVED, 4, 5)]
    assert flaws(CHAIN, Link(5, "f" * 64)) == [(FlawKind.CUT, 5, 5)]


def test_a_flaw_has_the_record_of_the_row() -> None:
    changed = [CHAIN[0], {**CHAIN[1], "action": "x"}, *CHAIN[2:]]
    assert list(flaws_of(changed, Link(), LAST)) == [Flaw(FlawKind.CHANGED, 2, 2, changed[1])]


def test_a_hash_is_what_the_documentation_says() -> None:
    record = {"number": 1, "person": "märia", "counts": {"b": 1, "a": 2}, "hash": "not hashed"}
    text = r'{"counts":{"a":2,"b":1},"number":1,"person":"m\u00e4ria"}'
    assert hash_of(ZEROS, record) == hashlib.sha256(f"{'0' * 64}\n{text}".encode()).hexdigest()
    assert json.loads(text)["person"] == "märia"


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=2))])
def test_a_record_has_times_in_utc_and_leaves_out_nulls(zone: timezone) -> None:
    row = dict.fromkeys(HASHED) | {"hash": None, "object_id": UUID(int=7), "action": "copy"}
    row["time"] = datetime(2026, 1, 1, 12, tzinfo=UTC).astimezone(zone)
    assert record_of(SimpleNamespace(**row), 3) == {
        "number": 3,
        "time": "2026-01-01T12:00:00.000000+00:00",
        "action": "copy",
        "object_id": "00000000-0000-0000-0000-000000000007",
    }
