"""The embedded Prefect server: Prefect's own application, and in front of it what a user's own host needs.

- Prefect checks neither Host nor Origin, so any web page that a user reads could start our flows. Here such requests
  are refused, as on our own API.
- On SQLite a transaction that reads before it writes fails at once when another one commits in between, whatever the
  busy timeout. Prefect answers 503 then, and its client waits 2 s and more. So Prefect's writing transactions begin
  IMMEDIATE here, as our own do, and wait for each other (docs/adr/0005).
- Its schedules get no runs on SQLAlchemy 2.1 (`deployments.prefect_schedules`).
"""

from __future__ import annotations

import json
import sys

import uvicorn
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.host_origin import objection
from datamanager.errors import DataManagerError
from datamanager.settings import Settings, load_settings
from deployments.orchestrator.environment import run_with, server_environment

KEEP_ALIVE = 60  # seconds


class InFront:
    """ASGI middleware: refuses requests of foreign pages."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refused = objection(Headers(scope=scope), self.settings)
        if refused is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": refused.detail})
        else:
            await _refuse(send, refused)


async def _refuse(send: Send, error: DataManagerError) -> None:
    body = json.dumps({"detail": error.detail, "code": error.code}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def main() -> int:
    """Serve Prefect's API and UI on loopback until SIGTERM; return the exit code."""
    try:
        settings = load_settings()
        run_with(server_environment(settings), "deployments.orchestrator.server", sys.argv[1:])
    except DataManagerError as exc:
        sys.stderr.write(f"prefect server: {exc.detail}\n")
        return 2
    from prefect.server.api.server import create_app
    from prefect.server.database.dependencies import temporary_database_config
    from prefect.settings import get_current_settings

    from deployments.orchestrator.server_sqlite import WritesImmediately
    from deployments.prefect_schedules import let_schedules_run

    url = get_current_settings().server.database.connection_url
    if url is None:
        raise RuntimeError("Prefect names no database for its server")
    let_schedules_run()
    with temporary_database_config(WritesImmediately(connection_url=url.get_secret_value())):
        uvicorn.run(
            InFront(create_app(final=True), settings),
            host="127.0.0.1",
            port=settings.prefect_port,
            timeout_keep_alive=KEEP_ALIVE,
            log_level="warning",
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
