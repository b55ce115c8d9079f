"""Fetching whole bodies through the real source, from servers on loopback."""

from __future__ import annotations

import random
from pathlib import Path

from datamanager.sources import EgressGuard, open_source
from tests.support.odd_http import answer

LOOPBACK = EgressGuard(["127.0.0.0/8", "localhost"])
BODY = random.Random(6).randbytes(5 * 2**20 + 3)


def fetch(
    url: str,
    guard: EgressGuard = LOOPBACK,
    *,
    max_size: int = 2**30,
    read_timeout: float = 30.0,
    ca_file: Path | None = None,
) -> bytes:
    """Return all that the source yields."""
    source = open_source(
        url, "http", {}, guard, max_size=max_size, connect_timeout=30, read_timeout=read_timeout, ca_file=ca_file
    )
    with source.open() as download:
        return b"".join(bytes(block) for block in download.blocks())


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    """Return an answer in chunks."""
    head = answer("200 OK", "Transfer-Encoding: chunked")
    return head + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end
