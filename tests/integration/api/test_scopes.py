"""Every endpoint with each scope and without it, about what is one's own, foreign, and not there at all."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

import pytest
import requests

from api.access.asking import PUBLIC, declared
from datamanager.identity.scopes import ACTIONS, FilterKind
from tests.support.catalogue import empty_catalogue
from tests.support.live_api import LiveApi
from tests.support.requests_by_endpoint import ENDPOINTS, Aim, World

OWN, FOREIGN = ("fire", "here"), ("water", "there")
"""Group and machine."""
MADE = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}|\b[0-9a-f]{12}\b")
"""Identifiers, of requests too."""


@dataclass(frozen=True)
class Scene:
    """An API with authentication, and who asks it."""

    api: LiveApi
    admin: str

    def ask(self, endpoint: str, world: World, token: str | None) -> requests.Response:
        """Send the request of an endpoint about a world."""
        name, fields = ENDPOINTS[endpoint][1](world)
        return self.send(endpoint, name, fields, token)

    def send(self, endpoint: str, name: str, fields: dict[str, Any] | None, token: str | None) -> requests.Response:
        method, _, path = endpoint.partition(" ")
        address = re.sub(r"\{\w+\}", name, path)
        headers = {"Accept": "application/json", "Prefer": "respond-async"}
        return self.api.ask(method, address, json=fields, headers=headers, token=token)

    def token(self, scopes: Sequence[str]) -> str:
        return self.api.tokens.make(groups=["fire"], scopes=scopes)

    def world(self, side: tuple[str, str], *, exists: bool = True) -> World:
        return World(self.api, self.admin, *side, exists=exists)


@pytest.fixture(scope="module")
def scene(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("scopes")
    with (
        empty_catalogue(request, "sqlite", folder) as url,
        LiveApi(folder / "site", url, archives=("tape",), auth="required", download_allow=("127.0.0.1",)) as api,
    ):
        yield Scene(api, api.tokens.make("admin"))


def endpoints(api: LiveApi) -> dict[str, list[str] | None]:
    """Return all endpoints that the document shows, with the scopes that they require."""
    shown = [one for one in declared(api.app.routes) if one.documented]
    return {f"{method} {one.path}": one.scopes for one in shown for method in one.methods}


def required(scene: Scene, endpoint: str) -> list[str]:
    return endpoints(scene.api)[endpoint] or []


def narrowed(action: str) -> str:
    """Return a scope for the action, for what is one's own."""
    if FilterKind.GROUP in ACTIONS[action][1]:
        return f"{action}!group"
    return f"{action}!machine=here" if FilterKind.MACHINE in ACTIONS[action][1] else action


def plain(answer: requests.Response, *names: str) -> str:
    """Return an answer without identifiers and without what was asked for."""
    text = answer.text
    for name in names:
        text = text.replace(name, "NAME")
    return f"{answer.status_code} {MADE.sub('ID', text)}"


def test_every_endpoint_is_tried_here(scene: Scene) -> None:
    found = endpoints(scene.api)
    assert {name for name, scopes in found.items() if scopes is not None} == set(ENDPOINTS)
    assert {name.partition(" ")[2] for name, scopes in found.items() if scopes is None} <= PUBLIC
    document = scene.api.app.openapi()["paths"]
    for name, scopes in found.items():
        method, _, path = name.partition(" ")
        assert document[path][method.lower()].get("x-scopes") == scopes, name


@pytest.mark.attack(cwe=862, title="Each endpoint is asked without a token, and without each of its scopes")
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_endpoint_needs_a_token_and_each_of_its_scopes(scene: Scene, endpoint: str) -> None:
    aim, _ = ENDPOINTS[endpoint]
    nothing = scene.world(OWN, exists=False)
    answer = scene.ask(endpoint, nothing, None)
    assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="Data Manager"'
    for missing in required(scene, endpoint):
        token = scene.token([action for action in ACTIONS if action != missing])
        own = None if aim in (Aim.ANY, Aim.WHOLE) else scene.ask(endpoint, scene.world(OWN), token)
        refused = scene.ask(endpoint, nothing, token)
        assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed"), (missing, refused.text)
        assert own is None or plain(own) == plain(refused), missing


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_endpoint_with_its_scopes_for_ones_own(scene: Scene, endpoint: str) -> None:
    aim, asking = ENDPOINTS[endpoint]
    needed = required(scene, endpoint)
    token = scene.token(needed if aim is Aim.WHOLE else [narrowed(action) for action in needed])
    world = scene.world(OWN)
    if "run" in endpoint.partition("retention")[2]:  # of runs one's own are those that one has asked for
        world = replace(world, person=scene.token(["retention!group"]))
        token = world.person
    name, fields = asking(world)
    answer = scene.send(endpoint, name, fields, token)
    assert answer.status_code < 500, answer.text
    assert answer.status_code not in (401, 403, 404), answer.text
    if aim is Aim.LISTED:
        assert name in answer.text


@pytest.mark.attack(cwe=639, title="Each endpoint is asked about what belongs to another group")
@pytest.mark.parametrize("endpoint", [name for name, (aim, _) in ENDPOINTS.items() if aim is not Aim.ANY])
def test_endpoint_with_its_scopes_for_what_is_foreign(scene: Scene, endpoint: str) -> None:
    aim, asking = ENDPOINTS[endpoint]
    token = scene.token([narrowed(action) for action in required(scene, endpoint)])
    name, fields = asking(scene.world(FOREIGN))
    answer = scene.send(endpoint, name, fields, token)
    if aim is Aim.LISTED:
        assert answer.status_code == 200
        assert name not in answer.text
        return
    none, same = asking(scene.world(FOREIGN, exists=False))
    missing = scene.send(endpoint, none, same, token)
    if aim is Aim.NAMED:
        assert answer.status_code == 404, answer.text
        assert plain(answer, name) == plain(missing, none)
    elif aim in (Aim.PLACED, Aim.WHOLE):
        assert (answer.status_code, answer.json()["code"]) == (403, "not_allowed"), answer.text
    else:
        assert plain(answer) == plain(missing)
        if answer.status_code < 300:
            admin = scene.admin
            items = [_items(scene, one.json()["task"], admin) for one in (answer, missing)]
            assert items[0] == items[1]
            assert [item["error"]["code"] for item in items[0]] == ["object_not_found"]


def _items(scene: Scene, task: str, token: str) -> list[dict[str, Any]]:
    """Return a batch's items without what tells one object from another."""
    answer = scene.api.ask("GET", f"/DM/async/status/{task}/items", token=token)
    listed: list[dict[str, Any]] = json.loads(MADE.sub("ID", answer.text))
    return [{**item, "dest": None} for item in listed]


@pytest.mark.attack(cwe=204, title="A file is registered again, or by a second name, to learn whose it is")
def test_register_over_a_foreign_object_does_not_name_it(scene: Scene) -> None:
    name = f"{uuid4().hex}.bin"
    file = scene.api.write(name)
    fields = {"machine": "here", "path": "", "filename": name}
    foreign = scene.api.ask("PUT", "/DM/register", json={**fields, "group": "water"}, token=scene.admin).text
    (file.parent / f"other-{name}").hardlink_to(file)
    token = scene.token(["write:objects!group=fire", "read:objects!group=fire"])
    answers = {
        wanted: scene.api.ask("PUT", "/DM/register", json={**fields, "filename": wanted, "group": "fire"}, token=token)
        for wanted in (name, f"other-{name}")
    }
    assert (answers[name].status_code, answers[name].json()["code"]) == (409, "destination_exists")
    assert all(foreign not in answer.text for answer in answers.values())
    seen = scene.api.ask("PUT", "/DM/register", json={**fields, "group": "fire"}, token=scene.admin)
    assert seen.json()["object"] == foreign
    tree = {"machine": "here", "path": "", "group": "fire"}
    assert foreign not in scene.api.ask("POST", "/DM/register/tree", json=tree, token=token).text
