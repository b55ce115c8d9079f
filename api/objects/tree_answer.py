"""The files of a tree are registered part by part, and the answer grows with them.

Each part is a transaction of its own: others write between two of them, and what is registered stays so, whatever
happens later. The answer says what is: when a part fails, it ends with the error and the number of files that are left.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import orjson
import structlog
from sqlalchemy.orm import Session
from starlette.responses import Response, StreamingResponse

from api.context import Context
from api.http.problems import document_response, problem_of
from api.http.responses import json_response
from api.objects.views import TreeFileView
from datamanager.domain.requests import TreeRequest
from datamanager.engine.inspection.directory_walk import Walk
from datamanager.errors import DataManagerError, InternalError
from models.database import LET_OTHERS
from models.objects.bulk_claims import chunks
from models.objects.catalogue import FoundFile, NewRow, register_files

AT_ONCE = 500
"""Files that are registered in one transaction: SQLite's one writer is held for some 30 ms."""
SHORTEST_PAUSE = 0.04
"""Seconds between two transactions at least, on SQLite; see `pause_after`."""

log = structlog.get_logger(__name__)


class TreeRegistration:
    """The registration of a walked tree, once. `known`: how many further files of it are objects under other names.
    `request_id` is what an error of it names.
    """

    def __init__(
        self, context: Context, fields: TreeRequest, files: Sequence[FoundFile], walk: Walk, request_id: str, known: int
    ) -> None:
        self._context = context
        self._fields = fields
        self._files = files
        self._walk = walk
        self._request_id = request_id
        self._known = known
        self._seen = self._registered = 0
        self._error: DataManagerError | None = None

    async def stream(self) -> Response:
        """Answer with what is registered so far, and go on while it is read. A client that goes away ends it after the
        part under way. Raises: what the first part raises; nothing is registered then.
        """
        parts = self._parts()
        first: list[TreeFileView] = await anext(parts, [])
        return StreamingResponse(self._pieces(first, parts), status_code=201, media_type="application/json")

    async def whole(self) -> Response:
        """Register all of it, then answer; when a part failed, with its problem and what is registered. Raises: as
        `stream`.
        """
        objects = [view async for part in self._parts() for view in part]
        result = {"objects": objects, **self._counts()}
        if self._error is None:
            return json_response(result, 201)
        return document_response({**self._problem(self._error), **result})

    async def _parts(self) -> AsyncGenerator[list[TreeFileView], None]:
        """Yield the new objects of each part; end with `_error` set when one that is not the first fails."""
        held = 0.0
        for some in chunks(self._files, AT_ONCE):
            if self._seen and not self._context.database.is_postgresql:
                await asyncio.sleep(pause_after(held))
            try:
                rows, begun = await self._context.writing(partial(_register, files=some, request=self._fields))
            except Exception as error:  # whatever it is: the answer says what was registered before it
                if not self._seen:
                    raise
                if not isinstance(error, DataManagerError):
                    log.exception("tree_registration_failed", machine=self._fields.machine, path=self._fields.path)
                self._error = error if isinstance(error, DataManagerError) else InternalError("a part failed")
                return
            held = time.monotonic() - begun
            self._context.notify_relay()
            self._seen += len(some)
            self._registered += len(rows)
            yield [
                {"uuid": row.id, "path": row.path, "filename": row.place.name, "size": row.facts.size} for row in rows
            ]

    async def _pieces(
        self, first: list[TreeFileView], parts: AsyncGenerator[list[TreeFileView], None]
    ) -> AsyncIterator[bytes]:
        """Yield the answer in pieces of JSON."""
        async with aclosing(parts):
            yield b'{"objects":[' + _members(first)
            separator = b"," if first else b""
            async for part in parts:
                if part:
                    yield separator + _members(part)
                    separator = b","
        end: dict[str, Any] = dict(self._counts())
        if self._error is not None:
            end["error"] = self._problem(self._error)
        yield b"]," + orjson.dumps(end)[1:]

    def _problem(self, error: DataManagerError) -> dict[str, Any]:
        problem = problem_of(error, self._request_id)
        done = f"{self._seen} of {len(self._files)} files are registered; the same request registers the rest"
        return {**problem, "detail": f"{problem['detail']}: {done}"}

    def _counts(self) -> dict[str, int]:
        counts = {"registered": self._registered, "already": self._known + self._seen - self._registered}
        counts |= {"skipped": self._walk.skipped, "unnameable": self._walk.unnameable}
        return counts if self._error is None else counts | {"left": len(self._files) - self._seen}


def pause_after(held: float) -> float:
    """Return the seconds for which SQLite's writer is left to other processes after a transaction of `held` seconds.

    SQLite looks for its turn at growing intervals: at most 25 ms in the first 128 ms of a wait, later up to 100 ms (its
    busy handler). So who began to wait within the last transaction finds its turn in the pause behind it.
    """
    return min(LET_OTHERS, max(SHORTEST_PAUSE, held))


def _register(session: Session, files: Sequence[FoundFile], request: TreeRequest) -> tuple[list[NewRow], float]:
    """Enter a part; return its new objects, and the monotonic time at which its transaction began."""
    begun = time.monotonic()
    return register_files(session, files, request, None), begun


def _members(views: list[TreeFileView]) -> bytes:
    return orjson.dumps(views)[1:-1]
