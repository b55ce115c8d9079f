"""TLS of the API (1.2 and later): its certificate, which may be exchanged while it serves, and the handshakes.

uvicorn makes one context at its start, hands a connection over after its handshake only, and waits a minute for that.
Here each handshake has the context of the files as they are now, the time that a request's head has, and a place among
the connections: one more than these takes the place of the oldest handshake.

The files become a new context, instead of being loaded into the old one: that keeps a certificate for each kind of key,
so a client that prefers the former kind would still get the former certificate.
"""

from __future__ import annotations

import asyncio
import os
import ssl
from pathlib import Path
from typing import Any, ClassVar

import structlog
from anyio.to_thread import run_sync

from datamanager.errors import SettingsError
from datamanager.sealing import is_open
from deployments.client_connections import ClientConnection

LOOK_EVERY = 1.0  # seconds
CLOSE_WITHIN = 5.0
"""Seconds that a client has to confirm the end of a connection."""
FileState = tuple[int, int, int]
"""Inode, bytes and time of change of a file, or of its mode."""

log = structlog.get_logger(__name__)


class ServerCertificate:
    """The certificate and key of a server; `context` is that of the next handshake."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises: SettingsError when a file can't be read, the two are no pair, or others can read the key."""
        self._files = certificate, key
        self._told: str | None = None
        self._state = self._look()
        self.context = self._load()

    async def watch(self) -> None:
        """Load the files again when they have changed, until cancelled.

        What can't be used is logged once and changes nothing: a pair that is half written is whole a moment later.
        """
        while True:
            await asyncio.sleep(LOOK_EVERY)
            await run_sync(self._reload)

    def _reload(self) -> None:
        try:
            if (state := self._look()) == self._state:
                return
            self._state = state
            self.context = self._load()
        except SettingsError as exc:
            if exc.detail != self._told:
                log.warning("certificate_not_loaded", error=exc.detail)
            self._told = exc.detail
            return
        self._told = None
        log.info("certificate_loaded")

    def _look(self) -> tuple[FileState, ...]:
        found = list[FileState]()
        for setting, path in zip(("DM_TLS_CERT", "DM_TLS_KEY"), self._files, strict=True):
            try:
                status = path.stat()
            except OSError as exc:
                raise SettingsError(f"{setting}: {path}: {exc.strerror}") from exc
            found.append((status.st_ino, status.st_size, status.st_ctime_ns))
        return tuple(found)

    def _load(self) -> ssl.SSLContext:
        certificate, key = self._files
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        try:
            status = key.stat()
            if is_open(status.st_mode, status.st_uid, os.geteuid()):
                raise SettingsError(f"DM_TLS_KEY: {key} is accessible to other users: chmod 600")
            context.load_cert_chain(certificate, key, password=_no_password)
        except (OSError, ValueError) as exc:  # ssl.SSLError is an OSError
            why = getattr(exc, "reason", None) or getattr(exc, "strerror", None) or exc
            text = f"{certificate} and {key} are no certificate with its unencrypted key (PEM): {why}"
            raise SettingsError(f"DM_TLS_CERT, DM_TLS_KEY: {text}") from exc
        return context


def _no_password() -> str:
    raise ValueError("the key is encrypted")  # OpenSSL would ask on the terminal


class TlsHandshake(asyncio.Protocol):
    """A connection until its handshake is over. To be used through a class that `before` made."""

    connection: ClassVar[type[ClientConnection]]
    certificate: ClassVar[ServerCertificate]
    under_way: ClassVar[dict[TlsHandshake, None]]
    """Handshakes in the order in which they began."""

    @classmethod
    def before(cls, connection: type[ClientConnection], certificate: ServerCertificate) -> type[TlsHandshake]:
        """Return the class of a server's connections, each of which becomes a `connection`."""
        return type("Handshake", (cls,), {"connection": connection, "certificate": certificate, "under_way": {}})

    def __init__(self, **options: Any) -> None:
        self._options = options
        self._early: list[bytes] = []
        self._lost = False
        self._task: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin the handshake; make room for it where there are too many."""
        transport.pause_reading()
        self._transport = transport
        oldest = next(iter(self.under_way), None)
        present = len(self.under_way) + len(self._options["server_state"].connections)
        if oldest is not None and present >= self.connection.most:
            del self.under_way[oldest]
            oldest.abort()
        self.under_way[self] = None
        self._task = asyncio.get_running_loop().create_task(self._shake_hands(transport))

    def data_received(self, data: bytes) -> None:
        """Keep what the client sends with the end of its handshake."""
        self._early.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the client has gone."""
        self._lost = True
        super().connection_lost(exc)

    def abort(self) -> None:
        """Cut the connection."""
        self._lost = True
        if self._transport is not None:
            self._transport.abort()

    async def _shake_hands(self, transport: asyncio.Transport) -> None:
        loop = asyncio.get_running_loop()
        try:
            secured = await loop.start_tls(
                transport,
                self,
                self.certificate.context,
                server_side=True,
                ssl_handshake_timeout=self.connection.timeout,
                ssl_shutdown_timeout=CLOSE_WITHIN,
            )
        except OSError as exc:  # also a client that goes, that is too slow, or that speaks http
            log.debug("no_handshake", error=repr(exc))
            transport.abort()
            return
        finally:
            self.under_way.pop(self, None)
        if secured is None or self._lost:
            transport.abort()
            return
        connection = self.connection(**self._options)
        connection.beneath = transport
        secured.set_protocol(connection)
        connection.connection_made(secured)
        for data in self._early:
            connection.data_received(data)
