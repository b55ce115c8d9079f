"""The table error → status is the contract's; problem documents say all that it wants, and nothing internal."""

from __future__ import annotations

import json

import pytest

from api.http.problems import describe_code, problem_of, problem_response, status_of, title_of
from datamanager import errors
from datamanager.errors import DataManagerError, InternalError, InvalidRequest, every_error

# The statuses that clients rely on; what is not named here is "every other failure of the transfer itself"
CONTRACT = {
    "not_authenticated": {401},
    "not_allowed": {403},
    "malformed_body": {400},
    "invalid_request": {422},
    "unknown_machine": {422},
    "path_not_allowed": {422},
    "url_not_allowed": {422},
    "credential_unknown": {422},
    "credential_unusable": {422},
    "credential_not_allowed": {422},
    "idempotency_mismatch": {422},
    "size_mismatch": {422, 502},  # at register, of a transfer
    "origin_not_allowed": {403},
    "connection_not_secure": {403},
    "csrf_token_missing": {403},
    "not_supported": {501},
    "object_not_found": {404},
    "task_not_found": {404},
    "audit_not_found": {404},
    "audit_suspicious": {409},
    "duty_taken": {409},
    "schedule_not_found": {404},
    "token_not_found": {404},
    "task_ended": {409},
    "object_deleted": {410},
    "object_archived": {409},
    "object_active": {409},
    "object_unknown": {409},
    "object_busy": {409},
    "object_held": {409},
    "not_marked": {409},
    "retention_run_not_found": {404},
    "invalid_rules": {409},
    "destination_exists": {409},
    "source_missing": {409},
    "source_changed": {409},
    "cancelled": {409},
    "too_large": {413},
    "no_space": {507},
    "machine_unavailable": {503},
    "catalogue_unavailable": {503},
    "orchestrator_unavailable": {503},
    "broker_unavailable": {503},
    "service_unavailable": {503},
    "server_busy": {503},
    "too_many_streams": {429},
    "quota_exceeded": {429},
    "too_many_requests": {429},
    "timeout": {504},
    "deadline_exceeded": {504},
    "query_too_slow": {504},
    "connection_lost": {502},
    "host_key_mismatch": {502},
    "authentication_failed": {502},
    "login_output": {502},
    "no_login": {403},
    "signing_unavailable": {503},
    "signing_failed": {503},
    "permission_denied": {502},
    "remote_error": {502},
    "checksum_mismatch": {502},
    "source_not_removed": {502},
    "download_failed": {502},
    "transfer_failed": {502},
    "lease_lost": {502},
    "secrets_unreadable": {502},
    "items_failed": {502},
    "paused": {502},
    "staging": {502},
    "path_missing": {502},
    "path_exists": {502},
    "path_replaced": {502},
    "catalogue_error": {409},
    "invalid_settings": {500},
    "internal": {500},
}


def example(cls: type[DataManagerError]) -> DataManagerError:
    return cls("what happened")


def test_every_error_has_the_contracts_status() -> None:
    found: dict[str, set[int]] = {}
    for cls in every_error():
        found.setdefault(cls.code, set()).add(status_of(cls))
    assert found == CONTRACT


def test_the_two_owners_of_size_mismatch() -> None:
    assert status_of(errors.RegisteredSizeMismatch) == 422
    assert status_of(errors.SizeMismatch) == 502
    assert status_of(errors.by_code("size_mismatch", "")) == 502


@pytest.mark.parametrize("cls", list(every_error()), ids=lambda cls: cls.__name__)
def test_a_problem_document_is_complete(cls: type[DataManagerError]) -> None:
    document = problem_of(example(cls), "the-request")
    assert set(document) == {"type", "title", "status", "detail", "code", "retryable", "request_id"}
    assert document["request_id"] == "the-request"
    assert document["type"] == f"/problems/{document['code']}"
    assert document["title"]
    assert describe_code(document["code"]) is not None
    response = problem_response(example(cls), "the-request")
    assert response.status_code == document["status"]
    assert response.headers["content-type"] == "application/problem+json"
    assert ("www-authenticate" in response.headers) == (document["status"] == 401)
    assert ("retry-after" in response.headers) == (document["status"] in (429, 503))


def test_a_fault_of_ours_is_not_described() -> None:
    for error in (InternalError("SELECT secret"), errors.SettingsError("/etc/dm: password"), DataManagerError("trace")):
        text = json.dumps(problem_of(error, "r"))
        assert error.detail not in text
        assert json.loads(text)["code"] == "internal"


def test_each_field_is_named() -> None:
    document = problem_of(InvalidRequest("two are wrong", {"size": "must be a number", "machine": "is missing"}), "r")
    assert document["errors"] == [
        {"field": "size", "detail": "must be a number"},
        {"field": "machine", "detail": "is missing"},
    ]


def test_a_name_that_is_not_unicode_can_be_told() -> None:
    body = bytes(problem_response(errors.SourceMissing("no file \udcff\ud800"), "r").body)
    assert json.loads(body)["detail"] == "no file \\udcff\\ud800"


def test_titles_are_sentences_without_their_end() -> None:
    assert title_of(errors.UnknownMachine) == "The machine is not in machines.toml"
    assert title_of(errors.InvalidRequest) == "A field is missing or invalid"
    assert describe_code("nothing-of-ours") is None
