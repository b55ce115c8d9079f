"""Whether Prefect counts as there: one look without an answer refuses nobody."""

from __future__ import annotations

import asyncio
from pathlib import Path

from datamanager.settings import Settings
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.transports.factory import Storages
from deployments.orchestrator.gateway import PrefectGateway
from flows.runtime.services import Services
from models.database import Database
from tests.support.catalogue import machines
from tests.support.odd_http import OddServer

HEALTHY = [b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\ntrue"]
SICK = [b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"]


def test_prefect_is_away_after_three_looks_in_a_row_without_an_answer(tmp_path: Path) -> None:
    with OddServer() as server:
        settings = Settings(home=tmp_path, prefect_api_url=server.url("/api"))
        parts = machines(), Database(settings.catalogue_url), Storages(machines(), control_dir=tmp_path)
        gateway = PrefectGateway(Services(settings, *parts, EgressGuard(), "mover", notify=lambda _: None))

        def looks(*answers: list[bytes]) -> list[bool]:
            found = []
            for answer in answers:
                server.answers["/api/health"] = answer
                asyncio.run(gateway.look())
                found.append(gateway.there)
            return found

        assert looks(SICK) == [False]  # it never answered
        assert looks(HEALTHY, SICK, SICK, HEALTHY, SICK, SICK) == [True] * 6
        assert looks(SICK, SICK, HEALTHY) == [False, False, True]
        for _ in range(3):  # runs that Prefect did not begin count alike
            assert gateway.there
            gateway.miss()
        assert not gateway.there
