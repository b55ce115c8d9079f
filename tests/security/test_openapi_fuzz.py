"""The API is asked all that its OpenAPI document allows, and much that it does not, with and without a token: there is
no fault of ours (500), and each answer is one that the document describes (CWE-20, CWE-248, CWE-306).

No request is left out. No mover is online, so none waits for a transfer; the tokens that are revoked and the persons
who are withdrawn are never those who ask; commands alone prune the trail and stop a service.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from schemathesis.engine import events, from_schema
from schemathesis.generation.meta import TestPhase
from schemathesis.hooks import HookContext

from models import migrate
from tests.support.catalogue import kept
from tests.support.live_api import LiveApi
from tests.support.requests_by_endpoint import ENDPOINTS, World

ALL_BUT_500 = ["2xx", "3xx", "4xx", "501", "502", "503", "504", "507"]
"""Other statuses from 501 on say what is missing, such as a mover: they are right where they are documented."""
CHECKS: dict[str, Any] = {
    "enabled": False,  # but for these
    "not_a_server_error": {"enabled": True, "expected-statuses": ALL_BUT_500},
    **{f"{what}_conformance": {"enabled": True} for what in ("status_code", "content_type", "response_schema")},
    **{name: {"enabled": True} for name in ("ignored_auth", "unsupported_method", "allow_header_conformance")},
}
PHASES = ("examples", "coverage", "fuzzing", "stateful")
PROBLEM = "application/problem+json"

pytestmark = pytest.mark.xdist_group("fuzz")  # they share an API


def served(folder: Path) -> LiveApi:
    """Return an API with authentication and an empty catalogue."""
    url = f"sqlite+pysqlite:///{folder / 'catalogue.db'}"
    migrate.upgrade(kept(url))
    return LiveApi(folder / "site", url, archives=("tape",), auth="required", download_allow=("127.0.0.1",))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveApi]:
    with served(tmp_path_factory.mktemp("fuzz")) as running:
        yield running


class FuzzRun:
    """A run of schemathesis by one caller, the same each time. `answers` are counted by operation and status, `wrong`
    is what its checks found.
    """

    def __init__(self, api: LiveApi, token: str | None, examples: int, phases: tuple[str, ...]) -> None:
        self.answers = Counter[tuple[str, int]]()
        self.wrong: list[str] = []
        admin = api.tokens.make("admin")
        self._worlds = World(api, admin, "fire", "here"), World(api, admin, "water", "there")
        self._turns = count()
        config = schemathesis.Config.from_dict({
            "seed": 16,
            "headers": {"Authorization": f"Bearer {token}"} if token else {},
            "checks": CHECKS,
            "phases": {phase: {"enabled": phase in phases} for phase in PHASES},
            "generation": {
                "deterministic": True, "no-shrink": True, "database": "none", "max-examples": examples,
                "with-security-parameters": False,  # the caller's token is sent instead
            },
            "suppress-health-check": ["all"],
            "output": {"sanitization": {"enabled": False}},  # a request that is shown can be repeated
        })  # fmt: skip
        schema = schemathesis.openapi.from_url(f"{api.url}/openapi.json", config=config)

        @schema.hook
        def map_case(_: HookContext, case: Any) -> Any:
            return self._aimed(case)

        for event in from_schema(schema).execute():
            self._note(event)

    def of(self, label: str) -> set[int]:
        """Return the statuses that an operation was answered with."""
        return {status for asked, status in self.answers if asked == label}

    def _aimed(self, case: Any) -> Any:
        """Aim three of four requests at things that exist; two of these have a valid body, all but one field of it."""
        turn, label = next(self._turns), f"{case.method} {case.path}"
        if turn % 4 == 0 or label not in ENDPOINTS or case.meta.phase.name is TestPhase.STATEFUL:
            return case
        name, fields = ENDPOINTS[label][1](self._worlds[turn // 4 % 2])
        case.path_parameters = dict.fromkeys(case.path_parameters, name)
        if turn % 4 > 1 and isinstance(case.body, dict):
            generated = list(case.body.items())
            case.body = {**(fields or {}), **dict(generated[turn % len(generated) :][:1] if generated else ())}
            case.headers["Prefer"] = "respond-async"
        return case

    def _note(self, event: events.EngineEvent) -> None:
        if isinstance(event, events.NonFatalError):
            self.wrong.append(f"{event.label}: {event.value}")
        if not isinstance(event, events.ScenarioFinished):
            return
        for number, asked in event.recorder.interactions.items():
            label = event.recorder.cases[number].value.operation.label
            self.answers[label, asked.response.status_code if asked.response else 0] += 1
        for checks in event.recorder.checks.values():
            found = [one.failure_info for one in checks if one.failure_info is not None]
            self.wrong += [f"{one.failure.title}: {one.failure.message}\n{one.code_sample}" for one in found]


def fuzz(api: LiveApi, caller: str, examples: int, *phases: str) -> None:
    token = None if caller == "nobody" else api.tokens.make(caller, groups=["fire"] if caller == "reader" else [])
    run = FuzzRun(api, token, examples, phases)
    assert not run.wrong, "\n\n".join(dict.fromkeys(run.wrong))
    asked = {label: run.of(label) for label in documented(api)}
    allowed = {label for label, statuses in asked.items() if statuses & {200, 201, 202}}
    assert all(asked.values())
    seen = set().union(*asked.values())
    match caller:  # what they ask is neither all refused nor all served
        case "admin":
            assert len(allowed) > 0.75 * len(asked), asked.keys() - allowed
        case "reader":
            assert {200, 403, 404, 422} <= seen
        case "nobody":
            assert (seen, allowed) == ({200, 401, 503}, {"GET /DM/health/live"})


def documented(api: LiveApi) -> dict[str, Any]:
    """Return the operations that the document describes."""
    paths: dict[str, Any] = api.app.openapi()["paths"]
    return {f"{method.upper()} {path}": one for path, methods in paths.items() for method, one in methods.items()}


@pytest.mark.parametrize(("caller", "examples"), [("admin", 3), ("reader", 2), ("nobody", 1)])
def test_each_answer_is_documented_and_none_is_a_fault(api: LiveApi, caller: str, examples: int) -> None:
    fuzz(api, caller, examples, "examples", "fuzzing")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("caller", "examples", "phases"),
    [
        ("admin", 8, PHASES),
        ("reader", 8, ("examples", "fuzzing", "stateful")),
        ("nobody", 3, ("examples", "fuzzing", "stateful")),
    ],
)
def test_each_of_many_answers_is_documented(api: LiveApi, caller: str, examples: int, phases: tuple[str, ...]) -> None:
    fuzz(api, caller, examples, *phases)


def refused(api: LiveApi, **options: Any) -> Iterator[tuple[str, requests.Response]]:
    """Ask all operations; yield the answers of those that ask who it is, each one documented."""
    for label, operation in documented(api).items():
        method, path = label.split()
        answer = api.ask(method, path.replace("{", "").replace("}", ""), **options)
        assert str(answer.status_code) in operation["responses"], (label, answer.text)
        if "security" in operation:
            assert answer.headers["Content-Type"] == PROBLEM, label
            yield label, answer


def test_what_is_not_http_is_documented_at_each_address(api: LiveApi) -> None:
    token = api.tokens.make("admin")
    for label, answer in refused(api, token=token, headers={"Prefer": "\x01"}):
        assert (answer.status_code, answer.json()["code"]) == (400, "malformed_http"), label


def test_a_lost_key_of_tokens_is_documented_at_each_address(tmp_path: Path) -> None:
    with served(tmp_path) as api:
        token = api.tokens.make("admin")
        (api.settings.home / "secrets.key").write_text("no key")
        for label, answer in refused(api, token=token):
            assert (answer.status_code, answer.json()["code"]) == (502, "secrets_unreadable"), label
