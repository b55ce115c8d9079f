"""Objects: look up and list, with filters, sorting and pages, strict about every name and value."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Annotated

from anyio.to_thread import run_sync
from fastapi import APIRouter
from pydantic import BeforeValidator, Field, ValidationInfo, field_validator
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.context import Context, In
from api.http import openapi
from api.http.query import (
    Cursor,
    Query,
    Time,
    choice,
    number,
    one_of,
    page_response,
    page_size,
    read_query,
    rendered,
)
from api.http.request_parts import object_id_of
from api.http.responses import json_response
from api.objects.views import ObjectView, object_view
from datamanager import errors
from datamanager.domain.location import normalised_prefix
from datamanager.domain.states import ObjectStatus
from datamanager.errors import PathNotAllowed
from datamanager.machines import Machines
from models.access.visibility import ALL
from models.database import Database
from models.objects.catalogue import get_object
from models.objects.listing import SORTABLE, Selection, every_page, select_objects

PIECE_BYTES = 2**18  # of a stream, read and sent at once
LIMIT_MAX = 10_000
METADATA = "metadata."

router = APIRouter(prefix="/DM", tags=["objects"], default_response_class=Response)
_METADATA_KEY = re.compile(r'[^"\\\x00-\x1f]{1,255}')


def _sort(value: str) -> str:
    if value.removeprefix("-") not in SORTABLE:
        raise ValueError(f"must be one of {', '.join(SORTABLE)}, with '-' in front for descending")
    return value


class ObjectQuery(Query):
    """Which objects, in which order."""

    machine: str | None = Field(None, description="Objects on this machine.")
    group: str | None = Field(None, description="Objects of this group.")
    status: Annotated[ObjectStatus | None, one_of(ObjectStatus)] = choice(ObjectStatus)
    originator: str | None = Field(None, description="Objects that came from here.")
    filename: str | None = Field(None, description="A glob over the file's name: `*` any text, `?` any one character.")
    path: str | None = Field(
        None,
        description="Objects in this directory or below, relative to its machine's base_dir "
        "or (with `machine`) absolute.",
    )
    since: Time | None = Field(
        None, description="Registered at this time or later; RFC 3339 with a zone, such as 2026-01-31T12:00:00Z."
    )
    until: Time | None = Field(None, description="Registered before this time; RFC 3339 with a zone.")
    metadata: dict[str, str] = Field(
        default_factory=dict,
        alias="metadata.KEY",
        description="Objects whose metadata has this text under KEY; may be given several times.",
    )
    sort: Annotated[str, BeforeValidator(_sort)] = Field(
        "date_registered",
        description=f"One of {', '.join(SORTABLE)}; descending with `-` in front. Default date_registered.",
    )
    limit: Annotated[int, number(1, LIMIT_MAX)] = page_size("Objects", 1000, LIMIT_MAX)
    cursor: Cursor = None

    @field_validator("path")
    @classmethod
    def _normalised(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        machines: Machines = (info.context or {})["machines"]
        name = info.data.get("machine") or ""
        # an unknown machine is no error: its objects are still listed
        machine = machines[name] if name in machines else None  # noqa: SIM401 - get raises UnknownMachine
        try:
            return normalised_prefix(machine, value)
        except PathNotAllowed as exc:
            raise ValueError(exc.detail) from None


@router.get(
    "/info",
    summary="List objects",
    responses=openapi.json_answer(
        ObjectView, "All objects, or one page.", errors.InvalidRequest, errors.TooManyStreams, many=True
    ),
    openapi_extra=openapi.query(ObjectQuery),
)
@router.get("/info/", include_in_schema=False, openapi_extra=openapi.query(ObjectQuery))
async def list_objects(request: Request, context: In) -> Response:
    """List every object, DELETED ones included, oldest first: streamed, each as it is when its turn comes. Objects that
    are registered meanwhile are not included.

    With any parameter: one page of matching objects, of 8 MiB at most, and a `Link` header with `rel="next"` while
    there is more. With filters a page may be short, or empty, although there is more: it looks at 100 objects for each
    one wanted.
    """
    items = request.query_params.multi_items()
    if not items:
        return _Everything(context)
    selection = selection_of(items, context.machines)
    shown = rendered(object_view)
    texts, cursor = await context.reading(lambda session: select_objects(session, selection, ALL, shown))
    return page_response("/DM/info", items, texts, cursor)


@router.get(
    "/info/{uuid}",
    summary="Show an object",
    responses=openapi.json_answer(ObjectView, "The object.", errors.ObjectNotFound),
)
async def show_object(uuid: str, context: In) -> Response:
    """Show an object."""
    object_id = object_id_of(uuid)
    row = await context.reading(lambda session: get_object(session, object_id, ALL))
    return json_response(object_view(row))


def selection_of(given: Iterable[tuple[str, str]], machines: Machines) -> Selection:
    """Read query parameters. Raises: InvalidRequest, which names each one that is unknown or wrong."""
    metadata: dict[str, str] = {}
    others: list[tuple[str, str]] = []
    wrong: dict[str, str] = {}
    for name, value in given:
        key = name.removeprefix(METADATA)
        if key == name:
            others.append((name, value))
        elif "\0" in value:
            wrong[name] = "must not contain a NUL character"
        elif key in metadata:
            wrong[name] = "may be given once"
        elif _METADATA_KEY.fullmatch(key):
            metadata[key] = value
        else:
            wrong[name] = "a key has 1 to 255 characters without quotes, backslashes and control characters"
    query = read_query(others, ObjectQuery, wrong, machines=machines)
    return Selection(path_prefix=query.path, metadata=metadata, **query.model_dump(exclude={"path", "metadata"}))


class _Everything(Response):
    """All objects as one JSON array, streamed.

    The first piece is read before the answer begins, so a catalogue that is away is a clean 503. A slow client holds
    one piece in memory and nothing of the catalogue: each piece is a transaction of its own. How many streams a client
    may have at once is bounded.
    """

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it. Raises: TooManyStreams, CatalogueUnavailable."""
        with self.context.streams.of(scope):
            pieces = _pieces(self.context.database)
            first = await self._next(pieces)
            if scope["state"].get("head"):
                await Response(media_type="application/json")(scope, receive, send)
                return
            stream = StreamingResponse(self._rest(first, pieces), media_type="application/json")
            await stream(scope, receive, send)

    async def _rest(self, piece: bytes, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        while piece:
            yield piece
            piece = await self._next(pieces)

    async def _next(self, pieces: Iterator[bytes]) -> bytes:
        return await run_sync(next, pieces, b"", limiter=self.context.limits.streams)


def _pieces(database: Database) -> Iterator[bytes]:
    """Yield the JSON array of all objects in pieces; memory for one of them."""
    opening = b"["
    for texts in every_page(database, ALL, rendered(object_view, PIECE_BYTES)):
        yield opening + b",".join(texts)
        opening = b","
    yield b"[]" if opening == b"[" else b"]"
