"""The query of a listing: every parameter is read, none is ignored, wrong ones are named."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from api.objects.routes import ObjectQuery, selection_of
from datamanager.domain.states import ObjectStatus
from datamanager.errors import InvalidRequest
from datamanager.machines import Machine, Machines, TransportKind
from models.objects.listing import SORTABLE, Selection

MACHINES = Machines({"here": Machine(name="here", transport=TransportKind.LOCAL, base_dir="/data")})
NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("items", "wanted"),
    [
        ([], Selection()),
        ([("machine", "here"), ("group", "fire")], Selection(machine="here", group="fire")),
        ([("machine", "left-us")], Selection(machine="left-us")),
        ([("status", "active")], Selection(status=ObjectStatus.ACTIVE)),
        ([("filename", "*.nc")], Selection(filename="*.nc")),
        ([("path", "a//b/")], Selection(path_prefix="a/b")),
        ([("machine", "here"), ("path", "/data/a")], Selection(machine="here", path_prefix="a")),
        ([("since", "2026-01-31T12:00:00Z")], Selection(since=NOON)),
        ([("until", "2026-01-31t13:00:00.0 01:00")], Selection(until=NOON)),
        ([("metadata.a b", "1"), ("metadata.c", "")], Selection(metadata={"a b": "1", "c": ""})),
        ([("sort", "-size"), ("limit", "10000"), ("cursor", "x")], Selection(sort="-size", limit=10_000, cursor="x")),
    ],
)
def test_what_is_asked(items: list[tuple[str, str]], wanted: Selection) -> None:
    assert selection_of(items, MACHINES) == wanted


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("colour", "red"),
        ("Machine", "here"),
        ("metadata", "x"),
        ("metadata.", "x"),
        ('metadata.a"b', "x"),
        ("metadata.a\0", "x"),
        ("group", "a\0"),
        ("status", "LOST"),
        ("limit", "0"),
        ("limit", "10001"),
        ("limit", "-1"),
        ("limit", "١"),
        ("limit", "9" * 5000),
        ("sort", "checksum"),
        ("sort", "--size"),
        ("since", "yesterday"),
        ("since", "2026-01-31"),
        ("since", "2026-01-31T12:00:00"),
        ("since", "2026-02-31T12:00:00Z"),
        ("since", "0001-01-01T00:00:00+23:59"),
        ("path", "a/../b"),
    ],
)
def test_what_is_wrong_is_named(name: str, value: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        selection_of([(name, value)], MACHINES)
    assert set(caught.value.fields) == {name}


def test_a_filter_may_be_given_once() -> None:
    with pytest.raises(InvalidRequest):
        selection_of([("group", "a"), ("group", "b")], MACHINES)


def test_every_parameter_is_documented() -> None:
    known = {name for name in Selection.__dataclass_fields__ if name != "path_prefix"}
    assert known | {"path"} == set(ObjectQuery.model_fields)
    assert all(field.description for field in ObjectQuery.model_fields.values())
    assert all(key in str(ObjectQuery.model_fields["sort"].description) for key in SORTABLE)
