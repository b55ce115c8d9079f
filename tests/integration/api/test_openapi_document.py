"""The API asked all that its OpenAPI document allows, and what it forbids: each answer is one that the document has.

Requests are generated from the document that the API serves (schemathesis). Half of them name things that exist, and
start from a valid request; each is sent with all rights, with those of one group, and without a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, CheckContext, GenerationMode, Response
from schemathesis.core.result import Ok
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.catalogue import empty_catalogue
from tests.support.live_api import LiveApi
from tests.support.requests_by_endpoint import ENDPOINTS, World


def no_fault_of_the_service(_context: CheckContext, response: Response, _case: Case[Any]) -> None:
    """An error that nobody has foreseen; 503 is one that the document has, of what is not served here."""
    assert response.status_code != 500


CHECKS = [
    no_fault_of_the_service,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
PUBLIC = ("GET /DM/health/live", "GET /DM/health/ready")
NO_WAITING = {"Prefer": "respond-async"}
"""No mover is online, so a request that waits for its transfer would do so until its end."""


class Asked:
    """An API with authentication, and the operations of the document that it serves."""

    def __init__(self, api: LiveApi) -> None:
        self.api = api
        admin = api.tokens.make("admin")
        self.world = World(api, admin, "fire", "here")
        reader = api.tokens.make(groups=["fire"], scopes=["list:objects!group", "read:objects!group", "read:tasks"])
        self.tokens = (admin, reader, None)
        self.document = schemathesis.openapi.from_url(f"{api.url}/openapi.json")
        found = [one.ok() for one in self.document.get_all_operations() if isinstance(one, Ok)]
        self.operations = {f"{one.method.upper()} {one.path}": one for one in found}


@pytest.fixture(scope="module")
def asked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    folder = tmp_path_factory.mktemp("document")
    with (
        empty_catalogue(request, "sqlite", folder) as url,
        LiveApi(folder / "site", url, archives=("tape",), auth="required", download_allow=("127.0.0.1",)) as api,
    ):
        yield Asked(api)


def cases(asked: Asked, endpoint: str) -> st.SearchStrategy[Case[Any]]:
    """Return a strategy for the requests of an endpoint: as the document has them, and otherwise."""
    operation: APIOperation[Any, Any, Any, Any] = asked.operations[endpoint]
    allowed, forbidden = (operation.as_strategy(generation_mode=mode) for mode in GenerationMode)
    if endpoint not in ENDPOINTS:
        return allowed | forbidden

    @st.composite
    def about_what_exists(draw: st.DrawFn) -> Case[Any]:
        case = draw(allowed | forbidden)
        name, fields = ENDPOINTS[endpoint][1](asked.world)
        if operation.path_parameters:
            case.path_parameters = {one.name: name for one in operation.path_parameters}
        if fields and isinstance(case.body, dict):
            case.body = fields | {key: value for key, value in case.body.items() if draw(st.booleans())}
        return case

    return allowed | forbidden | about_what_exists()


def send_all(asked: Asked, endpoint: str, examples: int) -> None:
    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(cases(asked, endpoint))
    def send(case: Case[Any]) -> None:
        for token in asked.tokens:
            headers = NO_WAITING | ({"Authorization": f"Bearer {token}"} if token else {})
            case.call_and_validate(headers=headers, checks=CHECKS)

    send()


def test_every_operation_is_tried(asked: Asked) -> None:
    assert set(asked.operations) == {*ENDPOINTS, *PUBLIC}


@pytest.mark.parametrize("endpoint", [*ENDPOINTS, *PUBLIC])
def test_answers_are_those_of_the_document(asked: Asked, endpoint: str) -> None:
    send_all(asked, endpoint, 4)


@pytest.mark.slow
@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_many_answers_are_those_of_the_document(asked: Asked, endpoint: str) -> None:
    send_all(asked, endpoint, 60)
