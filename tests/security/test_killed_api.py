"""An API that is killed while requests of many clients share its transactions: what was answered is there, once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from sqlalchemy import func, select

from models.tables import Claim, DataObject, OutboxMessage
from tests.support.api_process import ApiProcess

CLIENTS = 8
ANSWERS = 60
"""After so many the API is killed."""


@pytest.mark.server
def test_killed_api_loses_nothing_that_it_answered(tmp_path: Path) -> None:
    answered, enough = list[str](), threading.Event()

    def register(api: ApiProcess, client: int) -> None:
        with requests.Session() as session:
            session.trust_env = False
            number = 0
            while True:
                fields = {"machine": "here", "filename": f"{client}-{number}", "verify": "none"}
                try:
                    answer = session.put(f"{api.url}/DM/register", data=fields, timeout=60)
                except requests.ConnectionError:
                    return
                assert answer.status_code == 201, answer.text
                answered.append(answer.text)
                number += 1
                if len(answered) >= ANSWERS:
                    enough.set()

    with ApiProcess(tmp_path) as api, ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(register, api, client) for client in range(CLIENTS)]
        try:
            assert enough.wait(120)
        finally:
            api.process.kill()
        for client in clients:
            client.result(120)
        with api.database.read() as session:
            objects = {str(one) for one in session.scalars(select(DataObject.id))}
            places = session.scalar(select(func.count(func.distinct(DataObject.place))))
            claims = session.scalar(select(func.count()).select_from(Claim))
            events = session.scalar(select(func.count()).select_from(OutboxMessage))
    assert objects.issuperset(answered)
    assert len(objects) <= len(answered) + CLIENTS, "of each client one request may have had no answer"
    assert places == claims == events == len(objects), "each was made whole"
