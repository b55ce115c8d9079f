"""External sources: what getexternal reads from. `open_source` is the door; each protocol is a `Source` behind it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from datamanager.errors import NotSupported, UrlNotAllowed
from datamanager.sources.base import BLOCK, Download, Source
from datamanager.sources.guard import Guard
from datamanager.sources.http import HttpSource
from datamanager.sources.urls import parse_target, public_url, scheme_of

__all__ = ["BLOCK", "Download", "Guard", "Source", "open_source", "public_url"]

_SCHEMES = {
    "http": ("http", "https"),  # old clients say http for both
    "https": ("https",),
}


def open_source(
    url: str,
    protocol: str,
    options: Mapping[str, object] | None,
    guard: Guard,
    *,
    max_size: int,
    connect_timeout: float = 10.0,
    read_timeout: float = 60.0,
    ca_file: Path | None = None,
) -> Source:
    """Return the source for `url`; nothing is resolved or sent yet.

    `protocol` is the client's word, in any case; empty means the URL's scheme. `max_size` is bytes, timeouts are
    seconds, `ca_file` holds certificate authorities to trust besides the public ones.

    Raises: UrlNotAllowed for a scheme that can't be or does not fit, credentials in the URL, a malformed URL;
    NotSupported for a protocol that is not here, and for any option (each is named).
    """
    scheme = scheme_of(url)
    if scheme in ("file", "data", "javascript"):
        raise UrlNotAllowed(f"scheme {scheme!r} is not allowed")
    wanted = protocol.strip().lower() or scheme
    if wanted not in _SCHEMES:
        raise NotSupported(f"protocol {wanted!r} is not supported; supported: {', '.join(_SCHEMES)}")
    if scheme not in _SCHEMES[wanted]:
        raise UrlNotAllowed(f"the URL's scheme {scheme!r} does not fit protocol {wanted!r}")
    if options:
        raise NotSupported(f"options are not supported yet: {', '.join(sorted(map(str, options)))}")
    parse_target(url)
    return HttpSource(url, guard, max_size, connect_timeout, read_timeout, ca_file)
