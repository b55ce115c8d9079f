"""Templates of the time, rhythms, and what a source says of its bytes."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from datamanager.domain.recurring import ScheduleRequest, checked_cron, filled, read_interval
from datamanager.domain.requests import validated
from datamanager.errors import InvalidRequest
from datamanager.sources.terms.source_validators import Validators

MOMENT = datetime(2026, 3, 1, 5, 7, 9, tzinfo=UTC)
FIELDS: dict[str, Any] = {
    "url": "https://data.example/{date:%Y%m%d}",
    "machine": "m",
    "filename": "f-{date:%Y%m%d%H}.nc",
    "interval": "6h",
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("x", "x"),
        ("{date:%Y%m%d}", "20260301"),
        ("a/{date:%Y}/{date:%m-%d}.{date:%H%M%S}", "a/2026/03-01.050709"),
        ("{date-6h:%Y%m%d%H}", "2026022823"),
        ("{date+1d:%j}", "061"),
        ("{date-1w:%d}{date-90m:%H}", "2203"),
        ("{date:%y100%%}", "26100%"),
        ("100%", "100%"),
    ],
)
def test_templates_are_filled_in(template: str, text: str) -> None:
    assert filled(template, MOMENT) == text


@pytest.mark.parametrize(
    "template",
    [
        *("{", "}", "{}", "{date}", "{date:}", "{time:%H}", "{date:%H", "{{date:%H}}", "{date:%A}", "{date:%x}"),
        *("{date:%-d}", "{date:%}", "{date-6:%H}", "{date-6y:%H}", "{date6h:%H}", "{date-999999w:%H}", "{date:%Q}"),
    ],
)
def test_other_braces_are_refused(template: str) -> None:
    with pytest.raises(ValueError, match="a time must be like"):
        filled(template, MOMENT)


def test_an_offset_out_of_the_calendar_is_no_time() -> None:
    with pytest.raises(ValueError, match="is not a valid time"):
        filled("{date-1d:%Y}", datetime.min.replace(tzinfo=UTC))


@pytest.mark.parametrize(("text", "seconds"), [("1m", 60), ("6h", 21_600), ("2 d", 172_800), ("52w", 31_449_600)])
def test_intervals(text: str, seconds: int) -> None:
    assert read_interval(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "6", "h", "0m", "30s", "367d", "1.5h", "-1h", "6h6m", "P1D"])
def test_bad_intervals(text: str) -> None:
    with pytest.raises(ValueError, match="must be a number and m, h, d or w"):
        read_interval(text)


@pytest.mark.parametrize("text", ["0 */6 * * *", "0,30 1-5 * 1,7 0-7", "  5   4 * * 1-5/2 "])
def test_cron_lines(text: str) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    assert CronSchedule(cron=checked_cron(text)).cron == " ".join(text.split())


@pytest.mark.parametrize(
    "text",
    ["", "* * * *", "* * * * * *", "60 * * * *", "* 24 * * *", "* * 0 * *", "5-1 * * * *", "@daily", "*/0 * * * *"],
)
def test_bad_cron_lines(text: str) -> None:
    with pytest.raises(ValueError, match="must be five fields"):
        checked_cron(text)


@pytest.mark.parametrize("text", ["0 0 30 2 *", "0 0 31 2,4-6/2,11 *", "0 0 31 2 1"])
def test_a_day_that_never_comes_is_refused(text: str) -> None:
    """Prefect's server makes runs for no schedule of the deployment when one of them has no next time."""
    with pytest.raises(ValueError, match="must be five fields"):
        checked_cron(text)


@pytest.mark.parametrize("text", ["0 0 29 2 *", "0 0 31 */2 *", "0 0 28-31/3 2 *", "0 0 31 4,5 *", "0 0 */20 2 *"])
def test_a_rare_day_is_fine(text: str) -> None:
    assert checked_cron(text) == text


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"url": ""}, "url"),
        ({"url": "https://{x}"}, "url"),
        ({"filename": "same.nc"}, "filename"),
        ({"filename": "a/{date:%H}"}, "filename"),
        ({"filename": "{date:%Y/%m}"}, "filename"),
        ({"interval": "5s"}, "interval"),
        ({"interval": "", "cron": "x"}, "cron"),
        ({"interval": ""}, "body"),
        ({"cron": "0 * * * *"}, "body"),
        ({"keep": 0}, "keep"),
        ({"keep": "many"}, "keep"),
        ({"options": {"if_newer_than": "x"}}, "options"),
        ({"machine": ""}, "machine"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as wrong:
        validated(FIELDS | change, ScheduleRequest)
    assert field in wrong.value.fields


def test_a_moment_is_a_download() -> None:
    wanted = validated(
        FIELDS
        | {"path": "w/{date:%Y}", "group": "fire", "options": '{"timeout": 5}', "keep": "3", "skip_unchanged": ""},
        ScheduleRequest,
    )
    assert (wanted.keep, wanted.skip_unchanged) == (3, True)
    asked = wanted.at(MOMENT, "11111111-1111-4111-8111-111111111111")
    assert (asked.url, asked.path, asked.filename) == ("https://data.example/20260301", "w/2026", "f-2026030105.nc")
    assert asked.options == {"timeout": 5, "if_newer_than": "11111111-1111-4111-8111-111111111111"}
    assert (asked.group, asked.machine) == ("fire", "m")
    assert validated(wanted.model_dump(mode="json"), ScheduleRequest) == wanted


@pytest.mark.parametrize(
    ("before", "now", "same"),
    [
        (Validators(version="a"), Validators(version="a"), True),
        (Validators(version="a", etag='"1"'), Validators(version="b", etag='"1"'), False),
        (Validators(etag='"1"'), Validators(etag='"1"'), True),
        (Validators(etag='W/"1"'), Validators(etag='"1"'), True),
        (Validators(etag='"1"', last_modified="d", size=5), Validators(etag='"2"', last_modified="d", size=5), False),
        (Validators(last_modified="d", size=5), Validators(last_modified="d", size=5), True),
        (Validators(last_modified="d", size=5), Validators(last_modified="d", size=6), False),
        (Validators(last_modified="d"), Validators(last_modified="d"), False),
        (Validators(etag='"1"'), Validators(last_modified="d"), False),
        (Validators(), Validators(), False),
        (Validators(size=5), Validators(size=5), False),
        (Validators(etag='"1"', checksum="sha256:a"), Validators(etag='"1"', checksum="sha256:b"), False),
        (Validators(etag='"1"'), Validators(etag='"1"', checksum="sha256:b"), False),
        (Validators(etag='"1"', checksum="sha256:a"), Validators(etag='"1"', checksum="sha256:a"), True),
        (Validators(etag='"1"', checksum="sha256:a"), Validators(etag='"1"'), True),
        (Validators(etag='"1"', checksum="sha256:a"), Validators(etag='"2"', checksum="sha256:a"), False),
        (Validators(checksum="sha256:a"), Validators(checksum="sha256:a"), False),
    ],
)
def test_in_doubt_a_source_has_something_new(before: Validators, now: Validators, same: bool) -> None:
    assert before.same_as(now) is same
