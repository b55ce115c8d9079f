"""JSON that nobody could read again is refused where a request is made."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from datamanager.domain.fields import DEPTH_MAX, objection
from datamanager.domain.requests import GetExternalRequest, RegisterRequest


def nested(depth: int) -> dict[str, object]:
    value: dict[str, object] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "metadata",
    [{"a": "\0"}, {"a": {"\ud800": 1}}, {"a": [float("nan")]}, {"a": 2**64}, {"a": {1, 2}}, nested(DEPTH_MAX)],
)
def test_what_can_not_be_stored(metadata: dict[str, object]) -> None:
    assert objection(metadata)
    with pytest.raises(ValidationError, match="metadata"):
        RegisterRequest.model_validate({"filename": "a", "machine": "m", "metadata": metadata})
    with pytest.raises(ValidationError, match="options"):
        GetExternalRequest.model_validate({"filename": "a", "machine": "m", "url": "u", "options": metadata})


@pytest.mark.parametrize("text", ['{"a": NaN}', "[" * 100_000, "[]", "1", "nonsense"])
def test_texts_that_are_no_json_object(text: str) -> None:
    with pytest.raises(ValidationError, match="metadata"):
        RegisterRequest.model_validate({"filename": "a", "machine": "m", "metadata": text})


def test_what_can_be_stored() -> None:
    metadata = {"a": [1, 2.5, None, True, "ünïcödé"], "b": nested(DEPTH_MAX - 3)}
    assert RegisterRequest.model_validate({"filename": "a", "machine": "m", "metadata": metadata}).metadata == metadata
