"""What a person fills in to run a flow in the Prefect UI: the same words as over HTTP, checked in the same way."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from prefect.utilities.callables import parameter_schema

from datamanager.domain.fields import Priority
from datamanager.domain.states import TransferKind
from datamanager.errors import InvalidRequest
from deployments.orchestrator.flow_registry import FLOW_OF_KIND
from flows.runtime.lifecycle import typed_request

FILLED_IN: dict[TransferKind, dict[str, Any]] = {
    TransferKind.COPY: {"machine": "archer2", "dest": "a/b.nc"},
    TransferKind.MOVE: {"machine": "archer2", "dest": "a/b.nc"},
    TransferKind.DELETE: {},
    TransferKind.GETEXTERNAL: {"url": "https://example.org/x", "machine": "archer2", "filename": "x"},
    TransferKind.COPY_MANY: {"directory": {"machine": "archer2", "path": ""}, "machine": "cirrus", "dest": "a"},
    TransferKind.MOVE_MANY: {"directory": {"machine": "archer2", "path": ""}, "machine": "cirrus", "dest": "a"},
    TransferKind.ARCHIVE: {"archive_to": "", "verify": "checksums", "pack": "tar", "compress": "zstd"},
    TransferKind.ACTIVATE: {"machine": "", "dest": ""},
    TransferKind.ARCHIVE_MANY: {"directory": {"machine": "archer2", "path": ""}},
    TransferKind.ACTIVATE_MANY: {"directory": {"machine": "archer2", "path": ""}, "machine": ""},
    TransferKind.GETEXTERNAL_MANY: {
        "url": "https://example.org/x.tar",
        "machine": "archer2",
        "options": {"extract": "tar"},
    },
}


@pytest.mark.parametrize("kind", FILLED_IN)
def test_a_form_asks_how_urgent_it_is_and_checks_the_answer(kind: TransferKind) -> None:
    schema = parameter_schema(FLOW_OF_KIND[kind]).model_dump_for_openapi()
    form = schema["properties"]
    assert {form[name]["default"] for name in ("priority", "deadline")} == {"normal", ""}
    assert schema["definitions"]["Priority"]["enum"] == list(Priority)
    assert "transfer" in list(form)[-1]
    uuid = None if kind.many or kind is TransferKind.GETEXTERNAL else uuid4()
    request = typed_request(kind, {**FILLED_IN[kind], "priority": Priority.HIGH, "deadline": "PT1H"}, uuid)
    assert (request.fields.priority, request.fields.deadline is None) == (Priority.HIGH, False)
    assert (
        typed_request(kind, {**FILLED_IN[kind], "priority": Priority.LOW, "deadline": ""}, uuid).fields.deadline is None
    )
    with pytest.raises(InvalidRequest) as wrong:
        typed_request(kind, {**FILLED_IN[kind], "deadline": "tomorrow"}, uuid)
    assert list(wrong.value.fields) == ["deadline"]
