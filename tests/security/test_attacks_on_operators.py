"""Attacks on whoever operates the service: by what their terminals show, and by a service that takes its place."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

import datamanager.cli
from datamanager.client import Client
from datamanager.errors import DataManagerError, ServiceError
from models.access.tokens import readmit_person, withdraw_person
from tests.support.attacked import Attacked
from tests.support.authority import Authority
from tests.support.command import Done, run
from tests.support.web import OddServer, redirect, status

ESCAPES = "\x1b]0;owned\x07\x1b[2K\x1b[1A\r\nok\x9b31m\u202egnp.\u2028\u200b"
"""Sets a terminal's title, removes a line, goes up, begins a new one, turns the direction of letters, is not seen."""


def dm(victim: Attacked, *arguments: str, port: int | None = None) -> Done:
    """Run `dm` as the service's administrator."""
    settings = victim.api.settings
    env = {"DM_HOME": str(settings.home), "DM_PORT": str(port or settings.port), "DM_TOKEN": victim.admin}
    return run(*arguments, env=env)


def harmless(done: Done) -> Done:
    """Assert that nothing of what a command printed does anything to a terminal."""
    for line in (done.stdout + done.stderr).split("\n"):
        assert line.isprintable(), line
    assert not any(line.startswith("ok") for line in done.stdout.splitlines() + done.stderr.splitlines())
    return done


@pytest.mark.attack(cwe=150, title="Names and reasons have escape sequences for the terminal of whoever lists them")
def test_terminal_obeys_no_name(victim: Attacked) -> None:
    name = f"{uuid4().hex}{ESCAPES}"
    victim.api.write(f"mine/{name}")
    fields = {"machine": "here", "path": "mine", "filename": name, "group": "fire"}
    uuid = victim.ask("PUT", "/DM/register", json=fields).json()["uuid"]
    with victim.api.database.write() as session:
        withdraw_person(session, f"jo{ESCAPES}", None)
    try:
        shown = [
            harmless(dm(victim, "retention", "hold", uuid, "--reason", f"a paper{ESCAPES}", "--by", ESCAPES)),
            harmless(dm(victim, "retention", "release", uuid)),
            harmless(dm(victim, "token", "withdrawn")),
        ]
        assert [one.returncode for one in shown] == [0, 0, 0], shown
        assert all(r"\x1b]0;owned\x07" in one.stdout and one.stdout.count("\n") == 1 for one in shown)
    finally:
        with victim.api.database.write() as session:
            readmit_person(session, f"jo{ESCAPES}")
    failed = harmless(dm(victim, "retention", "hold", f"x{ESCAPES}", "--reason", "x"))
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)


@pytest.mark.attack(cwe=150, title="A service that somebody else has put in its place answers with escape sequences")
def test_terminal_obeys_no_answer(victim: Attacked) -> None:
    problem = {"code": "not_allowed", "detail": f"no{ESCAPES}", "retryable": False}
    person: dict[str, object] = {
        "person": f"jo{ESCAPES}",
        "means": ESCAPES,
        "groups": [ESCAPES],
        "roles": [],
        "scopes": [ESCAPES],
    }
    person |= {"credential": ESCAPES, "principal": None}
    with OddServer() as server:
        port = int(server.url.rpartition(":")[2])
        for answer in (status(403, json.dumps(problem).encode()), status(200, json.dumps(person).encode())):
            server.on("/DM/whoami", answer)
            done = harmless(dm(victim, "whoami", port=port))
            assert r"\x1b]0;owned\x07" in done.stdout + done.stderr


def test_commands_print_by_the_function_that_escapes() -> None:
    folder = Path(datamanager.cli.__file__).parent
    for file in folder.glob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        calls = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        printing = {call for call in calls if call in ("print", "typer.echo", "typer.secho") or ".write" in call}
        assert printing - {"krl.write_bytes"} == ({"print"} if file.name == "tables.py" else set()), file


@pytest.fixture
def elsewhere() -> Iterator[OddServer]:
    """Another host's server: `localhost` is another name than 127.0.0.1."""
    with OddServer() as server:
        yield server


@pytest.mark.attack(cwe=522, title="A redirect or the next page of a list leads a client's token to another host")
def test_token_goes_to_no_other_host(victim: Attacked, elsewhere: OddServer, tmp_path: Path) -> None:
    foreign = elsewhere.url.replace("127.0.0.1", "localhost")
    authority = Authority(tmp_path)
    with OddServer() as plain, OddServer() as secure:
        secure.socket = authority.server_context("127.0.0.1").wrap_socket(secure.socket, server_side=True)
        url = secure.url.replace("http:", "https:")
        page = status(200, b"[]", Link=f'<{foreign}/DM/info?cursor=x>; rel="next"')
        for server, base, ca in ((plain, plain.url, None), (secure, url, authority.ca_file)):
            for answer in (redirect(f"{foreign}/DM/info"), page):
                server.on("/DM/info", answer)
                with Client(base, token=victim.admin, ca_file=ca) as client:
                    try:
                        list(client.objects())
                    except (DataManagerError, ServiceError, ValueError):
                        pass
                assert server.requests[-1][1]["Authorization"] == f"Bearer {victim.admin}"
    assert [headers for _, headers in elsewhere.requests if victim.admin in str(headers)] == []
