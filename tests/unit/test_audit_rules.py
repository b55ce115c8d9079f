"""What looks mean, without a machine: findings, suspicion, shares, and names of partial files."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamanager.domain.audit_rules import (
    AuditRequest,
    AuditTerms,
    Expected,
    FindingKind,
    Look,
    Sight,
    below_any,
    is_suspicious,
    judge,
    may_be_dark,
    proves,
    scrub_count,
)
from datamanager.domain.location import NAME_MAX, Part, read_part, spared, temporary_name
from datamanager.domain.requests import validated
from datamanager.engine.bulk.bulk_chunk import part_name
from datamanager.errors import InvalidRequest, SettingsError
from datamanager.machines import parse_machines
from flows.audit.first_pass import Holders
from flows.audit.scrub import AT_ONCE, within

SHA, OTHER = "a" * 64, "b" * 64
MODIFIED = datetime(2026, 1, 1, tzinfo=UTC)


def row(status: str = "ACTIVE", size: int | None = 5, sha256: str | None = SHA, place: str = "a/b") -> Expected:
    return Expected(uuid4(), place, status, size, sha256, MODIFIED)


def seen(size: int = 5, sha256: str | None = None) -> Look:
    return Look(Sight.FILE, size, 1, "/data/a/b", "a/b", sha256)


NOTHING, UNSEEN = Look(Sight.NOTHING), Look(Sight.UNSEEN, why="permission_denied: …")


@pytest.mark.parametrize(
    ("expected", "look", "kind"),
    [
        (row(), seen(), None),
        (row(), seen(sha256=SHA), None),
        (row(), NOTHING, FindingKind.LOST),
        (row(), UNSEEN, None),
        (row(), seen(6), FindingKind.CHANGED),
        (row(), seen(sha256=OTHER), FindingKind.CHANGED),
        (row(size=None), seen(6), None),
        (row(size=None, sha256=None), seen(sha256=OTHER), None),
        (row(size=None, sha256=None), NOTHING, FindingKind.LOST),
        (row("UNKNOWN"), NOTHING, None),
        (row("UNKNOWN"), UNSEEN, None),
        (row("UNKNOWN"), seen(), FindingKind.FOUND),
        (row("UNKNOWN"), seen(6), FindingKind.CHANGED),
        (row("UNKNOWN"), seen(sha256=OTHER), FindingKind.CHANGED),
    ],
)
def test_a_row_and_a_look(expected: Expected, look: Look, kind: FindingKind | None) -> None:
    finding = judge(expected, look)
    assert (finding and finding.kind) == kind
    if finding is not None:
        assert (finding.object_id, finding.place) == (expected.object_id, expected.place)


@pytest.mark.parametrize(
    ("expected", "found", "proved"),
    [
        ({"size": 5, "sha256": SHA}, {"size": 5, "sha256": SHA}, True),
        ({"size": 5, "sha256": SHA}, {"size": 5}, False),
        ({"size": 5}, {"size": 5, "sha256": SHA}, False),
        ({"size": None, "sha256": SHA}, {"size": 5, "sha256": SHA}, False),
        ({"size": 5, "sha256": SHA}, {"size": 5, "sha256": OTHER}, False),
        ({}, {}, False),
    ],
)
def test_only_size_and_checksum_prove_a_found_file(expected: dict, found: dict, proved: bool) -> None:  # type: ignore[type-arg]
    assert proves(expected, found) is proved


@pytest.mark.parametrize(
    ("lost", "looked_at", "suspicious"),
    [(0, 0, False), (10, 10, False), (11, 11, True), (11, 110, False), (11, 109, True), (100_000, 1_000_000, False)],
)
def test_many_losses_are_suspicious(lost: int, looked_at: int, suspicious: bool) -> None:
    assert is_suspicious(lost, looked_at, 0.1) is suspicious


def test_partial_and_young_files_are_not_dark() -> None:
    assert may_be_dark("x", 99, 100)
    assert not may_be_dark("x", 100, 100)
    assert not may_be_dark(".x.12345678.1.dmpart", 1, 100)


@given(objects=st.integers(0, 10**9), share=st.floats(0, 1))
def test_a_share_is_never_more_than_all_and_never_nothing_by_chance(objects: int, share: float) -> None:
    count = scrub_count(objects, share)
    assert 0 <= count <= objects
    assert (count > 0) == (objects > 0 and share > 0)


@given(st.lists(st.integers(0, 2 * AT_ONCE), max_size=20), st.integers(0, 4 * AT_ONCE), st.booleans())
def test_what_is_hashed_in_one_go(sizes: list[int], most: int, first: bool) -> None:
    rows = [row(size=size) for size in sizes]
    batch = within(rows, most, first=first)
    assert batch == rows[: len(batch)]
    total = sum(one.size or 0 for one in batch)
    assert total <= most or (first and len(batch) == 1)
    assert len(batch) <= 1 or total <= AT_ONCE
    if rows and first:
        assert batch  # whatever its size: the oldest one has its turn


PARTS = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=6)
PLACES = st.lists(st.lists(st.sampled_from(["a", "a-", "b", "a0", "é", "."]), min_size=1, max_size=5), max_size=60)


@given(PLACES)
def test_each_directory_is_told_once(paths: list[list[str]]) -> None:
    places = sorted({"/".join(path) for path in paths}, key=lambda place: place.encode())
    told = list(Holders().new(places))
    assert len(told) == len(set(told))
    assert set(told) == {place.rpartition("/")[0] for place in places}


def test_below() -> None:
    assert below_any("a", ["a"])
    assert below_any("a/b", ["a"])
    assert below_any("x", [""])
    assert not below_any("ab", ["a"])
    assert not below_any("", ["a"])
    assert not below_any("a", [])


@given(PARTS, st.uuids(), st.integers(0, 10**9))  # 0: names of retention's looks at whether two files are one
def test_every_name_that_we_give_is_read(name: str, transfer: object, epoch: int) -> None:
    owner = transfer.hex[:8]  # type: ignore[attr-defined]
    assert read_part(temporary_name(name, transfer, epoch)) == Part(owner, epoch)  # type: ignore[arg-type]
    assert read_part(part_name(transfer, 7, "ü" * 200, epoch)) == Part(owner, epoch)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "x.12345678.1.dmpart",
        ".x.1234567.1.dmpart",
        ".x.123456789.1.dmpart",
        ".x.ABCDEF12.1.dmpart",
        ".x.12345678.01.dmpart",
        ".x.12345678.1.dmpart.bak",
        ".x.12345678..dmpart",
        "..12345678.1.dmpart",
        ".dmpart",
        ".x.12345678.1",
        "." + "x" * NAME_MAX + ".12345678.1.dmpart",
    ],
)
def test_other_names_are_not_ours(name: str) -> None:
    assert read_part(name) is None
    assert spared(read_part(name), 1e9, 1, open_owner=False) is not None


def test_what_a_sweep_spares() -> None:
    part = Part("12345678", 1)
    assert spared(part, 100, 50, open_owner=False) is None
    assert spared(part, 100, 50, open_owner=True) == "its transfer has not ended"
    assert spared(part, 49, 50, open_owner=False) == "younger than 50 s"
    assert spared(part, -1000, 50, open_owner=False) is not None  # a clock that runs ahead


def test_terms_are_checked() -> None:
    assert validated({"machine": "x"}, AuditRequest).second_look == 60
    assert validated({"machine": "x", "scrub_share": "0.5", "accept_losses": "true"}, AuditRequest).accept_losses
    for wrong in ({"scrub_share": 2}, {"scrub_bytes": -1}, {"second_look": "soon"}, {"most_lost": -1}):
        with pytest.raises(InvalidRequest) as caught:
            validated(wrong, AuditTerms)
        assert caught.value.fields.keys() == wrong.keys()
    with pytest.raises(InvalidRequest, match="machine"):
        validated({}, AuditRequest)


def machines_with(prefixes: str) -> tuple[str, ...]:
    text = f'[machines.here]\ntransport = "local"\nbase_dir = "/data"\naudit_prefixes = {prefixes}\n'
    return parse_machines(text, "machines.toml")["here"].audit_prefixes


def test_registered_prefixes() -> None:
    assert machines_with('["a/b/", "c"]') == ("a/b", "c")
    assert machines_with('["."]') == ("",)
    for wrong in ('["/a"]', '["../a"]', '["a//b"]', '[""]', '["a/./b"]', '"a"'):
        with pytest.raises(SettingsError, match="audit_prefixes"):
            machines_with(wrong)
