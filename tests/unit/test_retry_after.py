"""What a source says of when it is to be asked again (RFC 9110, 10.2.3)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from urllib3 import HTTPHeaderDict

from datamanager.sources.http.answer import WAIT_MAX, retry_after

SENT = "Sun, 06 Nov 1994 08:49:00 GMT"


@pytest.mark.parametrize(
    ("status", "headers", "seconds"),
    [
        (503, {"Retry-After": "120"}, 120),
        (429, {"Retry-After": " 7 "}, 7),
        (429, {"Retry-After": "0"}, 1),
        (503, {"Retry-After": "9" * 19}, WAIT_MAX.total_seconds()),
        (503, {"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT", "Date": SENT}, 37),  # the clocks may differ
        (503, {"Retry-After": "Sunday, 06-Nov-94 08:49:37 GMT", "Date": SENT}, 37),
        (503, {"Retry-After": "Sun, 06 Nov 1994 08:48:00 GMT", "Date": SENT}, 1),
        (503, {}, None),
        (503, {"Retry-After": "-5"}, None),
        (503, {"Retry-After": "soon"}, None),
        (500, {"Retry-After": "120"}, None),
    ],
)
def test_retry_after(status: int, headers: dict[str, str], seconds: float | None) -> None:
    expected = None if seconds is None else timedelta(seconds=seconds)
    assert retry_after(status, HTTPHeaderDict(headers)) == expected


def test_retry_after_without_a_date_is_counted_from_now() -> None:
    moment = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    found = retry_after(503, HTTPHeaderDict({"Retry-After": moment}))
    assert found is not None
    assert timedelta(minutes=50) < found <= timedelta(hours=1)
