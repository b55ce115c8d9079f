"""What a start of `dm up` that takes long says meanwhile."""

from __future__ import annotations

from pathlib import Path
from time import monotonic
from typing import Any, cast

import pytest

from deployments.local.up import SLOW, ReadinessCheck, waiting_for
from tests.support.live_api import LiveApi
from tests.support.ports import free_port
from tests.support.site import eventually


def test_readiness_check_says_what_is_missing_each_15_seconds(
    tmp_path: Path, migrated_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    live = LiveApi(tmp_path, migrated_url, prefect_port=free_port())
    nobody = cast("Any", None)  # the supervisor has something to do only at the end
    check = ReadinessCheck(live.settings, live.machines, nobody, begun=monotonic())

    def said(after: float) -> list[str]:
        check.begun -= after
        check.look()
        return [line.split("; ")[1] for line in capsys.readouterr().out.splitlines() if "not ready after" in line]

    assert said(after=0) == []
    assert said(after=SLOW) == [f"waiting for the API at {live.url}"]
    with live:
        assert said(after=0) == []
        assert said(after=SLOW) == [f"waiting for Prefect at {live.settings.prefect_url}"]
        assert said(after=SLOW) == [f"waiting for Prefect at {live.settings.prefect_url}"]


def test_waiting_for_repeats_what_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("deployments.local.up.SLOW", 0.01)
    heard = ""

    def repeated() -> bool:
        nonlocal heard
        heard += capfd.readouterr().out
        return heard.count("waiting for the catalogue") >= 2

    with waiting_for("the catalogue", monotonic()):
        eventually(repeated, "it is said again")
