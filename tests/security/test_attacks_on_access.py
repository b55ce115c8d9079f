"""Attacks by whoever has no token, a wrong one, or one that permits less. Each is refused, and no row and no byte
changes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select

from datamanager.identity.service_token import SECRET_LENGTH, ServiceToken
from models.tables import DataObject, TokenRecord
from tests.support.attacked import THEIRS, Attacked

OTHER_WAYS = [
    "//DM/info",
    "/DM//info",
    "/dm/info",
    "/DM/INFO",
    "/DM/info/",
    "/DM/info;.css",
    "/DM/info%00",
    "/DM/info%3f",
    "/DM/info#x",
    "/%44%4d/info",
    "/DM/%69nfo",
    "/DM/health/live/../../info",
    "/DM/health/live/%2e%2e/%2e%2e/info",
    "/docs/../DM/info",
    "/docs/assets/..%2f..%2fDM/info",
    "/docs/assets/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/pages/..%5c..%5cDM%5cinfo",
    "/problems/../DM/info",
    "http://127.0.0.1/DM/info",
    "/DM/info?path=/docs",
    "*",
]


@pytest.mark.attack(cwe=288, title="Another way of writing an address goes round the check of who asks")
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "get", "TRACE", "PROPFIND"])
def test_no_way_of_writing_an_address_needs_no_token(victim: Attacked, method: str) -> None:
    with victim.untouched():
        for address in OTHER_WAYS:
            head = f"{method} {address} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            answer = victim.send(head.encode())
            status = int(answer.split(b" ", 2)[1])
            assert status in (307, 400, 401, 404, 405), (address, answer)
            assert victim.theirs.encode() not in answer, address
            assert THEIRS not in answer, address
            if status == 307:  # to the address without its slash, which is asked again
                assert b"location: http://localhost/DM/info\r\n" in answer.lower(), answer


SPOOFED: dict[str, dict[str, str]] = {
    "user": {
        "X-Remote-User": "admin",
        "X-Forwarded-User": "admin",
        "Remote-User": "admin",
        "X-Auth-Request-User": "admin",
    },
    "client": {"X-Forwarded-For": "127.0.0.1", "X-Real-IP": "127.0.0.1", "Forwarded": "for=127.0.0.1", "Via": "1.1 dm"},
    "address": {"X-Original-URL": "/DM/health/live", "X-Rewrite-URL": "/docs", "X-Forwarded-Path": "/docs"},
    "certificate": {"X-SSL-Client-Verify": "SUCCESS", "X-SSL-Client-S-DN": "CN=admin", "X-Client-Cert": "admin"},
    "session": {"Cookie": "dm_session=admin; __Host-dm_session=admin; session=admin"},
    "basic": {"Authorization": "Basic " + base64.b64encode(b"admin:admin").decode()},
    "negotiate": {"Authorization": "Negotiate YII="},
}


@pytest.mark.attack(cwe=290, title="Headers say that a proxy, a certificate or a cookie has told who asks")
@pytest.mark.parametrize("case", SPOOFED)
def test_header_makes_nobody_known(victim: Attacked, case: str) -> None:
    with victim.untouched():
        for method, address in (("GET", "/DM/whoami"), ("GET", "/DM/info"), ("DELETE", f"/DM/delete/{victim.theirs}")):
            answer = victim.ask(method, address, token=None, headers=SPOOFED[case])
            assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated"), answer.text


@pytest.mark.attack(cwe=348, title="X-Forwarded-For hides where a request comes from")
def test_trail_has_the_address_of_the_connection(victim: Attacked) -> None:
    spoofed = {"X-Forwarded-For": "203.0.113.7", "Forwarded": "for=203.0.113.7", "X-Forwarded-Proto": "https"}
    with victim.untouched("objects", "files"):
        name = uuid4().hex
        made = victim.ask("POST", "/DM/tokens", json={"name": name}, token=victim.admin, headers=spoofed)
    assert made.status_code == 201, made.text
    assert "Strict-Transport-Security" not in made.headers
    rows = victim.ask("GET", "/DM/trail", token=victim.admin).json()
    assert [row["origin"] for row in rows if row["subject"] == made.json()["id"]] == ["127.0.0.1"]


@pytest.mark.attack(cwe=650, title="A header or a field replaces the method")
def test_method_is_that_of_the_request(victim: Attacked) -> None:
    address = f"/DM/info/{victim.theirs}"
    with victim.untouched():
        for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
            answer = victim.ask("GET", address, token=victim.admin, headers={name: "DELETE"})
            assert answer.json()["id"] == victim.theirs
        deleting = f"/DM/delete/{victim.theirs}"
        for method in ("GET", "POST"):
            answer = victim.ask(method, deleting, data={"_method": "DELETE"}, token=victim.admin)
            assert answer.status_code == 405, answer.text


@pytest.mark.attack(cwe=598, title="A token is in the address, the body or a header of another kind")
def test_token_is_read_in_its_header_only(victim: Attacked, caplog: pytest.LogCaptureFixture) -> None:
    token = victim.admin
    ways: list[dict[str, Any]] = [
        {"params": {"access_token": token}},
        {"params": {"token": token}},
        {"headers": {"X-API-Key": token, "X-Auth-Token": token, "Cookie": f"token={token}; Authorization={token}"}},
        {"headers": {"Authorization": token}},
        {"headers": {"Authorization": f"Token {token}"}},
        {"headers": {"Authorization": "Basic " + base64.b64encode(f"{token}:".encode()).decode()}},
        {"data": {"access_token": token}},
    ]
    with victim.untouched():
        for given in ways:
            answer = victim.ask("GET", "/DM/info", token=None, **given)
            assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated"), given
            assert token not in answer.text
        two = b"GET /DM/info HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n%b\r\n"
        assert b" 401 " in victim.send(two % (b"Authorization: Bearer %b\r\n" % token.encode() * 2))
    assert token not in caplog.text


@pytest.mark.attack(cwe=836, title="What the catalogue keeps of a token is used as the token")
def test_digest_of_a_token_is_no_token(victim: Attacked) -> None:
    token = ServiceToken.parse(victim.admin)
    with victim.api.database.read() as session:
        digest = session.scalars(select(TokenRecord.digest).where(TokenRecord.id == token.identifier)).one()
    assert token.secret not in digest
    made = [ServiceToken(token.identifier, (digest * 2)[at : at + SECRET_LENGTH]).reveal() for at in range(4)]
    with victim.untouched():
        for given in (digest, f"dm_{digest}", token.identifier, f"dm_{token.identifier}", *made):
            assert victim.ask("GET", "/DM/info", token=given).status_code == 401


def scopes_above(victim: Attacked) -> dict[str, dict[str, Any]]:
    """Return what a person who may make tokens for the group fire asks for."""
    return {
        "role": {"roles": ["admin"], "groups": ["fire"]},
        "group": {"roles": ["mover"], "groups": ["fire", "water"]},
        "foreign group": {"roles": ["mover"], "groups": ["water"]},
        "no group": {"scopes": ["read:objects"]},
        "scope": {"scopes": ["delete:objects!group=water"], "groups": ["fire"]},
        "filter that is lost": {"scopes": ["read:objects"], "groups": ["fire"]},
        "other filter": {"scopes": ["read:objects!machine=here"], "groups": ["fire"]},
        "trail": {"scopes": ["admin:trail"], "groups": ["fire"]},
        "written oddly": {"scopes": ["read:objects!group=%77ater"], "groups": ["fire"]},
        "prefix of everything": {"scopes": ["read:objects!prefix=here:/"], "groups": ["fire"]},
    }


@pytest.mark.attack(cwe=269, title="A token is made that permits more than its maker's")
def test_token_does_not_rise_above_its_maker(victim: Attacked) -> None:
    maker = victim.api.tokens.make("mover", groups=["fire"], scopes=["admin:tokens!group=fire"])
    with victim.untouched():
        for case, fields in scopes_above(victim).items():
            answer = victim.ask("POST", "/DM/tokens", json={"name": uuid4().hex, **fields}, token=maker)
            assert answer.status_code in (403, 422), (case, answer.text)
        for address in ("rotate", ""):
            method = "POST" if address else "DELETE"
            path = f"/DM/tokens/{ServiceToken.parse(victim.admin).identifier}/{address}".rstrip("/")
            assert victim.ask(method, path, token=maker).status_code == 404
        for method in ("PUT", "DELETE"):
            assert victim.ask(method, "/DM/withdrawn", json={"person": "x"}, token=maker).status_code == 403
    assert victim.ask("GET", "/DM/whoami", token=victim.admin).status_code == 200


ASSIGNED: dict[str, Any] = {
    "uuid": str(uuid4()),
    "id": str(uuid4()),
    "created_by": "token:admin",
    "acted_as": "root",
    "status": "DELETED",
    "verified": "sha256",
    "checksum": "sha256:" + "0" * 64,
    "place": "../there/x",
    "derived_from": str(uuid4()),
    "grant": {"person": "token:admin", "scopes": ["delete:objects"]},
    "owner": "token:admin",
    "provisional": True,
    "not_kept": ["mode"],
    "bundle": str(uuid4()),
}


@pytest.mark.attack(cwe=915, title="Fields of a row that only the service writes are sent with a request")
def test_fields_of_the_service_are_not_taken(victim: Attacked) -> None:
    name = f"{uuid4().hex}.bin"
    victim.api.write(f"mine/{name}", b"mine")
    given = {"machine": "here", "path": "mine", "filename": name, "group": "fire"}
    made = victim.ask("PUT", "/DM/register", json={**ASSIGNED, **given})
    if made.status_code == 422:
        made = victim.ask("PUT", "/DM/register", json=given)
    with victim.api.database.read() as session:
        row = session.get_one(DataObject, UUID(made.json()["uuid"]))
        kept = (row.created_by, row.acted_as, row.status, row.verified, row.checksum, row.place, row.derived_from)
    person = victim.ask("GET", "/DM/whoami").json()["person"]
    assert str(row.id) not in ASSIGNED.values()
    assert kept == (person, None, "ACTIVE", "size", None, f"mine/{name}", None)


JSON = {"Content-Type": "application/json"}
TWICE: dict[str, Callable[[dict[str, str]], dict[str, Any]]] = {
    "JSON": lambda f: {"data": f'{json.dumps(f)[:-1]}, "group": "water"}}', "headers": JSON},
    "JSON, the other way": lambda f: {
        "data": f'{{"group": "water", {json.dumps(f)[1:]}', "headers": JSON
    },
    "form": lambda f: {"data": [*f.items(), ("group", "water")]},
    "form, the other way": lambda f: {"data": [("group", "water"), *f.items()]},
    "letters": lambda f: {"json": {**f, "Group": "water", "GROUP": "water", "group ": "water"}},
    "bytes": lambda f: {"data": {**f, "group\0": "water", "group[]": "water", "group[0]": "water"}},
    "address": lambda f: {"json": f, "params": {"group": "water"}},
    "type": lambda f: {"data": json.dumps({**f, "group": "water"}), "headers": {"Content-Type": "text/plain"}},
}  # fmt: skip


@pytest.mark.attack(cwe=436, title="A field comes twice, so that the check reads another one than the work")
@pytest.mark.parametrize("case", TWICE)
def test_what_is_checked_is_what_is_done(victim: Attacked, case: str) -> None:
    name = f"{uuid4().hex}.bin"
    victim.api.write(f"mine/{name}", b"mine")
    fields = {"machine": "here", "path": "mine", "filename": name, "group": "fire"}
    answer = victim.ask("PUT", "/DM/register", **TWICE[case](fields))
    assert answer.status_code in (201, 400, 403, 422), answer.text
    listed = victim.ask("GET", "/DM/info?group=water", token=victim.admin).json()
    assert [one["id"] for one in listed] == [victim.theirs]


INJECTED = [
    "' OR '1'='1",
    "' OR 1=1 --",
    "fire' UNION SELECT * FROM objects --",
    "x'; DROP TABLE objects; --",
    '" OR ""="',
    "%",
    "*' ESCAPE '",
    "\\' OR 1=1 --",
    "fire\\",
    "$.group",
    ":person",
    "%(group)s",
]


@pytest.mark.attack(cwe=89, title="Filters, orders, cursors and identifiers carry SQL")
def test_sql_of_a_client_is_a_text(victim: Attacked) -> None:
    names = ("group", "machine", "filename", "path", "status", "originator", "sort", "cursor", "since", "metadata.a")
    with victim.untouched():
        for text in INJECTED:
            for query in [{name: text} for name in names] + [{f"metadata.{text}": "1"}, {text: "1"}]:
                for address in ("/DM/info", "/DM/async/status") if "group" in query else ("/DM/info",):
                    answer = victim.ask("GET", address, params=query)
                    assert answer.status_code in (200, 422), (address, query, answer.text)
                    assert answer.status_code == 422 or answer.json() == [], (address, query)
            for address in ("info", "async/status", "schedules", "retention/runs"):
                answer = victim.ask("GET", f"/DM/{address}/{quote(text, safe='')}", token=victim.admin)
                assert answer.status_code in (404, 405), (address, answer.text)
            wanted = {"person": text, "action": text, "outcome": text}
            for name, value in wanted.items():
                answer = victim.ask("GET", "/DM/trail", params={name: value}, token=victim.admin)
                assert answer.status_code == 422 or answer.json() == [], (name, answer.text)
            odd = victim.ask("PUT", "/DM/register", json={"machine": text, "filename": text, "group": text})
            assert odd.status_code in (403, 422), odd.text


@pytest.mark.attack(cwe=472, title="The cursor of a list is changed, to begin among what is foreign")
def test_cursor_shows_nothing_foreign(victim: Attacked) -> None:
    made = {"machine": "here", "path": "mine", "group": "fire"}
    for _ in range(3):
        name = uuid4().hex
        victim.api.write(f"mine/{name}")
        assert victim.ask("PUT", "/DM/register", json={**made, "filename": name}).status_code == 201
    order, value, last = ["-date_created", "2999-01-01T00:00:00+00:00", victim.theirs]
    lists: list[Any] = [[order, value, last], [order, "0001-01-01T00:00:00+00:00", last], [order, value, last, last]]
    lists += [
        [order, value],
        [order, None, last],
        ["-id", last],
        ["group", "water", last],
        {"sort": order},
        [[order]] * 3,
    ]
    with victim.untouched():
        for parts in lists:
            cursor = base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")
            answer = victim.ask("GET", "/DM/info", params={"cursor": cursor, "limit": 10})
            assert answer.status_code in (200, 422), (parts, answer.text)
            if answer.status_code == 200:
                assert {one["group"] for one in answer.json()} <= {"fire"}, parts
