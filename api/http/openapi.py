"""The OpenAPI document, from tables: the errors that a route may answer, the body it reads, the headers it knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from api.http.problems import MEDIA_TYPE, http_problem_of, problem_of
from api.http.request_parts import FORM, JSON, MULTIPART
from datamanager import errors
from datamanager.domain.archive_requests import (
    ActivateManyRequest,
    ActivateRequest,
    ArchiveManyRequest,
    ArchiveRequest,
)
from datamanager.domain.audit_rules import AuditRequest
from datamanager.domain.limits import MachineLimitsRequest, TransferLimitsRequest
from datamanager.domain.recurring import ScheduleRequest, ScheduleRunRequest
from datamanager.domain.requests import (
    CopyManyRequest,
    CopyRequest,
    DeleteRequest,
    GetExternalRequest,
    MoveManyRequest,
    MoveRequest,
    RegisterRequest,
    TreeRequest,
)
from datamanager.domain.requests import Request as OurRequest
from datamanager.domain.retention_requests import HoldRequest, LifetimeRequest, RestoreRequest, RetentionRunRequest
from datamanager.errors import DataManagerError
from datamanager.identity.token_requests import PersonRequest, RotateRequest, TokenRequest

Errors = tuple[type[DataManagerError], ...]

PUBLIC: Errors = (
    errors.OriginNotAllowed,
    errors.ConnectionNotSecure,
    errors.InternalError,
    errors.CatalogueUnavailable,
    errors.CatalogueFull,
    errors.ServerBusy,
)
"""What each endpoint may answer."""
ALWAYS: Errors = (
    *PUBLIC,
    errors.InvalidRequest,  # of a parameter in the address that is unknown
    errors.NotAuthenticated,
    errors.NotAllowed,
    errors.TooManyRequests,
    errors.CsrfTokenMissing,
    errors.SecretsUnreadable,  # the key of tokens is a secret
    errors.QueryTooSlow,
)
"""What each endpoint may answer that asks who it is."""
BODY: Errors = (
    *(errors.MalformedBody, errors.TooLarge, errors.InvalidRequest, errors.IdempotencyMismatch),
    errors.QuotaExceeded,
)
PLACE: Errors = (errors.UnknownMachine, errors.PathNotAllowed, errors.DestinationExists)
OBJECT: Errors = (
    errors.ObjectNotFound,
    errors.ObjectDeleted,
    errors.ObjectArchived,
    errors.ObjectUnknown,
    errors.ObjectBusy,
)
URL: Errors = (errors.UrlNotAllowed, errors.NotSupported)
MACHINE: Errors = (
    errors.HostKeyMismatch,
    errors.AuthenticationFailed,
    errors.NoLogin,
    errors.SigningUnavailable,
    errors.SigningFailed,
    errors.LoginOutput,
    errors.PermissionDenied,
    errors.RemoteFailure,
)
WAITING: Errors = (
    errors.OrchestratorUnavailable,
    errors.MachineUnavailable,
    errors.TransportTimeout,
    errors.DeadlineExceeded,
    errors.Cancelled,
    errors.ConnectionLost,
    *MACHINE,
)
BYTES: Errors = (errors.SourceChanged, errors.SizeMismatch, errors.ChecksumMismatch, errors.NoSpace, errors.TooLarge)

RESPOND_ASYNC = "`respond-async`: answer 202 with the task at once."
WAIT = f"{RESPOND_ASYNC} `wait=n`: answer 202 with the task after n seconds."
"""What an endpoint knows of `Prefer`."""

UUID_EXAMPLE = "0e4f2b5c-5d3a-4c1b-9f0e-6d2a7c8b9e10"
_REQUEST_ID = "8f14e45f"
TASK_EXAMPLE = "7c9b1e7e-2f64-4a53-8a35-1f0b6a4d2c33"

EXAMPLES: dict[type[OurRequest], dict[str, Any]] = {
    RegisterRequest: {"machine": "archer2", "path": "weather", "filename": "june.nc", "size": 1048576, "group": "fire"},
    CopyRequest: {"machine": "cirrus", "dest": "weather/june.nc"},
    MoveRequest: {"machine": "cirrus", "dest": "weather/june.nc"},
    DeleteRequest: {"priority": "low"},
    MachineLimitsRequest: {"bandwidth": "200MB/s", "max_transfers": 4},
    TransferLimitsRequest: {"bandwidth": "50MB/s"},
    AuditRequest: {"machine": "archer2", "scrub_share": 0.05},
    CopyManyRequest: {
        "machine": "cirrus",
        "items": [{"uuid": UUID_EXAMPLE, "dest": "weather/june.nc"}, {"uuid": TASK_EXAMPLE, "dest": "weather/july.nc"}],
    },
    MoveManyRequest: {
        "directory": {"machine": "archer2", "path": "weather"},
        "machine": "cirrus",
        "dest": "weather",
    },
    ArchiveRequest: {"archive_to": "tape", "verify": "checksums"},
    ActivateRequest: {"machine": "cirrus", "dest": "weather/june.nc"},
    ArchiveManyRequest: {"items": [{"uuid": UUID_EXAMPLE}, {"uuid": TASK_EXAMPLE}], "compress": "zstd"},
    ActivateManyRequest: {"items": [{"uuid": UUID_EXAMPLE}, {"uuid": TASK_EXAMPLE, "machine": "cirrus"}]},
    ScheduleRequest: {
        "url": "https://data.example/{date:%Y%m%d}/forecast-{date:%H}.nc",
        "machine": "archer2",
        "path": "weather/{date:%Y}",
        "filename": "forecast-{date:%Y%m%d%H}.nc",
        "interval": "6h",
        "keep": 12,
        "options": {"credential": "weather"},
    },
    ScheduleRunRequest: {"moment": "2026-01-31T06:00:00Z"},
    HoldRequest: {"reason": "figures of a paper", "by": "maria"},
    LifetimeRequest: {"lifetime": "90d"},
    RestoreRequest: {"spare_for": "30d"},
    RetentionRunRequest: {"dry_run": True, "rule": "old forecasts to tape"},
    TokenRequest: {"name": "forecasts", "roles": ["mover"], "groups": ["fire"], "expires": "P90D"},
    RotateRequest: {"overlap": "1d"},
    PersonRequest: {"person": "jo"},
    TreeRequest: {"machine": "archer2", "path": "weather", "group": "fire"},
    GetExternalRequest: {
        "machine": "archer2",
        "path": "weather",
        "filename": "june.nc",
        "url": "https://data.example/june.nc",
        "protocol": "http",
        "group": "fire",
    },
}

MAY_BE_EMPTY = frozenset(
    {DeleteRequest, ArchiveRequest, ActivateRequest, RestoreRequest, RetentionRunRequest, ScheduleRunRequest}
    | {RotateRequest}
)
"""Requests whose body may be left out."""


class FieldProblem(BaseModel):
    """One field that is wrong, and what would be right."""

    field: str
    detail: str


class Problem(BaseModel):
    """An error (RFC 9457). `code` is stable; `retryable` says whether the same request may work later."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str
    retryable: bool
    request_id: str
    errors: list[FieldProblem] = Field(default_factory=list)


_shapes: dict[str, type] = {"Problem": Problem}
"""The types that the document describes: what the routes name when they are declared."""


def problems(*classes: type[DataManagerError], always: Errors = ALWAYS) -> dict[int | str, dict[str, Any]]:
    """Document error answers: one entry a status, one example a code. What is not HTTP is refused at each address."""
    unreadable = http_problem_of(400, "Invalid HTTP request received.", _REQUEST_ID)
    documents = [*(problem_of(_example(cls), _REQUEST_ID) for cls in (*classes, *always)), unreadable]
    by_status: dict[int, dict[str, Any]] = {}
    for document in documents:
        by_status.setdefault(document["status"], {})[document["code"]] = {"value": document}
    found: dict[int | str, dict[str, Any]] = {}
    for status, examples in sorted(by_status.items()):
        content = {MEDIA_TYPE: {"schema": _ref(Problem), "examples": examples}}
        found[status] = {"description": ", ".join(f"`{code}`" for code in examples), "content": content}
    return found


def object_created(*classes: type[DataManagerError], found: str = "") -> dict[int | str, dict[str, Any]]:
    """Document the answers of an endpoint that makes an object; `found`: which one it answers (200) instead of that."""
    content = _either(UUID_EXAMPLE, {"uuid": UUID_EXAMPLE})
    answers = {200: found, 201: "The new object's identifier."}
    known: dict[int | str, dict[str, Any]] = {
        status: {"description": text, "content": content} for status, text in answers.items() if text
    }
    return {**known, **problems(*classes)}


def message(text: str, *classes: type[DataManagerError]) -> dict[int | str, dict[str, Any]]:
    """Document the answers of an endpoint that says what it did."""
    content = _either(text, {"uuid": UUID_EXAMPLE, "message": text})
    return {200: {"description": "Done.", "content": content}, **problems(*classes)}


def task(*, status: int) -> dict[int | str, dict[str, Any]]:
    """Document an answer with a task's identifier."""
    json_form = {"task": TASK_EXAMPLE, "status_url": f"/DM/async/status/{TASK_EXAMPLE}"}
    return {
        status: {
            "description": "The task; `Location` says where its status is.",
            "content": _either(TASK_EXAMPLE, json_form),
        }
    }


def json_answer(
    shape: type, description: str, *classes: type[DataManagerError], many: bool = False, status: int = 200
) -> dict[int | str, Any]:
    """Document an answer that is always JSON; `many`: a list."""
    schema = {"type": "array", "items": _ref(shape)} if many else _ref(shape)
    return {status: {"description": description, "content": {JSON: {"schema": schema}}}, **problems(*classes)}


def health(what: str, *classes: type[DataManagerError]) -> dict[int | str, dict[str, Any]]:
    """Document a health endpoint."""
    content = {JSON: {"schema": {"type": "object"}, "example": {"status": what}}}
    answers = problems(*classes, always=PUBLIC)  # monitors may send parameters
    return {200: {"description": f"It is {what}.", "content": content}, **answers}


def body(
    model: type[OurRequest] | None = None, *, forms: bool = True, prefer: str = "", keyed: bool = True
) -> dict[str, Any]:
    """Document a writing endpoint's body, its fields being `model`'s, and its headers; `forms` says whether it may be a
    form too, `prefer` what it knows of `Prefer`, `keyed` whether it knows `Idempotency-Key`.
    """
    headers = {"Idempotency-Key": "A request repeated with the same key is executed once."} if keyed else {}
    if prefer:
        headers["Prefer"] = prefer
    extra: dict[str, Any] = {"parameters": [_parameter(name, "header", text) for name, text in headers.items()]}
    if model is not None:
        content = {"schema": _ref(model), "example": EXAMPLES[model]}
        kinds = (FORM, MULTIPART, JSON) if forms else (JSON,)
        extra["requestBody"] = {"required": model not in MAY_BE_EMPTY, "content": dict.fromkeys(kinds, content)}
    return extra


def preference(text: str) -> dict[str, Any]:
    """Document what a reading endpoint knows of `Prefer`."""
    return {"parameters": [_parameter("Prefer", "header", text)]}


def query(model: type[BaseModel]) -> dict[str, Any]:
    """Document the parameters of a listing's query."""
    described = {field.alias or name: field.description or "" for name, field in model.model_fields.items()}
    return {"parameters": [_parameter(name, "query", text) for name, text in described.items()]}


def install(app: FastAPI, scopes: Mapping[tuple[str, str], list[str]]) -> None:
    """Make the app's OpenAPI document from its routes and our shapes, when it is first read. `scopes`: what is required
    of who asks, by address and method, where it is.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, scopes)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's own way to extend the document


def _document(app: FastAPI, scopes: Mapping[tuple[str, str], list[str]]) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    mode: Literal["validation"] = "validation"
    shapes: list[Any] = [(shape.__name__, mode, TypeAdapter(shape)) for shape in _shapes.values()]
    _, definitions = TypeAdapter.json_schemas(shapes, ref_template="#/components/schemas/{model}")
    document.setdefault("components", {})["schemas"] = definitions["$defs"]
    document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    for operations in document["paths"].values():
        for operation in operations.values():
            fallback = operation["responses"].get("422", {}).get("content", {}).get(JSON)
            if fallback is not None:  # FastAPI's own validation answer, which we never send
                del operation["responses"]["422"]
    for (path, method), required in scopes.items():
        document["paths"][path][method.lower()] |= {"security": [{"bearer": []}], "x-scopes": required}
    return document


def _ref(shape: type) -> dict[str, str]:
    """Refer to the schema of a type, which the document describes from now on."""
    _shapes[shape.__name__] = shape
    return {"$ref": f"#/components/schemas/{shape.__name__}"}


def _either(text: str, value: dict[str, Any]) -> dict[str, Any]:
    schema = {"type": "object", "properties": {key: {"type": "string"} for key in value}}
    return {
        "text/plain": {"schema": {"type": "string"}, "example": text},
        JSON: {"schema": schema, "example": value},
    }


def _parameter(name: str, where: str, description: str) -> dict[str, Any]:
    return {"name": name, "in": where, "required": False, "description": description, "schema": {"type": "string"}}


def _example(cls: type[DataManagerError]) -> DataManagerError:
    if cls is errors.InvalidRequest:
        return errors.InvalidRequest("machine: Field required", {"machine": "Field required"})
    if cls is errors.UnknownMachine:
        return errors.UnknownMachine("daint", ["archer2", "cirrus"])
    return cls(f"(what happened, such as: {(cls.__doc__ or cls.code).strip()})")
