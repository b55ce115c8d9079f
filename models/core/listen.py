"""Receive what `models.database.wake` sends from other hosts: PostgreSQL's LISTEN.

(https://www.postgresql.org/docs/current/sql-notify.html)
"""

from __future__ import annotations

import threading
from collections.abc import Callable

import psycopg
import structlog
from psycopg import sql

from models.database import WAKE_CHANNEL, Database

CHECK_EVERY = 0.5  # seconds between two looks at whether we are to stop
RETRY_FIRST, RETRY_MAX = 0.25, 10.0  # seconds
RESUMED = "resumed"
"""What the callback gets at every (re)connection: something may have been missed, look."""

log = structlog.get_logger(__name__)


class Listener:
    """A daemon thread with a connection of its own that passes each notification's text to `received`.

    `received` is called in that thread, must return soon and must not raise. On SQLite there is nothing to receive: no
    thread.
    """

    def __init__(self, database: Database, received: Callable[[str], None]) -> None:
        self._received = received
        self._stopped = threading.Event()
        dialect = database.engine.dialect
        _, self._address = dialect.create_connect_args(database.engine.url)
        self._thread = threading.Thread(target=self._run, name="dm-listen", daemon=True)
        if database.is_postgresql:
            self._thread.start()

    def close(self) -> None:
        """Stop; returns when the thread has ended. Idempotent."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        pause = RETRY_FIRST
        while not self._stopped.is_set():
            try:
                with self._connect() as connection:
                    pause = RETRY_FIRST
                    self._received(RESUMED)
                    self._listen(connection)
            except psycopg.OperationalError as exc:
                if not self._stopped.wait(pause):
                    log.warning("catalogue notifications were interrupted, reconnecting", error=type(exc).__name__)
                pause = min(2 * pause, RETRY_MAX)

    def _connect(self) -> psycopg.Connection[tuple[object, ...]]:
        connection = psycopg.connect(
            **{
                **self._address,
                "autocommit": True,
                "connect_timeout": 5,
                "keepalives_idle": 10,
                "keepalives_interval": 5,
                "keepalives_count": 3,
            }
        )
        connection.execute(sql.SQL("LISTEN {}").format(sql.Identifier(WAKE_CHANNEL)))
        return connection

    def _listen(self, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        while not self._stopped.is_set():
            for notification in connection.notifies(timeout=CHECK_EVERY):
                self._received(notification.payload)
