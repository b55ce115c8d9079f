"""Free loopback ports for private servers."""

from __future__ import annotations

import contextlib
import os
import random
import socket

PORTS = range(15_000, 32_768)
"""Below those that Linux gives to outgoing connections, which would take a port between its choice and its use."""
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_MINE = PORTS[_WORKER % _WORKERS :: _WORKERS]
_given = set[int]()


def free_port() -> int:
    """Return a loopback TCP port that nothing listens on at this moment and no other call in this test run returns.

    A server takes its port seconds after it was chosen, and leaves it free while it is stopped: each worker of
    pytest-xdist has ports of its own and gives each of them once. They are drawn, so that another run beside this one
    hardly ever chooses the same.
    """
    while True:
        port = random.SystemRandom().choice(_MINE)
        if port in _given:
            continue
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            _given.add(port)
            return port
