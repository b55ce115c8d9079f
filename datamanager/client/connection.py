"""Requests to the REST API: repeated when the connection breaks, and errors as they were in the service."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote, urljoin, urlsplit
from uuid import UUID, uuid4

import requests
from pydantic import BaseModel, SecretStr

from datamanager.client.bearer import PLACES, BearerAuth, find_token, require_safe
from datamanager.errors import (
    CatalogueFull,
    DataManagerError,
    DestinationExists,
    InternalError,
    InvalidRequest,
    NotAuthenticated,
    RegisteredSizeMismatch,
    ServiceError,
    TransportTimeout,
    by_code,
)
from datamanager.listening import is_loopback

DEFAULT_URL = "http://127.0.0.1:5000"
WAIT = 30  # seconds that one request waits for a transfer
ATTEMPTS = 3
PAUSE = 0.5  # seconds before a request whose connection broke is repeated

POLL_MIN, POLL_MAX = 0.05, 2.0  # seconds between two requests for a status

M = TypeVar("M", bound=BaseModel)
Filters = Mapping[str, str | int]


def at(*parts: object) -> str:
    """Return the path of an endpoint; what the caller gives is quoted."""
    return "/".join(("DM", *(quote(str(part), safe="") for part in parts)))


class RestConnection:
    """The connection to one service; not to be shared between threads. `timeout` in seconds is for one answer.

    `ca_file` has the authorities (PEM) that an https service is verified with; if not given, the system's are.
    `token`: a service token, or a bearer token of the service's issuer; if not given, DM_TOKEN, else, for a service on
    this host, the file admin-token in DM_HOME. It is sent to other hosts by https only.

    Every request may raise ServiceError (it does not answer) and what the service itself raises.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float = 30.0,
        token: str | None = None,
        ca_file: Path | None = None,
    ) -> None:
        """Raises: SettingsError when a token would be sent to another host without TLS."""
        self._base = f"{url.rstrip('/')}/"
        self._timeout = timeout
        self._session = requests.Session()
        self._session.headers["Accept"] = "application/json"
        self._verify = authorities(ca_file)
        bearer = find_token(url) if token is None else require_safe(SecretStr(token), url)
        self._session.auth = None if bearer is None else BearerAuth(bearer)
        # no proxy stands between a host and itself
        self._session.trust_env = not is_loopback(urlsplit(url).hostname or "")

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _get(self, shape: type[M], path: str, query: Filters | None = None) -> M:
        return shape.model_validate(self._read(path, query))

    def _ask(self, shape: type[M], method: str, path: str, fields: Mapping[str, Any] | None = None) -> M:
        return shape.model_validate(self._write(method, path, fields))

    def _list(self, shape: type[M], path: str, query: Filters) -> Iterator[M]:
        """Yield what a listing has, page by page."""
        for page in self._pages(path, query):
            yield from map(shape.model_validate, page)

    def _pages(self, path: str, query: Filters | None = None) -> Iterator[list[dict[str, Any]]]:
        """Yield the pages of a listing."""
        answer = self._send("GET", path, params=query)
        while True:
            yield answer.json()
            following = answer.links.get("next")
            if following is None:
                return
            answer = self._send("GET", urljoin(answer.url, following["url"]))

    def _until(self, get: Callable[[], M], ended: Callable[[M], bool], what: str, timeout: float | None = None) -> M:
        """Return what `get` returns once it has ended. Raises: TransportTimeout after `timeout` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        pause = POLL_MIN
        while not ended(found := get()):
            if deadline is not None and time.monotonic() >= deadline:
                raise TransportTimeout(f"{what} has not ended within {timeout:g} s; it continues")
            time.sleep(pause)
            pause = min(pause * 1.5, POLL_MAX)
        return found

    def _read(self, path: str, query: Filters | None = None, prefer: str | None = None) -> dict[str, Any]:
        headers = {"Prefer": prefer} if prefer else None
        answer: dict[str, Any] = self._send("GET", path, params=query, headers=headers).json()
        return answer

    def _write(
        self, method: str, path: str, fields: Mapping[str, Any] | None = None, prefer: str | None = None
    ) -> dict[str, Any]:
        """Send fields under a key of their own. None is a value in a PATCH, elsewhere the field's default."""
        given = {
            name: _plain(value) for name, value in (fields or {}).items() if value is not None or method == "PATCH"
        }
        headers = {"Idempotency-Key": str(uuid4()), **({"Prefer": prefer} if prefer else {})}
        answer: dict[str, Any] = self._send(method, path, json=given, headers=headers).json()
        return answer

    def _send(self, method: str, path: str, **options: Any) -> requests.Response:
        url = urljoin(self._base, path)
        if urlsplit(url)[:2] != urlsplit(self._base)[:2]:  # of a list's next page: the token must not go there
            raise ServiceError(f"the Data Manager at {self._base} refers to another address")
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answer = self._session.request(
                    method, url, timeout=(5, self._timeout + WAIT), verify=self._verify, **options
                )
            except requests.RequestException as exc:
                if attempt == ATTEMPTS or not isinstance(exc, requests.ConnectionError | requests.Timeout):
                    raise ServiceError(f"the Data Manager at {self._base} {_why(exc)}") from exc
                time.sleep(PAUSE)
                continue
            if answer.ok:
                return answer
            error = problem_error(answer)
            if isinstance(error, NotAuthenticated) and self._session.auth is None:
                raise NotAuthenticated(f"the Data Manager at {self._base} needs a token: {PLACES}") from error
            raise error
        raise AssertionError("the last attempt returns or raises")


def authorities(ca_file: Path | None) -> str | bool:
    """Return what verifies a service's certificate: the file, else the system's authorities, else those of `requests`.

    A file that is named in REQUESTS_CA_BUNDLE is not asked.
    """
    if ca_file is not None:
        return str(ca_file)
    paths = ssl.get_default_verify_paths()
    return paths.cafile or paths.capath or True


def _why(error: requests.RequestException) -> str:
    if isinstance(error, requests.exceptions.SSLError):
        return "has a certificate that is not trusted (DM_CA_FILE names the file of its authority)"
    return "does not answer"


def _plain(value: Any) -> Any:
    """Write times as JSON has them."""
    if isinstance(value, datetime):
        return value.isoformat()
    return f"PT{value.total_seconds():f}S" if isinstance(value, timedelta) else value


def problem_error(answer: requests.Response) -> DataManagerError:
    """Rebuild the error that a problem document (RFC 9457) describes, retryable or not as it says.

    An answer that is none (a proxy's page, say) is an InternalError that names the status.
    """
    try:
        document = answer.json()
        code, detail = str(document["code"]), str(document["detail"])
    except (ValueError, KeyError, TypeError):
        return InternalError(f"{answer.url} answered {answer.status_code} {answer.reason}")
    retryable = document.get("retryable")
    retryable = None if retryable is None else bool(retryable)
    if code == InvalidRequest.code:
        fields = {item["field"]: item["detail"] for item in document.get("errors", ())}
        return InvalidRequest(detail, fields, retryable=retryable)
    if code == RegisteredSizeMismatch.code and answer.status_code == 422:  # the code's other owner is a transfer's
        return RegisteredSizeMismatch(detail, retryable=retryable)
    if code == DestinationExists.code:
        known = [(name, UUID(document[name])) for name in ("object", "task") if name in document]
        return DestinationExists(detail, *known[:1], retryable=retryable)
    if code == CatalogueFull.code and retryable:  # the code's other owner is a machine's
        return CatalogueFull(detail)
    return by_code(code, detail, retryable=retryable)
