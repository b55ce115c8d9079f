"""Hear from movers that a transfer has ended: datagrams on this host, LISTEN/NOTIFY from others with PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from api.context import Context
from datamanager.messaging.wake import WakeSocket
from models.core.listen import Listener


@contextmanager
def listening(context: Context) -> Iterator[None]:
    """Tell the waiter what movers tell, while the event loop runs. Raises: OSError when the socket can't be made."""
    heard = context.waiter.heard
    with WakeSocket(context.run_directory, "api") as ear, closing(Listener(context.database, heard)):
        ear.listen(heard)
        yield
