"""The error tree is what its map says; codes are stable and tell the classes apart."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

from datamanager import errors
from datamanager.errors import (
    CatalogueFull,
    DataManagerError,
    InternalError,
    NoSpace,
    RegisteredSizeMismatch,
    SizeMismatch,
    TransferError,
    by_code,
    every_error,
)

FAMILIES = {"RequestError", "CatalogueError", "TransportError", "TransferError", "ServiceError", "DataManagerError"}
OURS = [cls for cls in every_error() if cls.__module__.startswith(errors.__name__)]
LEAVES = [cls for cls in OURS if cls.__name__ not in FAMILIES]


def names_of_the_map() -> dict[str, str | None]:
    """Return class name → code as the module's docstring draws them."""
    lines = re.findall(r"[├└]── (\w+) +(?:(\w+)(?= |$))?", errors.__doc__ or "", re.MULTILINE)
    return {name: code or None for name, code in lines}


def test_the_map_names_every_class_with_its_code() -> None:
    drawn = names_of_the_map()
    assert set(drawn) | {"DataManagerError"} == {cls.__name__ for cls in OURS}
    for cls in LEAVES:
        assert drawn[cls.__name__] == cls.code, cls


def test_the_map_says_what_is_retryable() -> None:
    for line in (errors.__doc__ or "").splitlines():
        match = re.search(r"[├└]── (\w+) .*\(retryable\)", line)
        if match:
            assert getattr(errors, match[1]).retryable, match[1]
    marked = set(re.findall(r"[├└]── (\w+) .*\(retryable\)", errors.__doc__ or ""))
    assert {cls.__name__ for cls in LEAVES if cls.retryable} == marked


def test_retryable_is_said_when_an_error_is_made_and_not_changed() -> None:
    root = Path(errors.__file__).parents[2]
    places = [
        f"{path}:{target.lineno}"
        for package in ("api", "datamanager", "deployments", "flows", "models")
        for path in (root / package).rglob("*.py")
        if ".retryable" in (source := path.read_text())  # parsing takes its time
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Attribute) and target.attr == "retryable"
    ]
    # in the head of a class, and when one is made
    assert [place.rpartition("/")[2].partition(":")[0] for place in places] == ["root.py"] * 2, places


@pytest.mark.parametrize("cls", LEAVES, ids=lambda cls: cls.__name__)
def test_each_error_can_be_made_retryable_or_not(cls: type[DataManagerError]) -> None:
    for retryable in (True, False):
        assert by_code(cls.code, "what happened", retryable=retryable).retryable is retryable


def test_codes_are_unique_but_two() -> None:
    codes = Counter(cls.code for cls in LEAVES)
    assert {code for code, count in codes.items() if count > 1} == {"size_mismatch", "no_space"}
    assert RegisteredSizeMismatch.code == SizeMismatch.code == "size_mismatch"
    assert CatalogueFull.code == NoSpace.code == "no_space"
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", code) for code in codes)


@pytest.mark.parametrize("cls", LEAVES, ids=lambda cls: cls.__name__)
def test_codes_lead_back_to_their_class(cls: type[DataManagerError]) -> None:
    error = by_code(cls.code, "what happened")
    assert type(error) is {RegisteredSizeMismatch: SizeMismatch, CatalogueFull: NoSpace}.get(cls, cls)
    assert (error.detail, error.code) == ("what happened", cls.code)
    assert str(error) == "what happened"


def test_an_unknown_code_is_a_fault_of_ours() -> None:
    assert type(by_code("no_such_code", "x")) is InternalError


@pytest.mark.parametrize("cls", OURS, ids=lambda cls: cls.__name__)
def test_each_class_is_a_sentence(cls: type[DataManagerError]) -> None:
    assert cls.__doc__
    assert cls.__doc__.strip().endswith(".")


DESIGN = """
    source_missing source_changed source_not_removed permission_denied no_space destination_exists object_busy
    host_key_mismatch authentication_failed machine_unavailable connection_lost timeout size_mismatch
    checksum_mismatch cancelled deadline_exceeded url_not_allowed too_large not_supported malformed_body
    invalid_request unknown_machine path_not_allowed object_not_found task_not_found object_deleted object_archived
    object_unknown idempotency_mismatch internal
"""


def test_the_codes_of_the_design_exist() -> None:
    assert {cls.code for cls in LEAVES} >= {*DESIGN.split()}


def test_a_transfer_may_fail_with_any_of_its_errors() -> None:
    assert all(issubclass(cls, DataManagerError) for cls in every_error(TransferError))
    assert next(iter(every_error())) is DataManagerError
