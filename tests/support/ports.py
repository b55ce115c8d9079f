"""Free loopback ports for private servers."""

from __future__ import annotations

import contextlib
import random
import socket

PORTS = range(15_000, 32_768)
"""Below those that Linux gives to outgoing connections, which would take a port between its choice and its use."""


def free_port() -> int:
    """Return a loopback TCP port that nothing listens on at this moment.

    It is drawn, so that test processes that run beside each other hardly ever choose the same one.
    """
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port
