"""Misspelt fields are refused by name, wherever they stand; what clients of the original send besides is ignored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from pydantic import BaseModel

from api.http.query import read_query
from api.objects.routes import ObjectQuery, selection_of
from api.tasks.listing import ItemQuery, TaskQuery
from datamanager.domain.archive_requests import ActivateManyRequest, ActivateRequest, ArchiveManyRequest, ArchiveRequest
from datamanager.domain.audit_rules import AuditRequest
from datamanager.domain.limits import MachineLimitsRequest, TransferLimitsRequest
from datamanager.domain.recurring import ScheduleRequest, ScheduleRunRequest
from datamanager.domain.requests import (
    NAMED_MAX,
    OLD_EXTRAS,
    CopyManyRequest,
    CopyRequest,
    DeleteRequest,
    GetExternalRequest,
    MoveManyRequest,
    MoveRequest,
    RegisterRequest,
    Request,
    TreeRequest,
    validated,
)
from datamanager.domain.retention_requests import HoldRequest, LifetimeRequest, RestoreRequest, RetentionRunRequest
from datamanager.errors import InvalidRequest, NotSupported
from datamanager.identity.token_requests import PersonRequest, RotateRequest, TokenRequest
from datamanager.machines import Machines
from datamanager.sources.registry import typed_options
from datamanager.sources.terms.request_secrets import refuse_secrets
from tests.support.classes import every_subclass

ROOT = Path(__file__).parents[2]
OF_THE_SEED: tuple[type[Request], ...] = (
    RegisterRequest,
    CopyRequest,
    MoveRequest,
    DeleteRequest,
    GetExternalRequest,
    ArchiveRequest,
    ActivateRequest,
)
OTHERS: tuple[type[Request], ...] = (
    *(CopyManyRequest, MoveManyRequest, ArchiveManyRequest, ActivateManyRequest, TreeRequest, AuditRequest),
    *(MachineLimitsRequest, TransferLimitsRequest, ScheduleRequest, ScheduleRunRequest),
    *(HoldRequest, LifetimeRequest, RestoreRequest, RetentionRunRequest),
    *(TokenRequest, RotateRequest, PersonRequest),
)
ITEM = {"uuid": str(uuid4()), "machine": "there", "dest": "d"}


def refused(fields: dict[str, Any], model: type[BaseModel]) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        validated(fields, model)
    return caught.value.fields


@pytest.mark.parametrize("model", [*OF_THE_SEED, *OTHERS], ids=lambda model: model.__name__)
def test_validated_names_a_misspelt_field_and_the_nearest(model: type[Request]) -> None:
    for name in model.model_fields:
        for misspelt in (name[:-1] + name[-1] * 2, name.title() + "x"):
            assert refused({misspelt: "x"}, model)[misspelt] == f"unknown; did you mean {name}?"
    assert refused({"zzz": 1}, model)["zzz"].startswith("unknown; known: ")


@pytest.mark.parametrize(
    ("model", "fields", "named", "meant"),
    [
        (
            CopyManyRequest,
            {"items": [ITEM, {**ITEM, "overwrit": True}]},
            "items.1.overwrit",
            "known: dest, machine, uuid",
        ),
        (CopyManyRequest, {"items": [{**ITEM, "dst": "x"}]}, "items.0.dst", "dest"),
        (ArchiveManyRequest, {"items": [str(uuid4()), {"uuid": str(uuid4()), "uid": ""}]}, "items.1.uid", "uuid"),
        (ActivateManyRequest, {"items": [{"uuid": str(uuid4()), "Dest": "x"}]}, "items.0.Dest", "dest"),
        (
            MoveManyRequest,
            {"directory": {"machine": "a", "pth": "b"}, "machine": "b", "dest": "c"},
            "directory.pth",
            "path",
        ),
    ],
)
def test_validated_names_a_misspelt_field_of_an_item(
    model: type[Request], fields: dict[str, Any], named: str, meant: str
) -> None:
    wrong = refused(fields, model)
    assert set(wrong) == {named}
    assert meant in wrong[named]


def test_validated_ignores_what_old_clients_send() -> None:
    assert set(OLD_EXTRAS) == {"type", "storage_technology", "gather_metrics", "callback", "incidentId"}
    documented = (ROOT / "docs/reference/requests.md").read_text()
    assert all(f"| `{name}` | {meant} |" in documented for name, meant in OLD_EXTRAS.items())
    for model in OF_THE_SEED:
        plain = {"machine": "here", "filename": "f", "dest": "d", "url": "http://a/f"}
        fields = {name: value for name, value in plain.items() if name in model.model_fields}
        assert validated({**fields, **dict.fromkeys(OLD_EXTRAS, "x")}, model) == validated(fields, model)
    for model in OTHERS:
        assert refused(dict.fromkeys(OLD_EXTRAS, "x"), model).keys() >= set(OLD_EXTRAS)


def test_every_request_is_tried_here() -> None:
    kept = {model for model in every_subclass(Request) if "Terms" in model.__name__ or "Accepted" in model.__name__}
    parts = {model for model in every_subclass(Request) if model.__name__ in PARTS}
    assert set(every_subclass(Request)) - kept - parts == {*OF_THE_SEED, *OTHERS}


PARTS = {"NewObject", "BatchItem", "Directory", "BatchRequest", "ArchiveItem", "ActivateItem"}


def test_validated_names_a_bounded_number_of_names_of_bounded_length() -> None:
    wrong = refused({f"{number}" + "x" * 10_000: 1 for number in range(5000)}, CopyRequest)
    assert len(wrong) <= NAMED_MAX
    assert max(map(len, wrong)) <= 100


def test_a_stored_request_of_another_version_can_be_read() -> None:
    stored = validated({"machine": "there", "dest": "d"}, CopyRequest).model_dump(mode="json")
    assert CopyRequest.model_validate({**stored, "of a later version": 1}).dest == "d"


@pytest.mark.parametrize("url", ["https://a/f", "sftp://a/f", "s3://a/f", "ftp://a/f", "dav://a/f"])
def test_options_name_a_misspelt_one_and_the_nearest(url: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        typed_options(url, "", {"checksm": "secret value"})
    assert caught.value.fields == {"options.checksm": "unknown; did you mean checksum?"}
    assert "secret value" not in caught.value.detail
    with pytest.raises(NotSupported, match="not supported by"):  # known, but not to this protocol
        typed_options(url, "", {"tls": "explicit"} if not url.startswith("ftp") else {"region": "x"})


def test_misspelt_options_are_no_secrets() -> None:
    with pytest.raises(InvalidRequest) as caught:
        refuse_secrets({"crendential": "x"}, "in messages")
    assert caught.value.fields == {"options.crendential": "unknown; did you mean credential?"}


@pytest.mark.parametrize("model", [ObjectQuery, TaskQuery, ItemQuery])
def test_a_query_names_a_misspelt_parameter_and_the_nearest(model: Any) -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_query([("limt", "1")], model)
    assert caught.value.fields == {"limt": "unknown; did you mean limit?"}
    with pytest.raises(InvalidRequest) as caught:
        read_query([(f"n{number}", "") for number in range(10_000)], model)
    assert len(caught.value.fields) == NAMED_MAX


def test_a_doubled_metadata_key_is_refused() -> None:
    given = [("metadata.k", "a"), ("metadata.l", "b")]
    assert selection_of(given, Machines({})).metadata == {"k": "a", "l": "b"}
    with pytest.raises(InvalidRequest) as caught:
        selection_of([*given, ("metadata.k", "a")], Machines({}))
    assert caught.value.fields == {"metadata.k": "may be given once"}


# --- numbers ---

WHOLE: tuple[tuple[type[Request], dict[str, Any], str], ...] = (
    (RegisterRequest, {"machine": "m", "filename": "f"}, "size"),
    (TreeRequest, {"machine": "m"}, "max_files"),
    (MachineLimitsRequest, {}, "max_transfers"),
    (MachineLimitsRequest, {}, "bandwidth"),
    (CopyRequest, {"machine": "m", "dest": "d"}, "bandwidth"),
    (AuditRequest, {"machine": "m"}, "scrub_bytes"),
    (RetentionRunRequest, {}, "max_objects"),
    (RetentionRunRequest, {}, "max_bytes"),
    (ScheduleRequest, {"url": "http://a/f", "machine": "m", "filename": "{date:%Y}", "interval": "1d"}, "keep"),
)
NO_WHOLE = ["5_0", "5.0", "+5", " 5", "5 ", "5e1", "0x5", "\u0665", "true", True, False, 5.0, 5.5, 1e3, [5], {}]


@pytest.mark.parametrize(("model", "fields", "name"), WHOLE, ids=lambda value: getattr(value, "__name__", None))
def test_whole_numbers_are_read_alike_in_forms_and_json(
    model: type[Request], fields: dict[str, Any], name: str
) -> None:
    assert getattr(validated({**fields, name: "5"}, model), name) == 5
    assert getattr(validated({**fields, name: 5}, model), name) == 5
    for value in NO_WHOLE:
        assert set(refused({**fields, name: value}, model)) == {name}, value


@pytest.mark.parametrize("name", ["scrub_share", "most_lost", "second_look"])
def test_numbers_are_read_alike_in_forms_and_json(name: str) -> None:
    for value in (0.5, "0.5", "5e-1", 1, "1"):
        assert getattr(validated({"machine": "m", name: value}, AuditRequest), name) == float(value)
    for wrong in ("0_1", "+1", " 1", ".5", "1.", "nan", "inf", "1e999", True, False, 1e400, [1]):
        assert set(refused({"machine": "m", name: wrong}, AuditRequest)) == {name}, wrong


@pytest.mark.parametrize("name", ["size", "max_size", "retries", "timeout"])
def test_numbers_of_options_are_read_as_those_of_fields(name: str) -> None:
    assert getattr(typed_options("http://a/f", "", json.loads(f'{{"{name}": "5"}}')), name) == 5
    for value in ("5_0", "+5", True, [5]):
        with pytest.raises(InvalidRequest) as caught:
            typed_options("http://a/f", "", {name: value})
        assert set(caught.value.fields) == {f"options.{name}"}


@pytest.mark.parametrize(("text", "wanted"), [("1.5KiB", 1536), ("7B", 7), ("2 MB", 2_000_000)])
def test_sizes_may_have_units(text: str, wanted: int) -> None:
    assert validated({"max_bytes": text}, RetentionRunRequest).max_bytes == wanted


# --- protocol ---


@pytest.mark.parametrize("scheme", ["http", "https", "sftp", "ftp", "ftps", "s3", "dav", "webdavs"])
@pytest.mark.parametrize("given", [{}, {"protocol": ""}, {"protocol": None}])
def test_without_a_protocol_the_scheme_decides(scheme: str, given: dict[str, Any]) -> None:
    url = f"{scheme}://a.example/f"
    request = validated({"machine": "m", "url": url, **given}, GetExternalRequest)
    assert typed_options(url, request.protocol, {}) == typed_options(url, scheme, {})
    schedule = {"machine": "m", "url": url, "filename": "{date:%Y}", "interval": "1d", **given}
    assert validated(schedule, ScheduleRequest).protocol == request.protocol
