"""How our errors look over HTTP: the one table error → status, and RFC 9457 problem openapi.

An error's status is looked up along its MRO, so a new error has its parent's status until it gets a line of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import orjson
from starlette.responses import Response
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from datamanager import errors
from datamanager.errors import DataManagerError, InvalidRequest, by_code, every_error

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = 5  # seconds, for 429 and 503

STATUS: dict[type[DataManagerError], int] = {
    errors.DataManagerError: 500,
    errors.RequestError: 422,
    errors.NotAuthenticated: 401,
    errors.NotAllowed: 403,
    errors.MalformedBody: 400,
    errors.OriginNotAllowed: 403,
    errors.ConnectionNotSecure: 403,
    errors.CsrfTokenMissing: 403,
    errors.NotSupported: 501,
    errors.TooManyStreams: 429,
    errors.QuotaExceeded: 429,
    errors.TooManyRequests: 429,
    errors.CatalogueError: 409,
    errors.ObjectNotFound: 404,
    errors.TaskNotFound: 404,
    errors.RetentionRunNotFound: 404,
    errors.AuditNotFound: 404,
    errors.ScheduleNotFound: 404,
    errors.TokenNotFound: 404,
    errors.ObjectDeleted: 410,
    errors.InvalidRules: 409,
    errors.QueryTooSlow: 504,
    errors.TransportError: 502,
    errors.MachineUnavailable: 503,
    errors.NoLogin: 403,
    errors.TransportTimeout: 504,
    errors.NoSpace: 507,
    errors.TransferError: 502,
    errors.SourceMissing: 409,
    errors.SourceChanged: 409,
    errors.Cancelled: 409,
    errors.TooLarge: 413,
    errors.DeadlineExceeded: 504,
    errors.ServiceError: 503,
    errors.CatalogueFull: 507,
}

# what HTTP itself refuses before one of our endpoints is reached
HTTP_PROBLEMS: dict[int, tuple[str, str]] = {
    400: ("malformed_http", "The request is not valid HTTP"),
    404: ("not_found", "No such endpoint"),
    405: ("method_not_allowed", "The endpoint does not support this method"),
}

_SENTENCE_END = re.compile(r"[.;:](?=\s|$)")


def status_of(error: DataManagerError | type[DataManagerError]) -> int:
    """Return the HTTP status of an error or of a class of errors."""
    cls = error if isinstance(error, type) else type(error)
    return next(STATUS[parent] for parent in cls.__mro__ if parent in STATUS)


def title_of(cls: type[DataManagerError]) -> str:
    """Return the class's sentence: a problem's title is the same for every occurrence (RFC 9457, 3.1.3)."""
    sentence = (cls.__doc__ or cls.code).strip().partition("\n")[0]
    return _SENTENCE_END.split(sentence, maxsplit=1)[0]


def problem_of(error: DataManagerError, request_id: str) -> dict[str, Any]:
    """Describe an error as a problem document. What is a fault of ours is not described to the client."""
    status = status_of(error)
    ours = status == 500
    cls = errors.InternalError if ours else type(error)
    detail = f"internal error; see the log for request {request_id}" if ours else error.detail
    document = _document(cls.code, title_of(cls), status, detail, error.retryable and not ours, request_id)
    if isinstance(error, errors.DestinationExists) and error.holder is not None:
        document[error.holder[0]] = str(error.holder[1])
    if isinstance(error, InvalidRequest) and error.fields:
        document["errors"] = [{"field": name, "detail": what} for name, what in error.fields.items()]
    return document


def problem_response(error: DataManagerError, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with an error; one that says after which wait it may work names that."""
    if error.again is not None:
        headers = {"Retry-After": str(math.ceil(error.again.total_seconds())), **(headers or {})}
    return document_response(problem_of(error, request_id), headers)


def of_this_request(document: str, request_id: str) -> str:
    """Return a stored problem document as an answer to the present request. Its detail may name the first one, whose
    lines of the log tell more.
    """
    return orjson.dumps({**orjson.loads(document), "request_id": request_id}).decode()


def http_problem_of(status: int, detail: str, request_id: str) -> dict[str, Any]:
    """Describe what HTTP refuses by itself: an unknown address, a method that the address does not know."""
    code, title = HTTP_PROBLEMS.get(status, ("http_error", detail))
    return _document(code, title, status, detail, False, request_id)


def http_problem_response(status: int, detail: str, request_id: str, headers: Mapping[str, str] | None) -> Response:
    """Answer with what HTTP refuses by itself."""
    return document_response(http_problem_of(status, detail, request_id), headers)


def _document(code: str, title: str, status: int, detail: str, retryable: bool, request_id: str) -> dict[str, Any]:
    return {
        "type": f"/problems/{code}",  # a URI reference that leads to a description
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "retryable": retryable,
        "request_id": request_id,
    }


class ErrorView(TypedDict):
    """Why a task ended in ERROR."""

    code: str
    detail: str
    retryable: bool


def error_view(code: str | None, detail: str | None) -> ErrorView | None:
    """Show the error that a row has kept, if it has one."""
    if code is None:
        return None
    detail = detail or ""
    return {"code": code, "detail": detail, "retryable": by_code(code, detail).retryable}


def document_response(document: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    """Send a problem document; 429 and 503 say when to come again, 401 how to say who asks (RFC 6750)."""
    sent = dict(headers or {})
    if document["status"] == 401:
        sent.setdefault("WWW-Authenticate", "Bearer")
    if document["status"] in (429, 503):
        sent.setdefault("Retry-After", str(RETRY_AFTER))
    body = orjson.dumps(_presentable(document))
    return Response(body, status_code=int(document["status"]), headers=sent, media_type=MEDIA_TYPE)


def describe_code(code: str) -> dict[str, Any] | None:
    """Describe a problem type by its code; None for a code that we never send."""
    for status, (http_code, title) in HTTP_PROBLEMS.items():
        if code == http_code:
            return {"code": code, "title": title, "status": [status], "retryable": False}
    owners = [cls for cls in every_error() if cls.code == code]
    if not owners:
        return None
    return {
        "code": code,
        "title": title_of(owners[0]),
        "status": sorted({status_of(cls) for cls in owners}),
        "retryable": owners[0].retryable,
    }


def _presentable(value: Any) -> Any:
    """Make texts encodable: a detail may quote a name that is not Unicode (surrogate escapes)."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, Mapping):
        return {_presentable(key): _presentable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_presentable(item) for item in value]
    return value
