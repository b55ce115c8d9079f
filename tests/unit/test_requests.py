"""Requests: forms and JSON mean the same, odd old clients are understood, nonsense is named."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from datamanager.domain.fields import SIZE_MAX, TEXT_MAX
from datamanager.domain.requests import (
    DIRECTORY_MAX,
    ITEMS_MAX,
    NAMED_MAX,
    AcceptedBatch,
    CopyManyRequest,
    CopyRequest,
    DeleteRequest,
    GetExternalRequest,
    MoveRequest,
    RegisterRequest,
    Request,
    TreeRequest,
    validated,
)
from datamanager.errors import InvalidRequest
from datamanager.machines import VerifyPolicy

NEW = {"filename": "a.nc", "machine": "alpha"}


def wrong(model: type[Request], fields: dict[str, Any]) -> set[str]:
    """Return the names of the fields that are refused."""
    with pytest.raises(ValidationError) as refused:
        model.model_validate(fields)
    return {str(error["loc"][0]) for error in refused.value.errors()}


def test_defaults() -> None:
    request = RegisterRequest.model_validate(NEW)
    assert (request.path, request.size, request.metadata, request.verify) == ("", None, {}, "stat")
    assert (request.description, request.originator, request.group) == ("", "", "")


def test_a_form_and_json_are_the_same_request() -> None:
    form = {**NEW, "size": "12", "metadata": '{"k": [1, true]}', "verify": "", "path": "in"}
    typed = {**NEW, "size": 12, "metadata": {"k": [1, True]}, "path": "in"}
    assert RegisterRequest.model_validate(form) == RegisterRequest.model_validate(typed)
    copy = {"machine": "beta", "dest": "b"}
    assert CopyRequest.model_validate({**copy, "overwrite": "true", "verify": ""}).overwrite is True
    assert CopyRequest.model_validate({**copy, "verify": "size"}).verify is VerifyPolicy.SIZE
    assert [DeleteRequest.model_validate(one).force for one in ({"force": "true"}, {"force": True}, {})] == [
        *(True, True, False)
    ]


def test_fields_of_old_clients_are_ignored() -> None:
    request = RegisterRequest.model_validate({**NEW, "type": "NetCDF", "storage_technology": "FILESYSTEM"})
    assert "type" not in request.model_dump()


@pytest.mark.parametrize("size", [None, "", 0, "0"])
def test_a_size_of_nothing_is_unknown(size: object) -> None:
    assert RegisterRequest.model_validate({**NEW, "size": size}).size is None


@pytest.mark.parametrize("size", [1, "1", 2**31, 2**32, SIZE_MAX, str(SIZE_MAX)])
def test_sizes(size: object) -> None:
    assert RegisterRequest.model_validate({**NEW, "size": size}).size == int(str(size))


@pytest.mark.parametrize("size", [-1, "-1", SIZE_MAX + 1, str(2**64), "many", 1.5, "1.5", [1]])
def test_what_is_no_size(size: object) -> None:
    assert wrong(RegisterRequest, {**NEW, "size": size}) == {"size"}


@pytest.mark.parametrize("filename", ["", "/", "a/b", "/a", ".", "..", "a\0", "\ud800", None, 5, ["a"]])
def test_what_is_no_filename(filename: object) -> None:
    assert wrong(RegisterRequest, {**NEW, "filename": filename}) == {"filename"}


@pytest.mark.parametrize("filename", ["-dash", "quo'te\"", "$(id)", "new\nline", " blanks ", "ä" * 100, "a\\b", "..a"])
def test_hostile_filenames_are_just_names(filename: str) -> None:
    assert RegisterRequest.model_validate({**NEW, "filename": filename}).filename == filename


@pytest.mark.parametrize("field", ["path", "description", "originator", "group", "machine"])
def test_texts_can_be_stored(field: str) -> None:
    for text in ("a\0b", "\ud800", "x" * (TEXT_MAX + 1)):
        assert wrong(RegisterRequest, {**NEW, field: text}) == {field}
    assert getattr(RegisterRequest.model_validate({**NEW, field: "x" * TEXT_MAX}), field) == "x" * TEXT_MAX


@pytest.mark.parametrize("metadata", ["{", "[]", "5", '"text"', [], 5, "null", "{'k': 1}", "nan"])
def test_metadata_is_a_json_object(metadata: object) -> None:
    assert wrong(RegisterRequest, {**NEW, "metadata": metadata}) == {"metadata"}


def test_every_missing_field_is_named() -> None:
    assert wrong(RegisterRequest, {}) == {"filename", "machine"}
    assert wrong(CopyRequest, {}) == {"machine", "dest"}
    assert wrong(MoveRequest, {"machine": "", "dest": ""}) == {"machine", "dest"}
    assert wrong(GetExternalRequest, NEW) == {"url"}


@pytest.mark.parametrize(("model", "value"), [(RegisterRequest, "maybe"), (RegisterRequest, "sha256")])
def test_verify_at_register(model: type[Request], value: str) -> None:
    assert wrong(model, {**NEW, "verify": value}) == {"verify"}
    for allowed in ("none", "stat", "hash"):
        assert RegisterRequest.model_validate({**NEW, "verify": allowed}).verify == allowed


def test_options_are_not_shown() -> None:
    request = GetExternalRequest.model_validate({**NEW, "url": "https://x/", "options": '{"password": "s3cret"}'})
    assert request.options == {"password": "s3cret"}
    assert "s3cret" not in repr(request)


@given(
    st.dictionaries(
        st.sampled_from(["filename", "machine", "path", "size", "metadata", "verify", "group"]),
        st.one_of(st.text(), st.integers(), st.none(), st.booleans(), st.lists(st.text())),
    )
)
def test_nothing_but_a_validation_error(fields: dict[str, Any]) -> None:
    try:
        request = RegisterRequest.model_validate(fields)
    except ValidationError:
        return
    assert RegisterRequest.model_validate(request.model_dump(mode="json")) == request


ITEM = {"uuid": "0e4f2b5c-5d3a-4c1b-9f0e-6d2a7c8b9e10", "dest": "a"}


def test_items_have_the_default_machine() -> None:
    items = [ITEM, {**ITEM, "machine": ""}, {**ITEM, "machine": "other"}]
    batch = CopyManyRequest.model_validate({"machine": "beta", "items": items, "verify": ""})
    assert [item.machine for item in batch.items or ()] == ["beta", "beta", "other"]
    accepted = batch.accepted(3)
    assert accepted == AcceptedBatch(machine="beta", count=3)
    assert "items" not in accepted.model_dump()
    assert items[0] == ITEM, "what was given stays as it is"


def test_of_many_wrong_items_some_are_named() -> None:
    with pytest.raises(InvalidRequest) as refused:
        validated({"items": [{}] * ITEMS_MAX}, CopyManyRequest)
    assert 1 < len(refused.value.fields) <= NAMED_MAX


@pytest.mark.parametrize("empty", [None, "", 0])
def test_a_tree_has_defaults(empty: object) -> None:
    tree = TreeRequest.model_validate({"machine": "alpha", "verify": empty, "max_files": empty})
    assert (tree.path, tree.verify, tree.max_files, tree.metadata) == ("", "stat", ITEMS_MAX, {})
    assert wrong(TreeRequest, {"verify": "hash", "max_files": DIRECTORY_MAX + 1, "machine": ""}) == {
        "verify",
        "max_files",
        "machine",
    }
