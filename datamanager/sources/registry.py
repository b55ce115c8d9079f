"""The protocols: which schemes a URL may have, which options there are, and what makes the source.

To add one: a module with a class that is a `Source`, an option model in `options.py`, and a line in `PROTOCOLS`. The
contract suite gets its servers in tests/support/source_servers.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamanager.errors import InvalidRequest
from datamanager.sources.ftp.client import FtpSource
from datamanager.sources.http.client import HttpSource
from datamanager.sources.http.s3 import S3Source
from datamanager.sources.http.webdav import webdav_source
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.port import Source
from datamanager.sources.remote_curl.remote_source import RemoteHttpSource, Run, require_fetchable
from datamanager.sources.sftp.client import SftpSource
from datamanager.sources.terms.options import (
    CommonOptions,
    FtpOptions,
    HttpOptions,
    S3Options,
    SftpOptions,
    WebdavOptions,
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What the operator's settings say about a source, the request's options already applied where they are stricter.

    `max_size` is bytes, timeouts are seconds, `ca_file` holds certificate authorities to trust besides the public ones
    and those of the options; with `insecure` the operator permits `verify_tls: false`. `run` begins a curl on the
    machine that the bytes are for; without it `fetch: remote` is what `mover` is.
    """

    guard: EgressGuard
    max_size: int
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    ca_file: Path | None = None
    insecure: bool = False
    run: Run | None = None


Factory = Callable[[str, Any, Terms], Source]
"""Makes a source of a URL, the protocol's options and the terms. Resolves and sends nothing.

Raises: UrlNotAllowed, InvalidRequest, NotSupported for what can't be with this protocol.
"""


@dataclass(frozen=True, slots=True)
class Kind:
    """A protocol."""

    schemes: tuple[str, ...]
    """The URL schemes that fit the client's word; the first is the protocol's own."""
    options: type[CommonOptions]
    make: Factory


def require_tls_verified(verify_tls: bool, terms: Terms) -> None:
    """Refuse `verify_tls: false` unless the operator permits it. Raises: InvalidRequest."""
    if not verify_tls and not terms.insecure:
        why = "must be true: the operator does not permit unverified TLS (DM_DOWNLOAD_INSECURE); give ca instead"
        raise InvalidRequest(f"options.verify_tls: {why}", {"options.verify_tls": why})


def _plain(make: Callable[..., Source]) -> Factory:
    """Return the factory of a protocol whose security is its own."""

    def factory(url: str, options: Any, terms: Terms) -> Source:
        return make(url, options, **_common(terms))

    return factory


def _tls(make: Callable[..., Source]) -> Factory:
    """Return the factory of a protocol that may run over TLS."""

    def factory(url: str, options: Any, terms: Terms) -> Source:
        require_tls_verified(options.verify_tls, terms)
        return make(url, options, ca_file=terms.ca_file, **_common(terms))

    return factory


def _common(terms: Terms) -> dict[str, Any]:
    return {
        "guard": terms.guard,
        "max_size": terms.max_size,
        "connect_timeout": terms.connect_timeout,
        "read_timeout": terms.read_timeout,
    }


def _http(url: str, options: HttpOptions, terms: Terms) -> Source:
    source = HttpSource.of(url, options, ca_file=terms.ca_file, **_common(terms))
    require_tls_verified(options.verify_tls, terms)
    if options.fetch != "remote":
        return source
    require_fetchable(options)
    return source if terms.run is None else RemoteHttpSource(source, terms.run)


_HTTP, _FTP, _S3, _WEBDAV = _http, _tls(FtpSource.of), _tls(S3Source.of), _tls(webdav_source)
_SFTP = _plain(SftpSource.of)

PROTOCOLS: dict[str, Kind] = {
    "http": Kind(("http", "https"), HttpOptions, _HTTP),  # old clients say http for both
    "https": Kind(("https",), HttpOptions, _HTTP),
    "sftp": Kind(("sftp",), SftpOptions, _SFTP),
    "s3": Kind(("s3",), S3Options, _S3),
    "ftp": Kind(("ftp",), FtpOptions, _FTP),
    "ftps": Kind(("ftps",), FtpOptions, _FTP),
    "webdav": Kind(("webdav", "dav", "http"), WebdavOptions, _WEBDAV),
    "dav": Kind(("dav", "webdav"), WebdavOptions, _WEBDAV),
    "webdavs": Kind(("webdavs", "davs", "https"), WebdavOptions, _WEBDAV),
    "davs": Kind(("davs", "webdavs"), WebdavOptions, _WEBDAV),
}
"""By the client's word, in lower case."""
