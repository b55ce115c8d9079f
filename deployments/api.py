"""The API's process, `python -m deployments.api`: settings are read, the parts put together, then it serves."""

from __future__ import annotations

import os
import signal
import socket
import sys
from functools import partial

import uvicorn
from fastapi import FastAPI

from api.app import Task, create_app
from api.context import Context, make_context
from datamanager.errors import DataManagerError
from datamanager.logs import configure_logging
from datamanager.messaging.broker import Broker
from datamanager.sealing import Sealer
from datamanager.settings import Settings, load_settings
from deployments.amqp.relay import Relay
from deployments.client_connections import ClientConnection, connections_allowed
from deployments.composition import Runtime, open_runtime, spare_what_stays, tell_missing
from deployments.tls_handshakes import ServerCertificate, TlsHandshake
from deployments.trail_linking import link_trail, tell_refusals
from models.access.logins import token_key

POOL = 10  # connections of the catalogue, and twice as many more at peaks; api.context.ThreadLimits stay below that
STOP_PATIENCE = 5
"""Seconds that open requests have to end at a stop; who waits for a transfer then asks for its status."""


def main() -> int:
    """Serve until SIGTERM or SIGINT; return the exit code. What stops the start is one line on standard error."""
    os.umask(0o077)
    try:
        settings = load_settings()
        certificate = certificate_of(settings)
        runtime = open_runtime(settings, pool_size=POOL)
        app = make_app(runtime, *([] if certificate is None else [certificate.watch]))
    except DataManagerError as exc:
        sys.stderr.write(f"dm api: {exc.detail}\n")
        return 2
    configure_logging()
    tell_missing(runtime.machines)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    connections, backlog = connections_allowed(settings.connections, len(runtime.machines))
    connection = ClientConnection.limited(connections, settings.client_timeout)
    spare_what_stays()
    try:
        uvicorn.run(
            app,
            host=settings.host,
            port=settings.port,
            http=connection if certificate is None else TlsHandshake.before(connection, certificate),
            backlog=backlog,
            log_config=None,  # ours
            access_log=False,  # api.http.middleware writes a line a request
            server_header=False,
            proxy_headers=False,
            ws="none",
            timeout_graceful_shutdown=STOP_PATIENCE,
        )
    finally:
        runtime.close()
    return 0


def certificate_of(settings: Settings) -> ServerCertificate | None:
    """Return the API's certificate; None where it serves http. Raises: SettingsError."""
    if settings.tls_cert is None or settings.tls_key is None:
        return None
    return ServerCertificate(settings.tls_cert, settings.tls_key)


def make_app(runtime: Runtime, *alongside: Task) -> FastAPI:
    """Make the API over a runtime, and what runs as long as it is served: `alongside`, and with a broker configured the
    relay of the outbox.

    Raises: SettingsError, SecretsUnreadable (the key of tokens).
    """
    settings, machines, database = runtime.settings, runtime.machines, runtime.database
    if settings.auth == "required":
        token_key(Sealer.of(settings))
    if settings.amqp_url is None:
        context = make_context(settings, machines, database, runtime.storages)
        return create_app(context, [*alongside, *_beside(context)])
    broker = Broker(settings.amqp_url.get_secret_value(), name="data-manager api")
    relay = Relay(database, broker, holder=f"api-{socket.gethostname()}-{os.getpid()}")
    context = make_context(settings, machines, database, runtime.storages, notify_relay=relay.notify)

    async def relaying() -> None:
        try:
            await relay.run()
        finally:
            await relay.aclose()
            await broker.close()

    return create_app(context, [*alongside, relaying, *_beside(context)])


def _beside(context: Context) -> list[Task]:
    """Return what each process of the API does for the audit trail."""
    return [partial(link_trail, context.database), partial(tell_refusals, context.database, context.refusals)]


def _leave(_signal: int, _frame: object) -> None:
    """End in order: uvicorn raises the signal again when it has stopped, and the connections are yet to be closed."""
    raise SystemExit(0)


if __name__ == "__main__":
    sys.exit(main())
