"""Objects: look up, list."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from itertools import islice

import orjson
from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.context import Context, In
from api.http import openapi
from api.http.ids import object_id_of
from api.http.query import page_response
from api.http.responses import json_response
from api.objects.listing import ObjectQuery, selection_of
from api.objects.views import ObjectView, object_view
from datamanager import errors
from models.database import Database
from models.objects.catalogue import get_object, select_objects, stream_all

CHUNK = 200  # objects sent at once

router = APIRouter(prefix="/DM", tags=["objects"], default_response_class=Response)


@router.get(
    "/info",
    summary="List objects",
    responses=openapi.json_answer(ObjectView, "All objects, or one page.", errors.InvalidRequest, many=True),
    openapi_extra=openapi.query(ObjectQuery),
)
@router.get("/info/", include_in_schema=False)
async def list_objects(request: Request, context: In) -> Response:
    """List every object, DELETED ones included, oldest first: streamed, as one snapshot of the catalogue.

    With any parameter: one page of matching objects, and a `Link` header with `rel="next"` while there is more.
    """
    items = request.query_params.multi_items()
    if not items:
        return _Everything(context)
    selection = selection_of(items, context.machines)
    rows, cursor = await context.reading(lambda session: select_objects(session, selection))
    return page_response("/DM/info", items, [object_view(row) for row in rows], cursor)


@router.get(
    "/info/{uuid}",
    summary="Show an object",
    responses=openapi.json_answer(ObjectView, "The object.", errors.ObjectNotFound),
)
async def show_object(uuid: str, context: In) -> Response:
    """Show an object."""
    object_id = object_id_of(uuid)
    row = await context.reading(lambda session: get_object(session, object_id))
    return json_response(object_view(row))


class _Everything(Response):
    """All objects as one JSON array, streamed.

    The first piece is read before the answer begins, so a catalogue that is away is a clean 503. A client that goes
    away ends the reading; slow ones share a few of the catalogue's connections among themselves.
    """

    def __init__(self, context: Context) -> None:
        super().__init__()
        self.context = context

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        async with self.context.limits.streams:
            pieces = _pieces(self.context.database)
            try:
                first = await self._next(pieces)
                stream = StreamingResponse(self._rest(first, pieces), media_type="application/json")
                await stream(scope, receive, send)
            finally:
                with CancelScope(shield=True):
                    await run_sync(pieces.close)

    async def _rest(self, piece: bytes, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        while piece:
            yield piece
            piece = await self._next(pieces)

    async def _next(self, pieces: Iterator[bytes]) -> bytes:
        return await run_sync(next, pieces, b"", limiter=self.context.limits.readers)


def _pieces(database: Database) -> Generator[bytes, None, None]:
    """Yield the JSON array of all objects in pieces; one snapshot, memory for one chunk."""
    with database.read() as session:
        rows = stream_all(session)
        opening = b"["
        while chunk := [orjson.dumps(object_view(row)) for row in islice(rows, CHUNK)]:
            yield opening + b",".join(chunk)
            opening = b","
        yield b"[]" if opening == b"[" else b"]"
