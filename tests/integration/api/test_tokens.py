"""Service tokens over HTTP: made, listed, rotated, revoked, with last use; and bearer tokens of an issuer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, select, update

from datamanager.client import AccessClient
from datamanager.errors import NotAllowed, NotAuthenticated
from datamanager.identity.service_token import ServiceToken
from models.tables import DataObject, TokenRecord, Transfer
from tests.support import command
from tests.support.live_api import LiveApi
from tests.support.oidc_issuer import AUDIENCE, OidcIssuer
from tests.support.site import eventually


@pytest.fixture
def api(tmp_path: Path, migrated_url: str) -> Iterator[LiveApi]:
    with LiveApi(tmp_path / "site", migrated_url, auth="required") as live:
        yield live


@pytest.fixture
def admin(api: LiveApi) -> Iterator[AccessClient]:
    with AccessClient(api.url, token=api.tokens.make("admin")) as client:
        yield client


def whoami(api: LiveApi, token: str | None) -> Any:
    answer = api.ask("GET", "/DM/whoami", token=token)
    return answer.json() if answer.ok else answer.json()["code"]


def test_whoami_says_who_asks_and_what_they_may(api: LiveApi) -> None:
    token = api.tokens.make("reader", groups=["fire"], scopes=["audits!machine=here"], name="a workflow")
    found = whoami(api, token)
    assert (found["person"], found["groups"], found["means"]) == ("token:a workflow", ["fire"], "token")
    assert (found["roles"], found["credential"]) == (["reader"], token[3:15])
    assert {"audits!machine=here", "read:objects!group"} <= set(found["scopes"])


WRONG: dict[str, Callable[[str], str]] = {
    "one letter too few": lambda token: token[:-1],
    "its checksum is wrong": lambda token: token[:-1] + ("a" if token[-1] != "a" else "b"),
    "no such token": lambda _: ServiceToken.make().reveal(),
    "its secret is another one": lambda token: ServiceToken(token[3:15], "x" * 32).reveal(),
    "no token of ours": lambda _: "e30.e30.e30",
    "nothing": lambda _: "",
    "not ASCII": lambda token: token + "\xfc",
}


@pytest.mark.attack(cwe=287, title="A service token is guessed, cut, or has another secret")
@pytest.mark.parametrize("what", WRONG)
def test_wrong_token_is_refused(api: LiveApi, what: str) -> None:
    given = WRONG[what](api.tokens.make("admin"))
    headers = {"Authorization": f"Bearer {given}".encode("latin-1")}
    answer = api.ask("GET", "/DM/info", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="Data Manager", error="invalid_token"'
    assert not given or given not in answer.text


@pytest.mark.parametrize("value", ["Basic ZG06ZG0=", "Bearer", "dm_x"])
def test_another_kind_of_login_is_told_what_is_wanted(api: LiveApi, value: str) -> None:
    answer = api.ask("GET", "/DM/info", headers={"Authorization": value})
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="Data Manager"'


def test_who_asks_is_said_before_anything_else(api: LiveApi) -> None:
    for method, path, options in (
        ("GET", "/DM/info?colour=red", {}),
        ("PUT", "/DM/register", {"data": b"\xff" * 10}),
        ("GET", "/DM/info/nonsense", {}),
    ):
        assert api.ask(method, path, **options).status_code == 401
    for path in ("/DM/health/live", "/docs", "/openapi.json", "/problems/not_allowed"):
        assert api.ask("GET", path).status_code == 200


@pytest.mark.dialect
def test_token_is_made_listed_rotated_and_revoked(api: LiveApi, admin: AccessClient) -> None:
    made = admin.create_token("forecasts", roles=["mover"], groups=["fire"], expires=timedelta(days=90))
    assert made.token is not None
    assert whoami(api, made.token)["person"] == "token:forecasts"
    (listed,) = [one for one in admin.tokens() if one.id == made.id]
    assert (listed.name, listed.roles, listed.groups, listed.token) == ("forecasts", ["mover"], ["fire"], None)
    assert listed.expires is not None
    assert timedelta(days=89) < listed.expires - datetime.now(UTC) <= timedelta(days=90)
    new = admin.rotate_token(made.id, "2h")
    assert new.token is not None
    assert [whoami(api, token)["person"] for token in (made.token, new.token)] == ["token:forecasts"] * 2
    with api.database.write() as session:  # two hours later
        past = datetime.now(UTC) - timedelta(seconds=1)
        session.execute(update(TokenRecord).where(TokenRecord.id == made.id).values(overlap_until=past))
    assert whoami(api, made.token) == "not_authenticated"
    admin.revoke_token(new.id)
    admin.revoke_token(new.id)
    assert whoami(api, new.token) == "not_authenticated"
    states = {one.id: one.revoked is not None for one in admin.tokens()}
    assert states[new.id]


@pytest.mark.attack(cwe=613, title="A revoked token is used with another process of the service")
def test_revoked_token_is_refused_at_once_by_another_process(api: LiveApi, tmp_path: Path) -> None:
    token = api.tokens.make("admin")
    url = str(api.database.engine.url)
    with LiveApi(tmp_path / "second", url, auth="required", secrets_key=api.settings.secrets_key_file) as second:
        assert whoami(second, token) == whoami(api, token)
        with AccessClient(api.url, token=token) as client:
            client.revoke_token(token[3:15])
        assert [whoami(one, token) for one in (second, api)] == ["not_authenticated"] * 2


def test_token_can_have_only_what_its_maker_has(api: LiveApi, admin: AccessClient) -> None:
    few = admin.create_token("few", scopes=["admin:tokens!group=fire", "read:objects!group=fire", "list:objects"])
    with AccessClient(api.url, token=few.token) as client:
        assert client.create_token("own", groups=["fire"], scopes=["read:objects!group"]).token
        refused: list[dict[str, Any]] = [
            {"groups": ["water"]},
            {"groups": []},
            {"groups": ["fire"], "roles": ["mover"]},
            {"groups": ["fire"], "scopes": ["read:objects"]},
            {"groups": ["fire", "water"], "scopes": ["read:objects!group"]},
            {"groups": ["fire"], "scopes": ["write:objects!group=fire"]},
        ]
        for wanted in refused:
            with pytest.raises(NotAllowed):
                client.create_token("more", **wanted)
        assert [one.name for one in client.tokens()] == ["own"]


def test_last_use_is_noted_at_most_once_a_minute(api: LiveApi) -> None:
    token = api.tokens.make("reader", groups=["fire"])
    changes: list[str] = []

    @event.listens_for(api.database.engine, "before_cursor_execute")
    def note(_: Any, __: Any, statement: str, *rest: Any) -> None:
        if "UPDATE service_tokens" in statement:
            changes.append(statement)

    def used() -> datetime | None:
        with api.database.read() as session:
            return session.scalars(select(TokenRecord.last_used).where(TokenRecord.id == token[3:15])).one()

    whoami(api, token)
    first = eventually(used, "the use is noted")
    for _ in range(20):
        whoami(api, token)
    assert used() == first
    assert len(changes) == 1


@pytest.mark.attack(cwe=639, title="An idempotency key of somebody else's gets their answer")
def test_keys_of_idempotency_are_each_persons_own(api: LiveApi) -> None:
    api.write("a.bin")
    fields = {"machine": "here", "path": "", "filename": "a.bin", "group": "fire"}
    people = [api.tokens.make("mover", groups=["fire"]) for _ in range(2)]
    answers = [
        api.ask("PUT", "/DM/register", data=fields, headers={"Idempotency-Key": "mine"}, token=token)
        for token in (people[0], people[0], people[1])
    ]
    assert [one.status_code for one in answers] == [201, 201, 409]
    assert answers[0].text == answers[1].text


def test_rows_name_who_made_them(api: LiveApi) -> None:
    token = api.tokens.make("mover", groups=["fire"], name="maker")
    api.write("a.bin")
    fields = {"machine": "here", "path": "", "filename": "a.bin", "group": "fire"}
    made = api.ask("PUT", "/DM/register", data=fields, token=token).text
    api.ask("POST", f"/DM/async/copy/{made}", data={"machine": "there", "dest": "a.bin"}, token=token)
    api.write("tree/b.bin")
    api.ask("POST", "/DM/register/tree", json={"machine": "here", "path": "tree", "group": "fire"}, token=token)
    with api.database.read() as session:
        assert set(session.scalars(select(DataObject.created_by))) == {"token:maker"}
        (transfer,) = session.scalars(select(Transfer))
    assert transfer.created_by == "token:maker"
    assert transfer.grant is not None
    assert (transfer.grant["credential"], transfer.grant["groups"]) == (token[3:15], ["fire"])


def test_without_authentication_everybody_may_do_everything(tmp_path: Path, migrated_url: str) -> None:
    with LiveApi(tmp_path / "site", migrated_url) as api:
        assert whoami(api, None)["person"] == "local"
        made = api.register("a.bin", group="fire")
        api.ask("POST", f"/DM/async/copy/{made}", data={"machine": "there", "dest": "a.bin"})
        with api.database.read() as session:
            assert set(session.scalars(select(DataObject.created_by))) == {None}
            assert set(session.scalars(select(Transfer.grant))) == {None}


def test_bearer_token_of_the_issuer_is_accepted(tmp_path: Path, migrated_url: str) -> None:
    rules = '[[person]]\nsource = "{email}"\nmatch = "(.*)@example\\\\.org"\noutput = "{0}"\n'
    rules += '[[groups]]\nsource = "{groups}"\nmatch = "(.*)"\noutput = "{0}"\n'
    rules += '[[roles]]\nsource = "{dm}"\nmatch = "(.*)"\noutput = "{0}"\n'
    file = tmp_path / "identity.toml"
    file.write_text(rules)
    with OidcIssuer() as issuer:
        issuer.clock.now = time.time()
        settings: dict[str, Any] = {
            "auth": "required",
            "oidc_issuer": issuer.url,
            "oidc_audience": AUDIENCE,
            "identity": file,
        }
        with LiveApi(tmp_path / "site", migrated_url, **settings) as api:
            claims: dict[str, Any] = {"email": "jo@example.org", "groups": ["fire"], "dm": ["mover"]}
            found = whoami(api, issuer.token(**claims))
            assert (found["person"], found["groups"], found["means"]) == ("jo", ["fire"], "oidc")
            with AccessClient(api.url, token=api.tokens.make("admin")) as admin:
                admin.withdraw_person("jo")
                admin.withdraw_person("jo")
                assert (whoami(api, issuer.token(**claims)), admin.withdrawn()) == ("not_allowed", ["jo"])
                admin.readmit_person("jo")
                assert (whoami(api, issuer.token(**claims))["person"], admin.withdrawn()) == ("jo", [])
            assert whoami(api, issuer.token(**claims, aud="other")) == "not_authenticated"
            assert whoami(api, issuer.token(**{**claims, "email": "jo@elsewhere.example"})) == "not_allowed"


def test_dm_token_and_whoami(api: LiveApi) -> None:
    file = api.settings.token_file
    file.parent.mkdir(exist_ok=True)
    file.write_text(api.tokens.make("admin", name="first"))
    assert command.dm(api, "whoami").stdout.startswith("token:first (token ")
    made = command.dm(api, "token", "create", "--name", "x", "--role", "mover", "--group", "fire", "--expires", "P90D")
    assert made.returncode == 0, made.stderr
    token = made.stdout.strip()
    assert whoami(api, token)["groups"] == ["fire"]
    assert token not in made.stderr
    listed = command.dm(api, "token", "list").stdout
    assert token[3:15] in listed
    assert token not in listed
    rotated = command.dm(api, "token", "rotate", token[3:15]).stdout.strip()
    assert command.dm(api, "token", "revoke", rotated[3:15]).returncode == 0
    assert whoami(api, rotated) == "not_authenticated"
    for role, named in (("movr", "mover"), ("mover", "groups")):  # a typing error; !group of a token without groups
        refused = command.dm(api, "token", "create", "--name", "y", "--role", role)
        assert refused.returncode == 2
        assert named in refused.stderr


def test_client_is_refused_without_a_token(api: LiveApi) -> None:
    with AccessClient(api.url) as client, pytest.raises(NotAuthenticated):
        client.whoami()


def test_answers_with_tokens_are_not_kept(api: LiveApi, admin: AccessClient) -> None:
    made = admin.create_token("forecasts", roles=["reader"], groups=["fire"])
    new = admin.rotate_token(made.id)
    text = b"".join(file.read_bytes() for file in Path(api.database.engine.url.database or "").parent.glob("*.db*"))
    for token in (made.token, new.token):
        assert token is not None
        assert token.encode() not in text
        assert token[15:47].encode() not in text  # its secret
    assert made.id.encode() in text
