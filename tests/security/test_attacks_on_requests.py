"""Attacks by how a request is written: its bytes, its headers, its size and its numbers. Each is refused, and no row
and no byte changes.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest
import structlog

from tests.support.attacked import Attacked
from tests.support.site import eventually

FORM = {"machine": "here", "path": "mine", "filename": "smuggled", "group": "fire"}


def smuggled(victim: Attacked, **fields: str) -> bytes:
    """Return a request that registers a file, to be hidden behind another one."""
    body = json.dumps({**FORM, **fields})
    return (
        f"PUT /DM/register HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {victim.attacker}\r\nConnection: close"
        f"\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


def test_request_behind_another_one_is_served_where_lengths_are_right(victim: Attacked) -> None:
    head = b"POST /DM/retention/run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    answer = victim.send(head + smuggled(victim, filename="not there"))
    assert re.findall(rb"HTTP/1.1 (\d+) ", answer) == [b"401", b"409"]


FRAMED: dict[str, list[str]] = {
    "length and chunks": ["Content-Length: {length}", "Transfer-Encoding: chunked"],
    "chunks and length": ["Transfer-Encoding: chunked", "Content-Length: {length}"],
    "length of nothing and chunks": ["Content-Length: 0", "Transfer-Encoding: chunked"],
    "two lengths": ["Content-Length: 5", "Content-Length: {length}"],
    "list of lengths": ["Content-Length: 5, {length}"],
    "negative length": ["Content-Length: -5"],
    "length with a sign": ["Content-Length: +5"],
    "hexadecimal length": ["Content-Length: 0x5"],
    "length beyond 64 bits": ["Content-Length: 18446744073709551621"],
    "chunked twice": ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    "chunked and something": ["Transfer-Encoding: chunked, identity"],
    "xchunked": ["Transfer-Encoding: xchunked"],
    "chunked with a tab": ["Transfer-Encoding:\x0bchunked"],
    "blank before the colon": ["Transfer-Encoding : chunked"],
    "folded": ["Transfer-Encoding:", " chunked"],
    "no name": [": chunked"],
    "blank in front": [" Transfer-Encoding: chunked"],
    "NUL in a header": ["X: a\0b"],
    "return alone": ["X: a\rTransfer-Encoding: chunked"],
}


@pytest.mark.attack(cwe=444, title="A second request is hidden in the body of a first one, by lengths that contradict")
@pytest.mark.parametrize("case", FRAMED)
def test_hidden_request_is_not_served(victim: Attacked, case: str) -> None:
    victim.api.write("mine/smuggled")
    hidden = b"0\r\n\r\n" + smuggled(victim)
    lines = "\r\n".join(FRAMED[case]).format(length=len(hidden))
    head = f"POST /DM/retention/run HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{lines}\r\n\r\n"
    with victim.untouched():
        answer = victim.send(head.encode() + hidden)
        assert answer.count(b"HTTP/1.1 ") == 1, answer
        assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 401 ")), answer


@pytest.mark.attack(cwe=113, title="Line breaks in names and identifiers add headers to the answer")
def test_answer_has_no_header_of_a_client(victim: Attacked) -> None:
    split = "x\r\nSet-Cookie: dm_session=evil\r\nX-Evil: 1\r\n\r\n<script>"
    encoded = quote(split)
    requests = [
        ("GET", f"/DM/info/{encoded}", ""),
        ("GET", f"/problems/{encoded}", ""),
        ("GET", f"/login?next=/{encoded}", ""),
        ("GET", f"/login/start?next=/{encoded}", ""),
        ("GET", f"/DM/info?limit=1&group={encoded}", ""),
        ("GET", f"/DM/info?limit=1&{encoded}=1", ""),
        ("GET", f"/{encoded}", ""),
        ("GET", f"/pages/{encoded}", ""),
        ("GET", "/DM/info", f"X-Request-ID: {encoded}\r\n"),
        ("POST", f"/DM/machines/{encoded}/drain", ""),
    ]
    with victim.untouched():
        for method, address, header in requests:
            who = f"Authorization: Bearer {victim.attacker}\r\nConnection: close\r\n"
            answer = victim.send(f"{method} {address} HTTP/1.1\r\nHost: localhost\r\n{who}{header}\r\n".encode())
            head = answer.partition(b"\r\n\r\n")[0].lower()
            assert b"\nx-evil" not in head, (address, head)
            assert b"\nset-cookie" not in head, (address, head)
            assert answer.count(b"HTTP/1.1 ") == 1, answer


@pytest.mark.attack(cwe=117, title="Line breaks and JSON in an address, a name or an identifier forge lines of the log")
def test_line_of_the_log_is_not_forged(victim: Attacked) -> None:
    forged = '"}\n{"event": "request", "path": "/DM/forged", "status": 200, "level": "info"}\r\n\x1b[2K\u2028\x85'
    with structlog.testing.capture_logs() as lines, victim.untouched():
        victim.ask("GET", f"/DM/info/{quote(forged)}")
        victim.ask("GET", f"/{quote(forged)}", headers={"X-Request-ID": '"}{"event": "forged"'})
        victim.ask("GET", "/DM/info", params={"group": forged})
        victim.ask("PUT", "/DM/register", json={"machine": forged, "filename": forged, "path": forged})
        victim.ask("PUT", "/DM/register", json={"machine": "here", "filename": forged, "path": "", "group": "fire"})
        eventually(lambda: sum(line["event"] == "request" for line in lines) >= 5, "five lines")
    assert len([line for line in lines if line["event"] == "request"]) == 5
    render = structlog.processors.JSONRenderer(default=str)
    for line in lines:
        assert line.get("path") != "/DM/forged"
        text = render(None, "info", dict(line))
        assert len(str(text).splitlines()) == 1, text
        assert re.fullmatch(r"[\x20-\x7e]*", str(text)), text


@pytest.mark.attack(cwe=409, title="A compressed body becomes many times as large")
@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip", "identity, gzip"])
def test_compressed_body_is_not_unpacked(victim: Attacked, coding: str) -> None:
    plain = json.dumps({**FORM, "description": "x" * 50_000}).encode()
    packed = zlib.compress(plain) if coding == "deflate" else gzip.compress(gzip.compress(plain))
    headers = {"Content-Encoding": coding, "Content-Type": "application/json"}
    with victim.untouched():
        answer = victim.ask("PUT", "/DM/register", data=packed, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_body"), answer.text


NUMBERS = [
    "1e400",
    "-1e400",
    "9" * 5000,
    "-1",
    "1.5",
    "NaN",
    "Infinity",
    '"0x10"',
    '"１２"',
    '"1_000"',
    "true",
    "[]",
    "{}",
]
EXTREMES = {
    "size": "PUT /DM/register",
    "max_files": "POST /DM/register/tree",
    "bandwidth": "PUT /DM/async/getexternal",
    "not_before": "PUT /DM/async/getexternal",
    "deadline": "PUT /DM/async/getexternal",
    "keep": "POST /DM/schedules",
}


@pytest.mark.attack(cwe=1284, title="Sizes, rates, counts and times are negative, not finite, or beyond every bound")
@pytest.mark.parametrize("field", EXTREMES)
def test_number_beyond_its_bounds_is_refused(victim: Attacked, field: str) -> None:
    method, _, address = EXTREMES[field].partition(" ")
    fields: dict[str, Any] = {"machine": "here", "path": "mine", "group": "fire"}
    if "tree" not in address:
        fields |= {"filename": "{date:%Y%m%d%H}" if "schedules" in address else uuid4().hex}
    if address != "/DM/register":
        fields |= {} if "tree" in address else {"url": "http://127.0.0.1:9/x"}
    if "schedules" in address:
        fields |= {"interval": "6h"}
    headers = {"Content-Type": "application/json"}
    with victim.untouched():
        for value in NUMBERS:
            body = f'{json.dumps(fields)[:-1]}, "{field}": {value}}}'
            answer = victim.ask(method, address, data=body.encode(), headers=headers)
            assert answer.status_code in (400, 422), (field, value, answer.text)
            assert field in answer.text or "JSON" in answer.json()["detail"], answer.text
            assert len(answer.content) < 2000, field


@pytest.mark.attack(cwe=1284, title="Parameters of lists and waits are beyond every bound")
def test_parameter_beyond_its_bounds_is_refused(victim: Attacked) -> None:
    with victim.untouched():
        for value in ("-1", "0", "1e9", "9" * 400, "NaN", "١٠", "", " 1", "0x10", "1&limit=2"):
            for address in ("/DM/info", "/DM/async/status", "/DM/schedules", "/DM/trail"):
                token = victim.admin if "trail" in address else victim.attacker
                asked = f"{address}?limit={value if '&' in value else quote(value)}"
                assert victim.ask("GET", asked, token=token).status_code == 422, (address, value)


SHOUTED = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


@pytest.mark.attack(cwe=79, title="Names, addresses and parameters are shown as HTML")
def test_no_text_of_a_client_is_html(victim: Attacked) -> None:
    victim.api.write(f"mine/{SHOUTED.replace('/', '')}")
    fields = {"machine": "here", "path": "mine", "filename": SHOUTED.replace("/", ""), "group": "fire"}
    made = victim.ask("PUT", "/DM/register", json={**fields, "description": SHOUTED, "metadata": {SHOUTED: SHOUTED}})
    assert made.status_code == 201, made.text
    encoded = quote(SHOUTED, safe="")
    addresses = [f"/DM/info/{made.json()['uuid']}", "/DM/info", f"/DM/info?{encoded}=1", f"/DM/info/{encoded}"]
    addresses += [f"/problems/{encoded}", f"/{encoded}", f"/login?next={encoded}", f"/login?error={encoded}"]
    addresses += [f"/docs?url={encoded}", f"/docs?configUrl=data:,{encoded}", "/openapi.json", "/", "/login/session"]
    for address in addresses:
        for accepted in ("text/html", "*/*"):
            answer = victim.ask("GET", address, headers={"Accept": accepted})
            assert answer.headers["X-Content-Type-Options"] == "nosniff", address
            policy = answer.headers["Content-Security-Policy"]
            assert "'unsafe-inline'" not in policy.partition("script-src")[2].partition(";")[0], address
            if "html" in answer.headers.get("Content-Type", ""):
                assert "<script>alert" not in answer.text, address
                assert "<img src=x" not in answer.text, address
    sent = victim.ask("POST", "/login", data={"token": f"dm_{SHOUTED}", "next": f"/{SHOUTED}"}, token=None)
    assert sent.status_code == 401
    assert "<script>alert" not in sent.text


@pytest.mark.attack(cwe=350, title="A name of somebody else's leads to our address, or the Host header is twofold")
def test_foreign_host_is_refused(victim: Attacked) -> None:
    hosts = ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example#localhost", "[::1", ""]
    hosts += [
        "localhost@evil.example",
        "evil.example\\localhost",
        "localhost:80@evil.example",
        "2130706433.evil",
        "0/0",
    ]
    who = f"Authorization: Bearer {victim.admin}\r\nConnection: close\r\n"
    with victim.untouched():
        for host in hosts:
            answer = victim.send(f"DELETE /DM/delete/{victim.theirs} HTTP/1.1\r\nHost: {host}\r\n{who}\r\n".encode())
            assert answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 ")), (host, answer)
        for lines in ("Host: localhost\r\nHost: evil.example\r\n", "Host: evil.example\r\nHost: localhost\r\n", ""):
            answer = victim.send(f"DELETE /DM/delete/{victim.theirs} HTTP/1.1\r\n{lines}{who}\r\n".encode())
            assert answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 400 ")), (lines, answer)
