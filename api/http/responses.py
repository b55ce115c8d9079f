"""Responses: bare text for old clients, JSON for those who prefer it, views of rows; and what `Prefer` asks
(RFC 7240).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar
from uuid import UUID

import orjson
from starlette.requests import Request
from starlette.responses import Response

V = TypeVar("V")

OMIT: Any = object()
"""The value of a key that a view does not have this time."""

_QUALITY = re.compile(r"(?:0(?:\.\d{0,3})?|1(?:\.0{0,3})?)")
_WAIT_MAX = 86_400  # seconds


def prefers_json(accept: str) -> bool:
    """Say whether an Accept header (RFC 9110, 12.5.1) ranks JSON above plain text; a tie is text."""
    ranges = dict(_ranges(accept))

    def quality(kind: str, subtype: str) -> float:
        for name in (f"{kind}/{subtype}", f"{kind}/*", "*/*"):
            if name in ranges:
                return ranges[name]
        return 0.0

    return quality("application", "json") > quality("text", "plain")


def _ranges(accept: str) -> list[tuple[str, float]]:
    found = []
    for part in accept.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() == "q":
                weight = float(value) if _QUALITY.fullmatch(value.strip()) else 0.0
        if name:
            found.append((name, weight))
    return found


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a client's `Prefer` headers ask; `wait` in seconds. Unknown and malformed ones are ignored (RFC 7240, 2)."""

    respond_async: bool = False
    wait: float | None = None

    @property
    def patience(self) -> float | None:
        """Seconds that the client waits for the end; None for ever."""
        if self.wait is not None:
            return self.wait
        return 0.0 if self.respond_async else None

    @property
    def applied(self) -> str:
        """The `Preference-Applied` header's value."""
        parts = ["respond-async"] if self.respond_async else []
        if self.wait is not None:
            parts.append(f"wait={self.wait:g}")
        return ", ".join(parts)


def preferences(request: Request) -> Preferences:
    """Read the `Prefer` headers; of a preference that comes twice the first counts (RFC 7240, 2)."""
    named: dict[str, str] = {}
    for header in request.headers.getlist("prefer"):
        for part in header.split(","):
            name, _, value = part.partition(";")[0].partition("=")
            named.setdefault(name.strip().lower(), value.strip().strip('"'))
    wait = named.get("wait", "")
    seconds = float(min(int(wait[:9]), _WAIT_MAX)) if wait.isascii() and wait.isdecimal() else None
    return Preferences("respond-async" in named, seconds)


def object_answer(request: Request, object_id: UUID, status: int = 201) -> Response:
    """Answer with an object's identifier."""
    headers = {"Location": f"/DM/info/{object_id}"}
    return _answer(request, str(object_id), {"uuid": str(object_id)}, status, headers)


def message_answer(request: Request, object_id: UUID | None, message: str) -> Response:
    """Answer with a message about an object."""
    return _answer(request, message, {"uuid": str(object_id) if object_id else None, "message": message}, 200, {})


def task_answer(request: Request, task: UUID, status: int, applied: str = "") -> Response:
    """Answer with a task's identifier and where its status is."""
    where = f"/DM/async/status/{task}"
    headers = {"Location": where}
    if applied:
        headers["Preference-Applied"] = applied
    return _answer(request, str(task), {"task": str(task), "status_url": where}, status, headers)


def view_of(shape: type[V], row: object, **values: Any) -> V:
    """Return what clients see of a row: each key of the typed dictionary `shape`, from `values` (none for OMIT) or else
    from the row's column of that name. Identifiers and times become texts when they are sent.
    """
    keys = [key for key in shape.__annotations__ if values.get(key) is not OMIT]
    view: Any = {key: values[key] if key in values else getattr(row, key) for key in keys}
    shown: V = view
    return shown


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Answer with JSON, whatever the client prefers."""
    sent = dict(headers or {})
    return Response(orjson.dumps(value), status_code=status, headers=sent, media_type="application/json")


def _answer(request: Request, text: str, value: dict[str, Any], status: int, headers: dict[str, str]) -> Response:
    headers["Vary"] = "Accept"
    if prefers_json(",".join(request.headers.getlist("accept"))):
        return json_response(value, status, headers)
    return Response(text, status_code=status, headers=headers, media_type="text/plain")
