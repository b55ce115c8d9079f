"""The protocols: which schemes a URL may have, which options there are, and what parses them.

To add one: an option model in `terms/source_options.py`, a module with terms (`SourceTerms`) that open a `Source`, and
a line in `PROTOCOLS`. The contract suite gets its servers in tests/support/source_servers.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from datamanager.errors import NotSupported, UrlNotAllowed
from datamanager.sources.ftp.client import FtpTerms
from datamanager.sources.http.client import HttpTerms
from datamanager.sources.http.remote_source import RemoteHttpTerms
from datamanager.sources.http.s3 import S3Terms
from datamanager.sources.http.webdav import WebdavTerms
from datamanager.sources.network.source_context import SourceContext
from datamanager.sources.sftp.client import SftpTerms
from datamanager.sources.source_port import Source
from datamanager.sources.terms.source_options import (
    CommonOptions,
    FtpOptions,
    HttpOptions,
    S3Options,
    SftpOptions,
    WebdavOptions,
    parse_options,
)
from datamanager.sources.terms.urls import scheme_of

NEVER = frozenset({"file", "data", "javascript"})
"""Schemes that nothing makes possible."""


class SourceTerms(Protocol):
    """A URL with its options, parsed by its protocol: a value, for which nothing was resolved or sent."""

    @property
    def hosts(self) -> Sequence[tuple[str, int]]:
        """Hosts and ports to which the first connections go; the egress guard checks them again when they are made."""

    def open(self, context: SourceContext) -> Source:
        """Return the source; nothing is resolved or sent yet. The limits of the options are in the context already."""


@dataclass(frozen=True, slots=True)
class SourceProtocol:
    """A protocol."""

    schemes: tuple[str, ...]
    """The URL schemes that fit the client's word; the first is the protocol's own."""
    options: type[CommonOptions]
    parse: Callable[[str, Any], SourceTerms]
    """Parses a URL with typed options. Raises: UrlNotAllowed, InvalidRequest, NotSupported."""


def _http(url: str, options: HttpOptions) -> SourceTerms:
    return (RemoteHttpTerms if options.fetch == "remote" else HttpTerms).parse(url, options)


PROTOCOLS: dict[str, SourceProtocol] = {
    "http": SourceProtocol(("http", "https"), HttpOptions, _http),  # old clients say http for both
    "https": SourceProtocol(("https",), HttpOptions, _http),
    "sftp": SourceProtocol(("sftp",), SftpOptions, SftpTerms.parse),
    "s3": SourceProtocol(("s3",), S3Options, S3Terms.parse),
    "ftp": SourceProtocol(("ftp",), FtpOptions, FtpTerms.parse),
    "ftps": SourceProtocol(("ftps",), FtpOptions, FtpTerms.parse),
    "webdav": SourceProtocol(("webdav", "dav", "http"), WebdavOptions, WebdavTerms.parse),
    "dav": SourceProtocol(("dav", "webdav"), WebdavOptions, WebdavTerms.parse),
    "webdavs": SourceProtocol(("webdavs", "davs", "https"), WebdavOptions, WebdavTerms.parse),
    "davs": SourceProtocol(("davs", "webdavs"), WebdavOptions, WebdavTerms.parse),
}
"""By the client's word, in lower case."""


def typed_options(url: str, protocol: str, options: Mapping[str, object] | CommonOptions | None) -> CommonOptions:
    """Return the options as the protocol's model. Raises: as `parse_source`."""
    word, found = _protocol(url, protocol)
    return parse_options(found.options, options, word)


def parse_source(
    url: str, protocol: str, options: Mapping[str, object] | CommonOptions | None
) -> tuple[SourceTerms, CommonOptions]:
    """Return the terms of one URL, and its typed options.

    `protocol` is the client's word, in any case; empty means the URL's scheme.

    Raises: UrlNotAllowed for a scheme that is never allowed or does not fit, credentials in the URL, a malformed URL;
    NotSupported for an unknown protocol, and for an option that it does not have; InvalidRequest for an option whose
    value is wrong (each is named).
    """
    word, found = _protocol(url, protocol)
    typed = parse_options(found.options, options, word)
    return found.parse(url, typed), typed


def _protocol(url: str, word: str) -> tuple[str, SourceProtocol]:
    """Return the protocol and its name. Raises: UrlNotAllowed, NotSupported."""
    scheme = scheme_of(url)
    if scheme in NEVER:
        raise UrlNotAllowed(f"scheme {scheme!r} is not allowed")
    wanted = word.strip().lower() or scheme
    found = PROTOCOLS.get(wanted)
    if found is None:
        raise NotSupported(f"protocol {wanted!r} is not supported; supported: {', '.join(PROTOCOLS)}")
    if scheme not in found.schemes:
        raise UrlNotAllowed(f"the URL's scheme {scheme!r} does not match protocol {wanted!r}")
    return wanted, found
