"""When a transfer may begin and must have ended, and which goes first: what may be said, and what can't be meant."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from datamanager.domain.fields import Priority, read_time
from datamanager.domain.requests import CopyRequest, DeleteRequest, GetExternalRequest, MoveManyRequest, validated
from datamanager.errors import InvalidRequest
from flows.runtime.monitor import SPAN, Speed

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
PLACE = {"machine": "here", "dest": "a/b"}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("2026-01-31T12:00:00Z", NOON),
        ("2026-01-31t13:00:00.000+01:00", NOON),
        ("2026-01-31 13:00:00 01:00", NOON),  # a form's plus that was not escaped
        (NOON.astimezone(timezone(timedelta(hours=5))), NOON),
        ("PT1H", timedelta(hours=1)),
        ("P1DT12H", timedelta(hours=36)),
        ("PT0.5S", timedelta(seconds=0.5)),
        (timedelta(minutes=1), timedelta(minutes=1)),
        ("", None),
        (None, None),
    ],
)
def test_times_and_durations(given: object, meant: object) -> None:
    request = validated({**PLACE, "deadline": given, "not_before": given}, CopyRequest)
    assert request.deadline == request.not_before == meant
    assert CopyRequest.model_validate(request.model_dump(mode="json")) == request


@pytest.mark.parametrize(
    "given",
    ["2026-01-31", "2026-01-31T12:00:00", "1800000000", 1800000000, 1.5, True, [], "P", "PT", "P1", "1:00:00", "3 days"]
    + ["-PT1H", "P11Y", "P4000D", "PT1H ", datetime(2026, 1, 31), timedelta(-1), timedelta(days=4000)],  # noqa: DTZ001
)
def test_what_is_neither(given: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        validated({**PLACE, "deadline": given}, CopyRequest)
    assert set(refused.value.fields) == {"deadline"}


def test_priorities() -> None:
    for given, meant in (
        ("high", Priority.HIGH),
        ("low", Priority.LOW),
        ("", Priority.NORMAL),
        (None, Priority.NORMAL),
    ):
        assert validated({**PLACE, "priority": given}, CopyRequest).priority is meant
    assert validated({}, DeleteRequest).priority is Priority.NORMAL
    with pytest.raises(InvalidRequest):
        validated({**PLACE, "priority": "HIGHEST"}, CopyRequest)


def test_every_kind_of_request_has_them_and_a_batch_keeps_them() -> None:
    fields = {"priority": "low", "deadline": "PT1H", "not_before": "2026-01-31T12:00:00Z"}
    there = {"filename": "a", "machine": "here", "url": "http://x/"}
    assert validated({**there, **fields}, GetExternalRequest).priority is Priority.LOW
    many = validated({**fields, "directory": {"machine": "here"}, "machine": "there", "dest": "x"}, MoveManyRequest)
    kept = many.accepted(3)
    assert (kept.priority, kept.deadline, kept.not_before) == (Priority.LOW, timedelta(hours=1), NOON)


def test_read_time_says_what_is_wanted() -> None:
    with pytest.raises(ValueError, match="RFC 3339"):
        read_time("2026-13-01T00:00:00Z")


def test_speed_follows_the_last_seconds() -> None:
    clock = [0.0]
    speed = Speed(lambda: clock[0])
    assert speed.of(0) is None
    done = 0
    for _ in range(20):
        clock[0] += 1
        done += 100
        assert speed.of(done) == 100
    for _ in range(int(SPAN) + 1):
        clock[0] += 1
        last = speed.of(done)
    assert last == 0
    clock[0] += 1
    assert speed.of(10) is None  # they are moved once more
    clock[0] += 2
    assert speed.of(50) == 20
