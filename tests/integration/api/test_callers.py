"""Looks of the API at a machine that acts as the caller: as the person who asks, or not at all."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from starlette.requests import Request

from api.machines.caller_storages import acting_for
from api.machines.probe import Prober, ProbeResult
from api.objects.register import look
from datamanager.domain.location import Place
from datamanager.domain.requests import RegisterRequest
from datamanager.domain.states import Verified
from datamanager.engine.attempt import Endpoint
from datamanager.errors import NoLogin, PermissionDenied
from datamanager.identity.grant import Grant, Means
from tests.support.callers import accounts, authority, open_folder, trusting
from tests.support.catalogue import empty_catalogue
from tests.support.live_api import LiveApi
from tests.support.sshd import PrivateSshd

DATA = b"only its owner reads this"


@dataclass
class House:
    """An API, a machine `cluster` of it with a file that only the first of two people can read."""

    live: LiveApi
    server: PrivateSshd
    people: list[str]

    def request(self, person: str | None) -> Request:
        """Return a request as authentication has left it."""
        grant = Grant("jo", frozenset(), (), Means.OIDC, "subject", person)
        return Request({"type": "http", "state": {"grant": grant, "request_id": "r-17"}, "headers": []})


@pytest.fixture(scope="module")
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    home = Path(tempfile.mkdtemp(prefix="dm-"))  # a socket's path must be short
    with open_folder() as place, accounts(2) as people:
        ca = authority(place)
        base = place / "base"
        base.mkdir()
        base.chmod(0o777)
        (base / "private").write_bytes(DATA)
        (base / "private").chmod(0o600)
        shutil.chown(base / "private", people[0], people[0])
        with (
            trusting(place, 1) as (server,),
            empty_catalogue(request, "sqlite", tmp_path_factory.mktemp("callers")) as url,
            LiveApi(home, url, further=[server.machine("cluster", base, acts_as="caller")], signer=ca) as live,
        ):
            yield House(live, server, people)
    shutil.rmtree(home)


def hashed(house: House, person: str | None) -> str | None:
    """Look at the file as a request to register it does; return its checksum."""
    context, machine = house.live.context, house.live.machines["cluster"]
    fields = RegisterRequest(filename="private", path="", machine="cluster", size=None, verify="hash")

    async def looked() -> str | None:
        async with acting_for(context, house.request(person)) as acting:
            end = Endpoint(Place.of(machine, "private"), machine, acting.storages.get("cluster"))
            facts = look(fields, end).facts
            assert facts.verified is Verified.SHA256
            return facts.checksum

    return asyncio.run(looked())


def probed(house: House, person: str | None) -> ProbeResult:
    """Probe the machine as a list of machines does."""

    async def looked() -> ProbeResult:
        async with acting_for(house.live.context, house.request(person)) as acting:
            prober = Prober(house.live.machines, house.live.storages)
            return (await prober.probe_all(acting.storages, 60.0))["cluster"]

    return asyncio.run(looked())


def test_a_file_is_looked_at_as_the_person_who_asks(house: House) -> None:
    owner, other = house.people
    assert hashed(house, owner) is not None
    assert "ID dm:request-r-17:jo (serial" in house.server.log.read_text()
    with pytest.raises(PermissionDenied):
        hashed(house, other)
    with pytest.raises(NoLogin):
        hashed(house, None)


def test_a_machine_is_probed_as_the_person_who_asks(house: House) -> None:
    assert probed(house, house.people[1]).error is None
    assert isinstance(probed(house, None).error, NoLogin)


def test_without_a_person_it_is_refused_over_http(house: House) -> None:
    before = house.server.log.read_text().count("Accepted")
    fields = {"machine": "cluster", "filename": "private"}
    for method, path, data in (("PUT", "register", fields), ("POST", "register/tree", {"machine": "cluster"})):
        answer = house.live.ask(method, f"/DM/{path}", data=data)
        assert (answer.status_code, answer.json()["code"]) == (403, "no_login"), answer.text
    (listed,) = [one for one in house.live.ask("GET", "/DM/machines").json() if one["name"] == "cluster"]
    assert listed["error"]["code"] == "no_login"
    assert house.server.log.read_text().count("Accepted") == before
