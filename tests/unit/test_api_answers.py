"""Accept and Prefer are read as their RFCs want; identifiers that can't exist were not found."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers
from starlette.requests import Request

from api.http.middleware import request_id_of
from api.http.request_parts import object_id_of, task_id_of
from api.http.responses import Preferences, preferences, prefers_json
from datamanager.errors import ObjectNotFound, TaskNotFound


@pytest.mark.parametrize(
    ("accept", "json"),
    [
        ("", False),
        ("*/*", False),
        ("text/plain", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/json, */*;q=0.1", True),
        ("application/json;q=0.5, text/plain;q=0.9", False),
        ("application/json;q=0.9, text/plain;q=0.5", True),
        ("application/*", True),
        ("text/*;q=0.2, application/json;q=0.1", False),
        ("application/json, text/plain, */*", False),
        ("application/json;q=0, */*", False),
        ("text/plain;q=0, */*", True),
        ("application/json;q=nonsense", False),
        (",;,", False),
    ],
)
def test_accept(accept: str, json: bool) -> None:
    assert prefers_json(accept) is json


def asking(*prefer: str) -> Request:
    return Request({"type": "http", "headers": [(b"prefer", value.encode()) for value in prefer]})


@pytest.mark.parametrize(
    ("prefer", "wanted"),
    [
        ((), Preferences()),
        (("respond-async",), Preferences(respond_async=True)),
        (("Respond-Async, wait=10",), Preferences(True, 10)),
        (("respond-async", "wait=10"), Preferences(True, 10)),
        (("wait=0",), Preferences(wait=0)),
        (('wait="5"; x=y',), Preferences(wait=5)),
        (("wait=1, wait=2",), Preferences(wait=1)),
        (("wait=soon",), Preferences()),
        (("wait=-1",), Preferences()),
        (("wait=²",), Preferences()),
        (("wait=" + "9" * 400,), Preferences(wait=86_400)),
        (("return=minimal",), Preferences()),
    ],
)
def test_prefer(prefer: tuple[str, ...], wanted: Preferences) -> None:
    assert preferences(asking(*prefer)) == wanted


def test_patience() -> None:
    assert Preferences().patience is None
    assert Preferences(respond_async=True).patience == 0
    assert Preferences(True, 10).patience == 10
    assert Preferences(True, 10).applied == "respond-async, wait=10"


@pytest.mark.parametrize(
    "text", ["", "x", "1" * 32, "{0e4f2b5c-5d3a-4c1b-9f0e-6d2a7c8b9e10}", "a\0", "é" * 36, "1" * 70_000]
)
def test_identifiers_that_cannot_exist(text: str) -> None:
    with pytest.raises(ObjectNotFound):
        object_id_of(text)
    with pytest.raises(TaskNotFound):
        task_id_of(text)


def test_request_ids_are_taken_over_when_they_are_sane() -> None:
    assert request_id_of(Headers({"x-request-id": "abc-1:2"})) == "abc-1:2"
    for odd in ("", "a b", "x" * 129, 'a"b', "a\nb"):
        assert request_id_of(Headers({"x-request-id": odd})) != odd
