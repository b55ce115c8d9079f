"""Hear from movers that a transfer has ended: datagrams on this host, LISTEN/NOTIFY with PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from api.context import Context
from datamanager.messaging.wake import WakeSocket


@contextmanager
def listening(context: Context) -> Iterator[None]:
    """Tell the waiter what movers tell, while the event loop runs. Raises: OSError when the socket can't be made."""
    with WakeSocket(context.run_directory, "api") as ear:
        ear.listen(context.waiter.heard)
        yield
