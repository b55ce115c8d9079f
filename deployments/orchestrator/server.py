"""The Prefect server, the same wherever one is started: by `dm up`, systemd or compose.

`python -m deployments.orchestrator.server --host … --port …`. It is Prefect's own application, with what it lacks:

- Prefect checks neither Host nor Origin, so any web page that a user reads could start our flows. Here such requests
  are refused, as on our own API, and no other origin is allowed by CORS.
- Prefect copies its UI into its own installation; where that can't be written there is no UI. Here it goes to DM_HOME.
  The page asks for `/api` of the address by which it was opened, so that it works under every name and through tunnels.
- Who comes from another host has to know DM_PREFECT_AUTH (Prefect's own check); without it the server is on loopback.
- Its automations can call any address that a client names. Here they call none.
- It keeps events in memory that its services have not consumed yet, up to 10,000 each, and grows with its runs. Beyond
  DM_PREFECT_MEMORY it ends in an orderly way, to be started again by whoever started it.
- On SQLite, writing transactions queue for each other instead of failing, and a statement is one trip to the thread of
  its connection (docs/adr/0005). PostgreSQL is used where PREFECT_SERVER_DATABASE_CONNECTION_URL names it.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from api.http.middleware import objection
from datamanager.errors import DataManagerError
from datamanager.settings import Settings, load_settings
from deployments.orchestrator.environment import run_with, server_environment

KEEP_ALIVE = 60  # seconds
LOOK_EVERY = 100  # ticks of uvicorn's main loop, ten a second
CLOSE_WITHIN = 5
"""Seconds that requests and WebSockets get when it ends."""


class BoundedServer(uvicorn.Server):
    """A server that ends when its process has more than `most` bytes resident."""

    def __init__(self, config: uvicorn.Config, most: int) -> None:
        super().__init__(config)
        self._most = most

    async def on_tick(self, counter: int) -> bool:
        """Say whether to end; uvicorn asks ten times a second."""
        if counter % LOOK_EVERY == 0 and (resident := resident_bytes()) > self._most:
            sys.stderr.write(
                f"prefect server: {resident >> 20} MiB resident, more than the {self._most >> 20} MiB of "
                "DM_PREFECT_MEMORY; it ends, to be started again\n"
            )
            return True
        return await super().on_tick(counter)


def resident_bytes() -> int:
    """Return the bytes of this process that are in memory (proc(5), statm)."""
    return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


class PrefectGuardMiddleware:
    """ASGI middleware of the Prefect server: refuses requests of foreign pages, also where they open a WebSocket."""

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
            body = json.dumps({"detail": refused.detail, "code": refused.code})
            await Response(body, status_code=403, media_type="application/json")(scope, receive, send)


def main() -> int:
    """Serve Prefect's API and UI until SIGTERM; return the exit code."""
    os.umask(0o077)  # Prefect's database holds parameters and logs: its owner's alone
    try:
        settings = load_settings()
        given = _arguments(settings)
        settings = settings.model_copy(update={"prefect_port": given.port})
        environment = server_environment(settings, given.host)
        run_with(environment, "deployments.orchestrator.server", sys.argv[1:])
    except DataManagerError as exc:
        sys.stderr.write(f"prefect server: {exc.detail}\n")
        return 2
    from prefect.server.api.server import create_app
    from prefect.server.database.dependencies import temporary_database_config
    from prefect.settings import get_current_settings

    from deployments.orchestrator.prefect_private import refuse_calls
    from deployments.orchestrator.server_sqlite import WritesInTurn

    refuse_calls()
    url = get_current_settings().server.database.connection_url
    if url is None:
        raise RuntimeError("Prefect names no database for its server")
    with ExitStack() as stack:
        if url.get_secret_value().startswith("sqlite"):
            stack.enter_context(temporary_database_config(WritesInTurn(connection_url=url.get_secret_value())))
        config = uvicorn.Config(
            PrefectGuardMiddleware(create_app(final=True), _with_own_address(settings)),
            host=given.host,
            port=given.port,
            http="h11",  # what Prefect is tried with; uvicorn would take httptools, which the API has
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=CLOSE_WITHIN,
            log_level="warning",
        )
        server = BoundedServer(config, settings.prefect_memory)
        server.run()
    return 0 if server.started else 3  # as uvicorn by itself


def _arguments(settings: Settings) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="deployments.orchestrator.server", description="Serve Prefect's API and UI.")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=settings.prefect_port, help="default: DM_PREFECT_PORT")
    return parser.parse_args()


def _with_own_address(settings: Settings) -> Settings:
    """Return the settings for the check of Host: movers and API come by the address in DM_PREFECT_API_URL, people by
    that in DM_PREFECT_UI_URL.
    """
    own = (urlsplit(url).hostname or "" for url in (settings.prefect_url, settings.prefect_ui))
    names = (*settings.allowed_hosts, *own)
    return settings.model_copy(update={"allowed_hosts": names, "cors_origins": ()})


if __name__ == "__main__":
    sys.exit(main())
