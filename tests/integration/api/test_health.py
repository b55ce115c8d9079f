"""Health over HTTP: drained machines and open circuits, who is refused, who waits; client and command line too."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from datamanager import errors
from datamanager.client import Client
from models.machines import health
from tests.support.command import dm
from tests.support.live_api import LiveApi, Mover


def machine(api: LiveApi, name: str) -> dict[str, Any]:
    """Return a machine as it is listed."""
    listed: list[dict[str, Any]] = api.ask("GET", "/DM/machines").json()
    return next(item for item in listed if item["name"] == name)


def open_circuit(api: LiveApi, name: str) -> None:
    for _ in range(health.FAILURES):
        with api.database.write() as session:
            health.failed(session, name)


def test_a_machine_is_drained_and_undrained(api: LiveApi) -> None:
    assert (machine(api, "there")["drained"], machine(api, "there")["circuit"]) == (None, None)
    first = api.ask("POST", "/DM/machines/there/drain")
    assert first.status_code == 200
    assert first.json()["drained"].endswith("+00:00")
    assert first.json() == {"name": "there", "drained": first.json()["drained"], "circuit": None}
    assert api.ask("POST", "/DM/machines/there/drain").json() == first.json()
    assert machine(api, "there")["drained"] == first.json()["drained"]
    assert machine(api, "here")["drained"] is None
    for _ in range(2):
        answer = api.ask("POST", "/DM/machines/there/undrain")
        assert (answer.status_code, answer.json()) == (200, {"name": "there", "drained": None, "circuit": None})
    assert machine(api, "there")["drained"] is None
    for action in ("drain", "undrain"):
        answer = api.ask("POST", f"/DM/machines/nowhere/{action}")
        assert (answer.status_code, answer.json()["code"]) == (422, "unknown_machine")


def test_an_open_circuit_is_shown(api: LiveApi) -> None:
    open_circuit(api, "gone")
    shown = machine(api, "gone")
    assert shown["circuit"]["failures"] == health.FAILURES
    assert shown["circuit"]["opened"] < shown["circuit"]["until"]
    assert not shown["reachable"]


@pytest.mark.parametrize("why", ["drained", "away"])
def test_who_waits_is_refused_at_once_and_a_task_waits(api: LiveApi, why: str) -> None:
    source = api.register("a")
    api.mover_online()
    if why == "drained":
        api.ask("POST", "/DM/machines/there/drain")
    else:
        open_circuit(api, "there")
    place = {"machine": "there", "dest": "b"}
    refused = api.ask("POST", f"/DM/copy/{source}", json=place)
    assert (refused.status_code, refused.json()["code"], refused.json()["retryable"]) == (
        503,
        "machine_unavailable",
        True,
    )
    assert "retry-after" in refused.headers
    task = api.ask("POST", f"/DM/async/copy/{source}", json=place)  # nothing was changed: the place is free
    assert task.status_code == 200
    assert api.status(task.text)["status"] == "QUEUED"
    assert (
        api.ask("POST", f"/DM/copy/{source}", json=place | {"dest": "c"}, headers={"Prefer": "wait=0"}).status_code
        == 202
    )
    with Mover(api):
        assert api.ask("POST", f"/DM/copy/{source}", json={"machine": "here", "dest": "c"}).status_code == 201


def test_draining_takes_an_idempotency_key(api: LiveApi) -> None:
    key = {"Idempotency-Key": str(uuid4())}
    first = api.ask("POST", "/DM/machines/here/drain", headers=key)
    api.ask("POST", "/DM/machines/here/undrain")
    again = api.ask("POST", "/DM/machines/here/drain", headers=key)
    assert (again.status_code, again.json()) == (200, first.json())
    assert again.headers["idempotency-replayed"] == "true"
    assert machine(api, "here")["drained"] is None  # it was not done again
    other = api.ask("POST", "/DM/machines/here/undrain", headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_mismatch")


def test_the_client_drains(api: LiveApi) -> None:
    with Client(api.url) as dm:
        drained = dm.drain_machine("here").drained
        assert drained is not None
        open_circuit(api, "gone")
        found = {item.name: item for item in dm.machines()}
        assert found["here"].drained == drained
        assert found["gone"].circuit is not None
        assert dm.undrain_machine("here").drained is None
        with pytest.raises(errors.UnknownMachine):
            dm.drain_machine("nowhere")


def test_the_command_line_drains(api: LiveApi) -> None:
    said = dm(api, "machine", "drain", "there")
    assert (said.returncode, said.stderr) == (0, "")
    assert said.stdout.startswith("there: drained since ")
    assert machine(api, "there")["drained"] is not None
    assert dm(api, "machine", "undrain", "there").stdout == "there: not drained\n"
    open_circuit(api, "gone")
    assert "can't be reached" in dm(api, "machine", "undrain", "gone").stdout
    assert dm(api, "machine", "drain", "nowhere").returncode != 0
