"""External sources: what getexternal reads from. `open_source` is the door; each protocol is a `Source` behind it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from datamanager.errors import NotSupported, UrlNotAllowed
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.port import BLOCK, Download, Source
from datamanager.sources.registry import PROTOCOLS, Kind, Terms
from datamanager.sources.remote_curl.remote_source import Run
from datamanager.sources.terms.options import CommonOptions, parse_options
from datamanager.sources.terms.urls import public_url, scheme_of

__all__ = [
    "BLOCK",
    "CommonOptions",
    "Download",
    "EgressGuard",
    "Source",
    "Terms",
    "open_source",
    "public_url",
    "typed_options",
]

NEVER = frozenset({"file", "data", "javascript"})
"""Schemes that nothing makes possible."""


def typed_options(url: str, protocol: str, options: Mapping[str, object] | CommonOptions | None) -> CommonOptions:
    """Return the options as the protocol's model. Raises: what `open_source` raises for protocol and options."""
    word, kind = _kind(url, protocol)
    return parse_options(kind.options, options, word)


def open_source(
    url: str,
    protocol: str,
    options: Mapping[str, object] | CommonOptions | None,
    guard: EgressGuard,
    *,
    max_size: int,
    connect_timeout: float = 10.0,
    read_timeout: float = 60.0,
    ca_file: Path | None = None,
    insecure: bool = False,
    run: Run | None = None,
) -> Source:
    """Return the source for `url`; nothing is resolved or sent yet.

    `protocol` is the client's word, in any case; empty means the URL's scheme. `max_size` is bytes, timeouts are
    seconds, `ca_file` holds certificate authorities to trust besides the public ones; see `registry.Terms`.

    Raises: UrlNotAllowed for a scheme that can't be or does not fit, credentials in the URL, a malformed URL;
    NotSupported for a protocol that is not here, and for an option that it does not have; InvalidRequest for an option
    whose value is wrong (each is named).
    """
    word, kind = _kind(url, protocol)
    typed = parse_options(kind.options, options, word)
    terms = Terms(
        guard,
        max_size if typed.max_size is None else min(max_size, typed.max_size),
        connect_timeout if typed.timeout is None else min(connect_timeout, typed.timeout),
        read_timeout if typed.timeout is None else typed.timeout,
        ca_file,
        insecure,
        run,
    )
    return kind.make(url, typed, terms)


def _kind(url: str, protocol: str) -> tuple[str, Kind]:
    """Return the protocol's name and what is known of it. Raises: UrlNotAllowed, NotSupported."""
    scheme = scheme_of(url)
    if scheme in NEVER:
        raise UrlNotAllowed(f"scheme {scheme!r} is not allowed")
    wanted = protocol.strip().lower() or scheme
    kind = PROTOCOLS.get(wanted)
    if kind is None:
        raise NotSupported(f"protocol {wanted!r} is not supported; supported: {', '.join(PROTOCOLS)}")
    if scheme not in kind.schemes:
        raise UrlNotAllowed(f"the URL's scheme {scheme!r} does not fit protocol {wanted!r}")
    return wanted, kind
