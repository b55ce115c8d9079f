"""What is kept of runs in Prefect: nothing, and without a word."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from prefect.results import ResultStore

from deployments.orchestrator.prefect_private import Nowhere


def test_what_a_run_raises_is_kept_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = ResultStore(result_storage=Nowhere(), persist_result=True)
    record = store.create_result_record(KeyError("lost"), key="run")

    asyncio.run(store.apersist_result_record(record))  # Prefect warns in a run's log of what this raises

    assert list(tmp_path.iterdir()) == []
