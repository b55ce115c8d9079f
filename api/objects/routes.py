"""Objects: look up, list, register."""

from __future__ import annotations

from collections.abc import AsyncIterator, Generator, Iterator
from itertools import islice
from urllib.parse import urlencode
from uuid import UUID

import orjson
from anyio import CancelScope
from anyio.to_thread import run_sync
from fastapi import APIRouter
from sqlalchemy.orm import Session
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from api.context import Context, In
from api.http import openapi
from api.http.bodies import read_request
from api.http.idempotency import Slot, once
from api.http.ids import object_id_of
from api.http.responses import json_response, object_answer
from api.objects.listing import PARAMETERS, selection_of
from api.objects.register import verify
from api.views import object_view
from datamanager import errors
from datamanager.domain.location import Place
from datamanager.domain.requests import RegisterRequest
from models.database import Database
from models.objects.catalogue import get_object, register_object, select_objects, stream_all

CHUNK = 200  # objects sent at once

router = APIRouter(prefix="/DM", tags=["objects"])

_FILTERS = {
    "parameters": [
        {"name": name, "in": "query", "required": False, "description": text, "schema": {"type": "string"}}
        for name, text in PARAMETERS.items()
    ]
}


@router.get(
    "/info",
    summary="List objects",
    response_class=Response,
    responses=openapi.json_answer("ObjectView", "All objects, or one page.", errors.InvalidRequest, many=True),
    openapi_extra=_FILTERS,
)
@router.get("/info/", include_in_schema=False)
async def list_objects(request: Request, context: In) -> Response:
    """List every object, DELETED ones included, oldest first: streamed, as the catalogue was at one moment.

    With any parameter: one page of what fits, and a `Link` header with `rel="next"` while there is more.
    """
    items = request.query_params.multi_items()
    if not items:
        return _Everything(context)
    selection = selection_of(items, context.machines)
    rows, cursor = await context.reading(lambda session: select_objects(session, selection))
    headers = {}
    if cursor is not None:
        query = urlencode([(name, value) for name, value in items if name != "cursor"] + [("cursor", cursor)])
        headers["Link"] = f'</DM/info?{query}>; rel="next"'
    return json_response([object_view(row) for row in rows], headers=headers)


@router.get(
    "/info/{uuid}",
    summary="Show an object",
    response_class=Response,
    responses=openapi.json_answer("ObjectView", "The object.", errors.ObjectNotFound),
)
async def show_object(uuid: str, context: In) -> Response:
    """Show what the catalogue knows of an object."""
    object_id = object_id_of(uuid)
    row = await context.reading(lambda session: get_object(session, object_id))
    return json_response(object_view(row))


@router.put(
    "/register",
    summary="Register a file",
    status_code=201,
    response_class=Response,
    responses=openapi.object_created(
        *openapi.BODY,
        *openapi.PLACE,
        *openapi.MACHINE,
        errors.RegisteredSizeMismatch,
        errors.SourceMissing,
        errors.SourceChanged,
    ),
    openapi_extra=openapi.body(RegisterRequest),
)
async def register(request: Request, context: In) -> Response:
    """Enter a file that lies on a machine into the catalogue.

    By default (`verify=stat`) the file must exist there and have the `size` given (0, empty or absent: unknown).
    `verify=hash` also records its sha256, `verify=none` believes the request. A machine that can't be reached is no
    obstacle: the object then has `verified: none`.
    """
    fields = await read_request(request, RegisterRequest)

    async def work(slot: Slot) -> Response:
        return object_answer(request, slot.subject or await _register(context, fields, slot))

    return await once(context, request, fields, work)


async def _register(context: Context, fields: RegisterRequest, slot: Slot) -> UUID:
    machine = context.machines[fields.machine]
    place = Place.of(machine, fields.path, fields.filename)
    storage = context.storages.get(machine.name)
    facts, canonical = await context.remotely(lambda: verify(fields, machine, storage, place))

    def enter(session: Session) -> UUID:
        new = register_object(session, fields, place, facts, canonical=canonical)
        slot.attach(session, new)
        return new

    new = await context.writing(enter)
    context.posted()
    return new


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
