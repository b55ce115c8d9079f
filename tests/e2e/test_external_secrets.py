"""Secrets of requests and stored credentials: they reach the source, and nobody else. What the service leaves anywhere
is searched for them: its databases, logs, messages and answers, and Prefect's.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from uuid import uuid4

import pytest
import requests
from cryptography.fernet import Fernet

from datamanager.client import AccessClient, Client
from datamanager.errors import DataManagerError
from datamanager.identity.service_token import ServiceToken
from datamanager.settings import TOKEN_FILE
from tests.e2e.conftest import FULL
from tests.support.amqp import client, listener, put
from tests.support.oidc_login import SECRET, LoginIssuer
from tests.support.prefect import PrefectApi, PrefectServer
from tests.support.searching import (
    ProcessWatch,
    files_below,
    messages_of,
    places_of,
    postgresql_rows,
    told_by_prefect,
)
from tests.support.site import Site
from tests.support.web import OddServer, redirect, status

pytestmark = pytest.mark.dialect  # each database is searched
EAR = "secrets-heard"
SHORTEST = 16
"""Characters of a token, or of a part of one, that can't be anything else."""
BODY = b"the weather of tomorrow"


@dataclass
class Planted:
    """Secrets that were given to the service, and all that it answered."""

    secrets: list[str] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    """Those of the service and the issuer that were sent, others that they refused, and all of which sessions consist.
    """

    def new(self) -> str:
        """Make a secret that is nowhere yet."""
        self.secrets.append(f"5ecret-{uuid4().hex}")
        return self.secrets[-1]


@pytest.fixture(scope="module")
def watch(site: Site) -> Iterator[ProcessWatch]:
    """Looks at the service's processes while the tests of this module run."""
    with ProcessWatch(site.service) as watching:
        yield watching


@pytest.fixture(scope="module")
def planted(site: Site, watch: ProcessWatch) -> Planted:
    """What the site's stored credentials hold, and what the tests add. From here on all events are kept."""
    env = site.service.env
    stored = [json.loads(env["DM_CREDENTIAL_SITE"])["password"], json.loads(env["DM_CREDENTIAL_ELSE_WHERE"])["token"]]
    if amqp := env.get("DM_AMQP_URL"):
        asyncio.run(_listen(amqp))
    return Planted([*stored, env["DM_CREDENTIAL_BROKEN"]])


async def _listen(url: str) -> None:
    async with client(url) as channel:
        await listener(channel, EAR)


def fetch(site: Site, planted: Planted, url: str, **fields: Any) -> requests.Response:
    """Ask for a download and wait for it; what is answered is kept."""
    headers = {"Accept": "application/json", **fields.pop("headers", {})}
    endpoint = fields.pop("endpoint", "getexternal")
    body = {"machine": "cirrus", "path": "secrets", "filename": f"{uuid4().hex}.bin", "url": url, **fields}
    answer = site.ask("PUT", endpoint, json=body, headers=headers)
    planted.answers.append(f"{answer.text}{answer.headers}")
    return answer


def last_headers(server: OddServer, path: str) -> dict[str, str]:
    """Return the headers that came with the last request for a path."""
    return next(headers for asked, headers in reversed(server.requests) if asked == path)


def asked_for(server: OddServer, path: str) -> int:
    """Return how often a path was asked for."""
    return sum(asked == path for asked, _ in server.requests)


def basic(username: str, password: str) -> str:
    """Return what a login by name and password looks like."""
    return "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()


def inline(planted: Planted) -> dict[str, Any]:
    """Return options with a secret in each place."""
    return {
        "username": "bob",
        "password": planted.new(),
        "headers": {"X-Api-Key": planted.new()},
        "query": {"signature": planted.new()},
    }


# --- the secrets of a request ----------------------------------------------------------------------------------------


def test_the_source_gets_the_secrets(site: Site, planted: Planted, slow_server: OddServer) -> None:
    path = f"/in/{uuid4().hex}"
    options = inline(planted)
    answer = fetch(site, planted, f"{slow_server.on(path, status(200, BODY))}?token={planted.new()}", options=options)
    assert answer.status_code == 201, answer.text
    sent = last_headers(slow_server, path)
    assert sent["Authorization"] == basic("bob", options["password"])
    assert sent["X-Api-Key"] == options["headers"]["X-Api-Key"]
    info = site.info(answer.json()["uuid"])
    planted.answers.append(json.dumps(info))
    assert info["originator"] == f"{slow_server.url}{path}?…"
    assert site.read("cirrus", f"secrets/{info['filename']}") == BODY


@pytest.mark.attack(cwe=209, title="A source repeats a secret in its errors")
@pytest.mark.parametrize("how", ["forbidden", "refused redirect", "broken"])
def test_failures_tell_nothing(site: Site, planted: Planted, slow_server: OddServer, how: str) -> None:
    path, options = f"/out/{uuid4().hex}", inline(planted)
    secret = options["password"]
    steps = {
        "forbidden": status(403, f"no, {secret} is wrong".encode()),
        "refused redirect": redirect(f"http://10.0.0.1/?again={quote(secret)}"),
        "broken": status(200, BODY, Content_Encoding="br", X_Echo=secret),
    }
    url = f"{slow_server.on(path, steps[how])}?token={planted.new()}"
    answer = fetch(site, planted, url, options=options)
    assert answer.status_code in (422, 502), answer.text
    assert asked_for(slow_server, path) >= 1
    task = fetch(site, planted, url, options=options, endpoint="async/getexternal").json()["task"]
    ended = site.wait(task)
    planted.answers.append(json.dumps(ended))
    assert ended["status"] == "ERROR"


def test_a_wrong_option_does_not_quote_the_others(site: Site, planted: Planted, slow_server: OddServer) -> None:
    for options in (
        inline(planted) | {"pasword": planted.new()},
        {"password": [planted.new()]},
        {"headers": {"Host": planted.new()}},
        {"headers": planted.new()},
        planted.new(),
    ):
        answer = fetch(site, planted, f"{slow_server.url}/x", options=options)
        assert answer.json()["code"] in ("invalid_request", "not_supported"), answer.text


def test_the_same_key_with_another_secret_is_another_request(
    site: Site, planted: Planted, slow_server: OddServer
) -> None:
    path = f"/key/{uuid4().hex}"
    url, name = slow_server.on(path, status(200, BODY)), f"{uuid4().hex}.bin"
    headers, first = {"Idempotency-Key": uuid4().hex}, {"token": planted.new()}
    answers = [
        fetch(site, planted, url, filename=name, options=options, headers=headers)
        for options in (first, first, {"token": planted.new()})
    ]
    assert [answer.status_code for answer in answers] == [201, 201, 422]
    assert answers[0].text == answers[1].text
    assert answers[2].json()["code"] == "idempotency_mismatch"
    assert asked_for(slow_server, path) == 1


def test_a_lost_key_is_a_clear_end(site: Site, planted: Planted, slow_server: OddServer) -> None:
    path, key = f"/lost/{uuid4().hex}", site.service.home / "secrets.key"
    url = slow_server.on(path, status(200, BODY))
    fields = {"options": inline(planted), "not_before": "PT3S", "endpoint": "async/getexternal"}
    task = fetch(site, planted, url, **fields).json()["task"]
    right = key.read_bytes()
    try:
        key.write_bytes(Fernet.generate_key())
        ended = site.wait(task)
    finally:
        key.write_bytes(right)
    planted.answers.append(json.dumps(ended))
    assert (ended["status"], ended["error"]["code"]) == ("ERROR", "secrets_unreadable")
    assert not ended["error"]["retryable"]
    assert "not the one that encrypted the secrets" in ended["error"]["detail"]
    assert asked_for(slow_server, path) == 0


# --- stored credentials ----------------------------------------------------------------------------------------------


def secret_block(prefect: PrefectApi, name: str, value: dict[str, Any]) -> None:
    """Store a Secret block, as a person does in Prefect's UI."""
    kind = prefect.get("block_types/slug/secret")["id"]
    (schema, *_) = prefect.post("block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind]}}})
    prefect.post(
        "block_documents/",
        {"name": name, "data": {"value": json.dumps(value)}, "block_schema_id": schema["id"], "block_type_id": kind},
    )


@pytest.mark.parametrize("where", ["environment", "block"])
def test_a_stored_credential_is_used(
    site: Site, planted: Planted, slow_server: OddServer, prefect: PrefectApi, where: str
) -> None:
    name, path = "site", f"/stored/{uuid4().hex}"
    value: dict[str, Any]
    if where == "block":
        name, here = f"block-{uuid4().hex[:8]}", urlsplit(slow_server.url).netloc
        value = {"hosts": [here], "username": "bob", "password": planted.new()}
        secret_block(prefect, name, value)
    else:
        value = json.loads(site.service.env["DM_CREDENTIAL_SITE"])
    answer = fetch(site, planted, slow_server.on(path, status(200, BODY)), options={"credential": name})
    assert answer.status_code == 201, answer.text
    assert last_headers(slow_server, path)["Authorization"] == basic("bob", value["password"])


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("else-where", "credential_not_allowed"),
        ("never-heard-of", "credential_unknown"),
        ("broken", "credential_unusable"),
        ("No Name", "invalid_request"),
    ],
)
def test_nothing_is_sent_with_a_credential_that_is_not_for_this_host(
    site: Site, planted: Planted, slow_server: OddServer, name: str, code: str
) -> None:
    path = f"/not/{uuid4().hex}"
    answer = fetch(site, planted, slow_server.on(path, status(200, BODY)), options={"credential": name})
    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (422, code, False), answer.text
    if code == "credential_unknown":
        assert "credential never-heard-of is defined neither" in answer.json()["detail"]
    assert asked_for(slow_server, path) == 0


def test_a_redirect_to_another_host_gets_no_credential(
    site: Site, planted: Planted, slow_server: OddServer, other_server: OddServer
) -> None:
    path = f"/away/{uuid4().hex}"
    url = slow_server.on(path, redirect(other_server.on(path, status(200, BODY))))
    answer = fetch(site, planted, url, options={"credential": "site", "headers": {"X-Api-Key": planted.new()}})
    assert answer.status_code == 201, answer.text
    assert last_headers(slow_server, path)["Authorization"]
    assert not {"authorization", "x-api-key"} & {name.lower() for name in last_headers(other_server, path)}


def test_prefects_form_has_room_for_a_credential_only(
    site: Site, planted: Planted, slow_server: OddServer, prefect: PrefectApi
) -> None:
    path = f"/form/{uuid4().hex}"
    deployment = prefect.get("deployments/name/getexternal/data-manager")
    form = deployment["parameter_openapi_schema"]["properties"]
    assert "credential" in form
    assert not {"options", "password", "token", "headers", "query"} & form.keys()
    url = slow_server.on(path, status(200, BODY))
    fields = {"url": url, "machine": "cirrus", "path": "secrets", "filename": "form.bin", "credential": "site"}
    fields["filename"] = f"{uuid4().hex}.bin"
    run = prefect.post(f"deployments/{deployment['id']}/create_flow_run", {"parameters": fields})
    assert prefect.wait(run["id"])["state_type"] == "COMPLETED"
    assert last_headers(slow_server, path)["Authorization"]


# --- last: the search ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [FULL], indirect=True)  # the one with a broker
def test_secrets_are_refused_over_amqp(site: Site, planted: Planted, slow_server: OddServer) -> None:
    amqp = site.service.env["DM_AMQP_URL"]

    async def ask(options: dict[str, Any], query: str = "") -> dict[str, Any]:
        data = {"machine": "cirrus", "path": "secrets", "filename": f"{uuid4().hex}.bin", "options": options}
        event: dict[str, Any] = {
            "specversion": "1.0",
            "id": uuid4().hex,
            "source": "/tests",
            "type": "dm.request.getexternal",
        }
        event["data"] = data | {"url": f"{slow_server.url}/x{query}"}
        async with client(amqp) as channel:
            answers = await channel.declare_queue("dm-reply.secrets", exclusive=True)
            body, token = json.dumps(event).encode(), site.service.token
            await put(channel, "dm.requests", body, token=token, reply_to=answers.name)
            async with asyncio.timeout(60), answers.iterator() as messages:
                async for message in messages:
                    await message.ack()
                    return dict(json.loads(message.body)["data"])
        raise AssertionError("no answer")

    refused = asyncio.run(ask(inline(planted)))
    assert refused["code"] == "not_supported"
    assert all(f"options.{name}" in refused["detail"] for name in ("password", "headers", "query"))
    assert "parameter token of url" in asyncio.run(ask({}, f"?token={planted.new()}"))["detail"]
    assert "task" in asyncio.run(ask({"credential": "site"}))


def test_tokens_of_each_kind_are_sent(site: Site, planted: Planted) -> None:
    service = site.service
    with service.client_of(AccessClient) as admin:
        made = admin.create_token(f"secrets {uuid4()}", roles=["mover"], groups=["fire"], expires=timedelta(days=1))
        new = admin.rotate_token(made.id)
    issuers = ".".join(base64.urlsafe_b64encode(uuid4().bytes * 4).decode().rstrip("=") for _ in range(3))
    given = [made.token or "", new.token or "", issuers, ServiceToken.make().reveal()]
    planted.tokens += given
    data = site.write("archer2", f"secrets/{uuid4().hex}.bin", BODY)
    for token in given:
        with Client(service.url, token=token) as dm:
            try:
                planted.answers.append(repr(dm.register("archer2", data.name, "secrets", group="fire")))
            except DataManagerError as refused:
                planted.answers.append(f"{refused.code} {refused.detail}")
    assert sum("not_authenticated" in answer for answer in planted.answers) == 2
    if (amqp := service.env.get("DM_AMQP_URL")) is not None:
        for token in given:
            asyncio.run(_put(amqp, b"no JSON of secrets", token))  # becomes a dead letter
            event = {"specversion": "1.0", "id": uuid4().hex, "source": "/tests", "type": "dm.request.delete"}
            asyncio.run(_send(amqp, json.dumps({**event, "data": {"uuid": str(uuid4())}}).encode(), token))


async def _put(url: str, body: bytes, token: str) -> None:
    async with client(url) as channel:
        await put(channel, "dm.requests", body, token=token)


async def _send(url: str, body: bytes, token: str) -> None:
    async with client(url) as channel:
        answers = await channel.declare_queue("dm-reply.tokens", exclusive=True)
        await put(channel, "dm.requests", body, token=token, reply_to=answers.name)
        async with asyncio.timeout(60), answers.iterator() as messages:
            async for message in messages:
                await message.ack()
                return


def test_people_log_in(site: Site, planted: Planted, issuer: LoginIssuer) -> None:
    """With a bearer token of the issuer, in a browser at the issuer, and in a browser with a service token."""
    issuer.clock.now = time.time()
    bearer, base = issuer.token(), site.service.url
    with Client(base, token=bearer) as dm:
        name = site.write("archer2", f"secrets/{uuid4().hex}.bin", BODY).name
        dm.register("archer2", name, "secrets", group="fire")
    planted.tokens.append(bearer)
    for form in (None, {"token": site.service.token, "next": "/docs"}):
        browser = requests.Session()
        browser.trust_env = False
        if form is None:
            begun = browser.get(f"{base}/login/start?next=/docs", allow_redirects=False, timeout=60)
            planted.tokens += [
                str(browser.cookies["dm_login"]),
                *parse_qs(urlsplit(begun.headers["Location"]).query)["state"],
            ]
            back = requests.get(begun.headers["Location"], allow_redirects=False, timeout=60).headers["Location"]
            planted.tokens += parse_qs(urlsplit(back).query)["code"]
            entered = browser.get(back, timeout=60)
        else:
            entered = browser.post(f"{base}/login", data=form, allow_redirects=False, timeout=60)
        assert entered.status_code in (200, 303), entered.text
        csrf = browser.get(f"{base}/login/session", timeout=60).json()["csrf_token"]
        planted.tokens += [csrf, str(browser.cookies["dm_session"])]
        name = site.write("archer2", f"secrets/{uuid4().hex}.bin", BODY).name
        fields = {"machine": "archer2", "path": "secrets", "filename": name, "group": "fire"}
        for header in ({}, {"X-CSRF-Token": csrf}):
            answer = browser.put(f"{base}/DM/register", json=fields, headers=header, timeout=60)
            planted.answers.append(f"{answer.text}{answer.headers}")
        assert answer.status_code == 201, answer.text
        planted.answers.append(browser.get(f"{base}/login/nonsense?code={csrf}", timeout=60).text)
        planted.answers.append(browser.post(f"{base}/logout", headers={"X-CSRF-Token": csrf}, timeout=60).text)
    planted.tokens += [*issuer.issued, issuer.redeemed[-1]["code_verifier"], SECRET]


@pytest.mark.attack(cwe=532, title="Secrets are looked for in all that the service leaves")
def test_no_secret_is_anywhere(site: Site, planted: Planted, watch: ProcessWatch, site_prefect: PrefectServer) -> None:
    """Runs last. What was sent is searched for in all that the service, its databases and Prefect have."""
    needles = [secret.encode() for secret in planted.secrets]
    needles += [base64.b64encode(f"bob:{secret}".encode()).rstrip(b"=") for secret in planted.secrets]
    assert len(planted.secrets) > 30
    tokens = [*planted.tokens, site.service.token or ""]
    assert len(tokens) > 15
    # whole, the secret of a service token alone, and the signature of one of the issuer
    wholes_and_parts = {part for token in tokens for part in (token, token[15:47], token.rpartition(".")[2])}
    parts = {part.encode() for part in wholes_and_parts if len(part) >= SHORTEST}
    seen = {
        "answers": "\n".join(planted.answers).encode(),
        **files_below(site.service.home),
        **told_by_prefect(site_prefect.api_url),
        **files_below(site_prefect.directory),
    }
    if (database := site.service.env.get("DM_DATABASE_URL")) is not None:
        seen["postgresql"] = postgresql_rows(database)
    if (amqp := site.service.env.get("DM_AMQP_URL")) is not None:
        seen |= asyncio.run(messages_of(amqp, EAR))
        assert b"dm.transfer.error" in seen["events"]
        assert b"no JSON of secrets" in seen["dm.dead-letters"]
    # the search can find something: what is public is there
    assert any(b"credential_not_allowed" in content for content in seen.values())
    assert places_of([*needles, *parts], seen, lambda name: name.endswith(TOKEN_FILE)) == set()
    key = (site.service.home / "secrets.key").read_bytes().strip()
    assert places_of([key, base64.urlsafe_b64decode(key)], seen, lambda name: name.endswith("secrets.key")) == set()
    watch.look()
    assert any(b"DM_HOME" in content for content in watch.seen)
    env = site.service.env  # where the operator's own are to be
    own = "\n".join([SECRET, *(value for name, value in env.items() if name.startswith("DM_CREDENTIAL_"))])
    given = [one.encode() for one in [*planted.secrets, *map(bytes.decode, parts)] if one not in own]
    assert [needle for needle in given for one in watch.seen if needle in one] == []
