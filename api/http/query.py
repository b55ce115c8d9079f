"""Queries of listings: pydantic models, strict about every name and value; and the page that answers one.

A field's description documents its parameter; its alias is the parameter's name where that is no identifier.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, TypeVar
from urllib.parse import urlencode

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from datamanager.domain.fields import NAME_SHOWN, read_time, unknown_name
from datamanager.domain.requests import NAMED_MAX
from datamanager.errors import InvalidRequest
from models.core.cursors import PAGE_BYTES, Rendering

Q = TypeVar("Q", bound="Query")
Parameters = Iterable[tuple[str, str]]

_CURSOR = "End of the previous page, from its `Link` header."


class Query(BaseModel):
    """The parameters of one listing."""

    model_config = ConfigDict(frozen=True)


Time = Annotated[datetime, BeforeValidator(read_time)]
Cursor = Annotated[str | None, Field(description=_CURSOR)]


def one_of(members: Iterable[StrEnum], wanted: str = "") -> BeforeValidator:
    """Read a member of an enum, in whatever case; `wanted` is the error's text."""
    known = {member.value.lower(): member for member in members}
    text = wanted or f"must be one of {', '.join(known.values())}"

    def read(value: str) -> StrEnum:
        if value.lower() not in known:
            raise ValueError(text)
        return known[value.lower()]

    return BeforeValidator(read)


def number(low: int, high: int, wanted: str = "") -> BeforeValidator:
    """Read a decimal number of at most nine digits; `wanted` is the error's text."""

    def read(value: str) -> int:
        if not (value.isascii() and value.isdecimal() and len(value) <= 9 and low <= int(value) <= high):
            raise ValueError(wanted or f"must be a number from {low} to {high}")
        return int(value)

    return BeforeValidator(read)


def choice(kind: type[StrEnum]) -> Any:
    """Return the field of a member of an enum."""
    return Field(None, description=f"One of {', '.join(kind)}.")


def page_size(things: str, default: int, most: int) -> Any:
    """Return the field of how many things a page has."""
    return Field(default, description=f"{things} in a page, 1 to {most}; default {default}.")


Position = Annotated[int, number(0, 10**9, "not one that this listing returned"), Field(description=_CURSOR)]
"""The number of the row that a page begins after."""


def read_query(given: Parameters, model: type[Q], wrong: dict[str, str] | None = None, **context: Any) -> Q:
    """Read the parameters of a listing; `wrong` are those found wrong so far, `context` is for the model's validators.

    Raises: InvalidRequest, which names each parameter that is unknown, wrong or given twice.
    """
    wrong = dict(wrong or {})
    known = [field.alias or name for name, field in model.model_fields.items()]
    values: dict[str, str] = {}
    for name, value in given:
        if name not in known:
            wrong[name[:NAME_SHOWN]] = unknown_name(name, known)
            if len(wrong) >= NAMED_MAX:
                break
        elif name in values or name in wrong:
            wrong[name] = "may be given once"
        elif "\0" in value:
            wrong[name] = "must not contain a NUL character"
        else:
            values[name] = value
    try:
        query = model.model_validate(values, context=context)
    except ValidationError as exc:
        for fault in exc.errors(include_url=False, include_input=False, include_context=False):
            wrong.setdefault(str(fault["loc"][0]), fault["msg"].removeprefix("Value error, "))
    if wrong:
        raise InvalidRequest.of(wrong)
    return query


def rendered(view: Callable[[Any], Any], most: int = PAGE_BYTES) -> Rendering:
    """Return how a listing shows rows: each as the JSON of its view, made while the rows are read, in their thread."""
    return Rendering(lambda row: orjson.dumps(view(row)), lambda text: len(text) + 1, most)


async def refuse_unread_query(request: Request) -> None:
    """Refuse parameters in the address of an endpoint that reads none there: fields belong in the body. A dependency of
    routers; which endpoints read a query their documentation says (`openapi.query`).

    Raises: InvalidRequest, which names each.
    """
    documented = getattr(request.scope["route"], "openapi_extra", None) or {}
    if not any(one["in"] == "query" for one in documented.get("parameters", ())):
        unread = [name[:NAME_SHOWN] for name in request.query_params][:NAMED_MAX]
        if unread:
            why = "unknown: this address takes no parameters; the fields of a request are sent in its body"
            raise InvalidRequest.of(dict.fromkeys(unread, why))


def page_response(path: str, given: Parameters, texts: Sequence[bytes], cursor: object | None) -> Response:
    """Answer with one page of JSON texts; a `Link` header repeats the query with the cursor of the next page, if there
    is one.
    """
    headers = {}
    if cursor is not None:
        query = urlencode([*((name, value) for name, value in given if name != "cursor"), ("cursor", cursor)])
        headers["Link"] = f'<{path}?{query}>; rel="next"'
    return Response(b"[" + b",".join(texts) + b"]", headers=headers, media_type="application/json")
