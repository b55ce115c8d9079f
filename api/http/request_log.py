"""Around every request: its identifier, one line in the log, and a plain answer when something of ours breaks."""

from __future__ import annotations

import re
import time
from uuid import uuid4

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.problems import problem_response
from datamanager.errors import InternalError

HEADER = "X-Request-ID"
_SANE = re.compile(r"[A-Za-z0-9._:-]{1,128}")

log = structlog.get_logger("api.access")


class RequestLogMiddleware:
    """ASGI middleware, the outermost one of ours. Never logs bodies, query strings or other headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve the request and log it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = request_id_of(Headers(scope=scope))
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        begun = time.monotonic()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = request_id
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            try:
                await self.app(scope, receive, sending)
            except Exception:  # the last resort: a fault of ours is logged, and never described to the client
                log.exception("request_failed", method=scope["method"], path=scope["path"])
                if status:
                    raise  # the answer has begun: the server cuts the connection, so nobody takes it for whole
                await problem_response(InternalError("unexpected"), request_id)(scope, receive, sending)
            finally:
                milliseconds = round((time.monotonic() - begun) * 1000, 1)
                log.info("request", method=scope["method"], path=scope["path"], status=status, ms=milliseconds)


def request_id_of(headers: Headers) -> str:
    """Return the client's request identifier if it is a sane one, else a new one."""
    given = headers.get(HEADER, "")
    return given if _SANE.fullmatch(given) else str(uuid4())
