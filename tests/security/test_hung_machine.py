"""A machine that hangs, or a name server that is silent, keeps nobody else waiting."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest
import requests

from models import migrate
from models.database import Database
from tests.support.api_process import ApiProcess
from tests.support.live_api import LiveApi

PATIENCE = 60.0
"""Seconds until what must happen counts as not happening."""
MACHINE = """
[machines.hung]
transport = "sftp"
host = "127.0.0.1"
port = {port}
username = "nobody"
base_dir = "/data"
connect_timeout = 50
max_connections = 8
"""
LOOKS = 4
"""Requests that may wait for the answer of a machine with eight connections, without those that take long."""

pytestmark = [pytest.mark.server, pytest.mark.xdist_group("slow clients")]


class HungMachine:
    """A machine that takes connections and says nothing."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.clients: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                self.clients.append(self._listener.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        """Go away, for those too who wait. Idempotent."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for one in (self._listener, *self.clients):
            one.close()


def until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def answered(asked: Sequence[Future[requests.Response]]) -> Counter[int]:
    return Counter(one.result().status_code for one in asked if one.done())


@pytest.fixture
def hung() -> Iterator[HungMachine]:
    with closing(HungMachine()) as machine:
        yield machine


def test_register_waits_for_its_own_machine_only(tmp_path: Path, hung: HungMachine) -> None:
    def register(machine: str, name: str) -> requests.Response:
        return api.ask("PUT", "/DM/register", data={"machine": machine, "filename": name})

    with ApiProcess(tmp_path / "site", machines=MACHINE.format(port=hung.port)) as api, ThreadPoolExecutor(24) as pool:
        (api.folder / "a").write_bytes(b"a file")
        asked = [pool.submit(register, "hung", f"{number}") for number in range(24)]
        until(lambda: len(hung.clients) == LOOKS)
        assert register("here", "a").status_code == 201
        assert answered(asked)[201] == 0  # it had not to wait until one of these was given up
        until(lambda: sum(answered(asked).values()) == len(asked) - LOOKS)
        assert answered(asked) == {503: len(asked) - LOOKS}
        refused = next(one.result() for one in asked if one.done())
        assert (refused.json()["code"], refused.json()["retryable"]) == ("machine_unavailable", True)
        assert "hung" in refused.json()["detail"]
        assert refused.headers["retry-after"]
        assert len(hung.clients) == LOOKS
        # what needs no machine does not wait for one
        fields = {"machine": "hung", "filename": "unseen", "verify": "none"}
        assert api.ask("PUT", "/DM/register", data=fields).status_code == 201
        hung.close()
        assert Counter(one.result().status_code for one in asked) == {503: len(asked) - LOOKS, 201: LOOKS}


def test_silent_name_server_stops_look_ups_only(tmp_path: Path) -> None:
    speaks = threading.Event()
    asked_for: list[str] = []

    def resolve(host: str, _port: int) -> list[str]:
        asked_for.append(host)
        assert speaks.wait(PATIENCE)
        return ["127.0.0.1"]

    def fetch(number: int) -> requests.Response:
        fields = {"machine": "here", "filename": f"{number}", "url": f"http://host{number}.example/f"}
        return api.ask("POST", "/DM/async/getexternal", data=fields)

    url = f"sqlite+pysqlite:///{tmp_path / 'catalogue.db'}"
    database = Database(url)
    migrate.upgrade(database)
    database.close()
    with LiveApi(tmp_path / "site", url, resolve=resolve, download_allow=("127.0.0.1",)) as api:
        with ThreadPoolExecutor(24) as pool:
            asked = [pool.submit(fetch, number) for number in range(24)]
            until(lambda: len(asked_for) == 16)
            api.register("a")
            assert answered(asked)[200] == 0
            until(lambda: answered(asked)[503] == 8)
            refused = next(one.result() for one in asked if one.done())
            assert (refused.json()["code"], refused.json()["retryable"]) == ("server_busy", True)
            speaks.set()
            assert Counter(one.result().status_code for one in asked) == {200: 16, 503: 8}
            assert fetch(99).status_code == 200
