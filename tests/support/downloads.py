"""Fetching whole bodies through the real source, from servers on loopback."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamanager.sources.download_terms import DownloadSources, parse_download
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.network.source_context import SourceContext
from datamanager.sources.source_port import Source
from tests.support.odd_http import answer

Options = Mapping[str, Any] | None

LOOPBACK = EgressGuard(["127.0.0.0/8", "localhost"])
BODY = random.Random(6).randbytes(5 * 2**20 + 3)


def open_download(
    url: str, protocol: str, options: Mapping[str, Any] | None, guard: EgressGuard, **context: Any
) -> DownloadSources:
    """Return all that a request for `url` reads; `context` is of SourceContext."""
    return parse_download(url, protocol, options).open(SourceContext(guard, **context))


def open_source(
    url: str, protocol: str, options: Mapping[str, Any] | None, guard: EgressGuard, **context: Any
) -> Source:
    """Return the source of just one URL, which is read over one connection."""
    terms, found = parse_download(url, protocol, options), SourceContext(guard, **context)
    terms.open(found)  # refuses what the operator does not permit
    return next(iter(terms.replicas.values())).open(found.limited(terms.options))


def opened(
    url: str, guard: EgressGuard = LOOPBACK, *, ca_file: Path | None = None, insecure: bool = False, **options: Any
) -> DownloadSources:
    """Return all that a request over http reads, with these options."""
    terms = {"connect_timeout": 30, "read_timeout": 30, "ca_file": ca_file, "insecure": insecure}
    return open_download(url, "http", options, guard, max_size=2**30, **terms)


def got(url: str, guard: EgressGuard = LOOPBACK, **options: Any) -> bytes:
    """Return all that the first source of a request over http yields."""
    (source, *_) = opened(url, guard, **options).sources.values()
    with source.open() as download:
        return b"".join(bytes(block) for block in download.blocks())


def check_download(url: str, protocol: str, options: Options, guard: EgressGuard, **context: Any) -> None:
    """Check what admission checks: nothing is requested, hosts are resolved."""
    parse_download(url, protocol, options).check(SourceContext(guard, **{"max_size": 2**30, **context}))


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
