"""What anybody can cause to be logged does not fill the log."""

from __future__ import annotations

import logging
from collections import Counter

import pytest

from datamanager import logs
from datamanager.logs import BURST, RateFilter


def passed(rate: RateFilter, name: str, lines: int) -> list[logging.LogRecord]:
    """Let lines of two kinds pass; return those that did."""
    said = [
        logging.makeLogRecord({"name": name, "pathname": "module.py", "lineno": place})
        for _ in range(lines)
        for place in (1, 2)
    ]
    return [record for record in said if rate.filter(record)]


def test_rate_filter_passes_a_burst_of_each_kind() -> None:
    found = passed(RateFilter(), "uvicorn.error", 500)
    assert Counter(record.lineno for record in found) == {1: BURST, 2: BURST}


def test_rate_filter_passes_our_own_lines() -> None:
    assert len(passed(RateFilter(), "api.access", 500)) == 1000


def test_rate_filter_says_what_was_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = RateFilter()
    passed(rate, "asyncio", 50)
    monkeypatch.setattr(logs, "PERIOD", 0.0)
    assert [vars(record).get("left_out") for record in passed(rate, "asyncio", 1)] == [50 - BURST] * 2
