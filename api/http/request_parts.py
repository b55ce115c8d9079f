"""The parts of a request: the identifiers in its address, and its body, a form or JSON, read within a limit.
Forms and JSON mean the same. Bodies are UTF-8. Of a field that comes twice the last one counts, in a form as in JSON.
Fields that are not known are ignored, as old clients send some.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, Callable
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl
from uuid import UUID

from anyio.to_thread import run_sync
from python_multipart.multipart import parse_options_header
from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from datamanager.domain.requests import Request as OurRequest
from datamanager.domain.requests import validated
from datamanager.errors import (
    AuditNotFound,
    DataManagerError,
    InvalidRequest,
    MalformedBody,
    ObjectNotFound,
    RetentionRunNotFound,
    ScheduleNotFound,
    TaskNotFound,
    TooLarge,
)

LIMIT = 2**20  # bytes of a body
LARGE_LIMIT = 2**24  # bytes of a batch's: 10,000 items with long paths
FIELDS_MAX = 100
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
JSON = "application/json"

M = TypeVar("M", bound=OurRequest)

_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


async def read_request(request: Request, model: type[M]) -> M:
    """Read the body as `model`. Raises: MalformedBody, TooLarge, InvalidRequest (names each field)."""
    return validated(await read_fields(request), model)


async def read_large_request(request: Request, model: type[M]) -> M:
    """Read a body of up to LARGE_LIMIT bytes as `model`; JSON only, and judged in a thread: it may take a while.

    Raises: MalformedBody, TooLarge, InvalidRequest (names each field).
    """
    kind = parse_options_header(request.headers.get("content-type", ""))[0].decode("latin-1").lower()
    if kind in (FORM, MULTIPART):
        raise InvalidRequest(f"Content-Type: a form cannot express this; send {JSON}", {"Content-Type": JSON})
    fields = await read_fields(request, LARGE_LIMIT)
    return await run_sync(validated, fields, model)


async def read_fields(request: Request, limit: int = LIMIT) -> dict[str, Any]:
    """Read the fields of a body of up to `limit` bytes. Raises: MalformedBody, TooLarge."""
    body, content_type = await _read(request, limit), request.headers.get("content-type", "")
    return await parse_fields(body, content_type)


async def parse_fields(body: bytes, content_type: str) -> dict[str, Any]:
    """Read fields out of a whole body. Raises: MalformedBody."""
    kind_bytes, options = parse_options_header(content_type)
    kind = kind_bytes.decode("latin-1").lower()
    charset = options.get(b"charset", b"utf-8").decode("latin-1").lower()
    if charset not in ("utf-8", "utf8", "us-ascii"):
        raise MalformedBody(f"the body's charset is {charset!r}; only utf-8 is read")
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise MalformedBody("the body is not valid UTF-8") from None
    if not text.strip():
        return {}
    if kind == FORM:
        return _form(text)
    if kind == MULTIPART:
        return await _multipart(body, content_type)
    if kind in ("", JSON) or (kind.startswith("application/") and kind.endswith("+json")):
        return await run_sync(_json, text) if len(body) > LIMIT else _json(text)
    raise MalformedBody(f"the body's type is {kind!r}; send {FORM}, {MULTIPART} or {JSON}")


async def _read(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced[:20]) > limit:
        raise TooLarge(f"the body is limited to {limit} bytes")
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise TooLarge(f"the body is limited to {limit} bytes")
    except ClientDisconnect:
        raise MalformedBody("the connection ended before the body did") from None
    return bytes(body)


def _form(text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        raise MalformedBody(f"the body looks like JSON but is sent as a form; send Content-Type: {JSON}")
    try:
        return dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX))
    except ValueError:
        raise MalformedBody(f"the form can't be read: it is not UTF-8, or has more than {FIELDS_MAX} fields") from None


async def _multipart(body: bytes, content_type: str) -> dict[str, Any]:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    headers = Headers({"content-type": content_type})
    parser = MultiPartParser(headers, stream(), max_files=0, max_fields=FIELDS_MAX, max_part_size=LIMIT)
    try:
        form = await parser.parse()
    except MultiPartException as exc:
        raise MalformedBody(f"the form can't be read (fields are texts, files are not taken): {exc.message}") from exc
    return dict(form.multi_items())


def _json(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise MalformedBody("the JSON is nested too deeply") from None
    except ValueError as exc:
        raise MalformedBody(f"the JSON can't be read: {exc}") from exc
    if not isinstance(value, dict):
        raise MalformedBody("the JSON must be an object with the request's fields")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _reader(thing: str, not_found: type[DataManagerError]) -> Callable[[str], UUID]:
    def read(text: str) -> UUID:
        if not _UUID.fullmatch(text):
            # one that can't exist is one that was not found
            raise not_found(f"no {thing} has the identifier {text[:64]!r}")
        return UUID(text)

    return read


object_id_of = _reader("object", ObjectNotFound)
task_id_of = _reader("task", TaskNotFound)
audit_id_of = _reader("audit", AuditNotFound)
schedule_id_of = _reader("schedule", ScheduleNotFound)
retention_run_id_of = _reader("run of retention", RetentionRunNotFound)
