"""All that one getexternal reads: its URL, its mirrors, its file of checksums. Parsed once, checked and opened later.

Logins, client certificates, headers and queries of the options are for the URL's own origin: a mirror or a file of
checksums elsewhere is requested without them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from datamanager.domain.requests import GetExternalRequest
from datamanager.sources.http.remote_source import RemoteHttpSource
from datamanager.sources.network.source_context import SourceContext
from datamanager.sources.parallel import Parallel
from datamanager.sources.registry import SourceTerms, parse_source
from datamanager.sources.source_port import Source
from datamanager.sources.terms.checksums import SUMS_MAX, Checksum, fetch_checksum, is_url, parse_checksum
from datamanager.sources.terms.source_options import CommonOptions, HttpOptions, option_error, secret_fields
from datamanager.sources.terms.urls import origin_of, public_url, scheme_of

_LOGINS = frozenset({"username", "access_key", "credential", "host_key"})
_AS_IT_IS = {"checksum": None, "decompress": None, "raw": False}
"""The options of a file of checksums, which is text."""
_OF_THE_PROXY = frozenset({"proxy_password"})


@dataclass(frozen=True, slots=True)
class DownloadTerms:
    """What a request reads, parsed: a value, for which nothing was resolved or sent."""

    url: str
    options: CommonOptions
    replicas: Mapping[str, SourceTerms]
    """URLs of the same bytes, the request's own first, by names that stay the same over all attempts."""
    sums: SourceTerms | None
    """The file of checksums."""
    size: int | None
    """Bytes that must arrive."""

    def check(self, context: SourceContext) -> None:
        """Refuse at once what would be refused before a byte is sent; resolves every host.

        Raises: UrlNotAllowed, InvalidRequest (unverified TLS).
        """
        self._require_permitted(context)
        for terms in (*self.replicas.values(), *filter(None, [self.sums])):
            for host, port in terms.hosts:
                context.guard.check(host, port)

    def open(self, context: SourceContext) -> DownloadSources:
        """Return the sources; nothing is resolved or sent yet. Raises: InvalidRequest (unverified TLS)."""
        self._require_permitted(context)
        limited = context.limited(self.options)
        opened = {name: terms.open(limited) for name, terms in self.replicas.items()}
        sources = {name: one if isinstance(one, RemoteHttpSource) else Parallel(one) for name, one in opened.items()}
        sums = None if self.sums is None else self.sums.open(replace(limited, max_size=SUMS_MAX))
        return DownloadSources(self, sources, sums)

    def limit(self, most: int) -> int:
        """Return how many bytes may be stored at most; `most` is the operator's limit."""
        return most if self.options.max_size is None else min(most, self.options.max_size)

    def _require_permitted(self, context: SourceContext) -> None:
        if not getattr(self.options, "verify_tls", True) and not context.insecure:
            raise option_error(
                "verify_tls",
                "must be true: the operator does not permit unverified TLS (DM_DOWNLOAD_INSECURE); give ca instead",
            )


@dataclass(frozen=True, slots=True)
class DownloadSources:
    """The sources of a download, which may be read."""

    terms: DownloadTerms
    sources: Mapping[str, Source]
    sums: Source | None

    @property
    def remote(self) -> Mapping[str, RemoteHttpSource]:
        """The sources, if the machine itself reads them; else none."""
        return {name: one for name, one in self.sources.items() if isinstance(one, RemoteHttpSource)}

    def checksum(self) -> Checksum | None:
        """Return what must arrive, fetching the file of checksums. Blocks. Raises: what `fetch_checksum` raises."""
        given = self.terms.options.checksum
        if self.sums is not None:
            return fetch_checksum(self.sums, self.terms.url)
        return None if given is None else parse_checksum(given)


def parse_terms(request: GetExternalRequest) -> DownloadTerms:
    """Parse all that a request reads. Raises: as `parse_download`."""
    return parse_download(request.url, request.protocol, request.options, request.size)


def parse_download(
    url: str, protocol: str, options: Mapping[str, object] | CommonOptions | None, size: int | None = None
) -> DownloadTerms:
    """Parse a URL with its options, its mirrors and its file of checksums; `size` is the bytes that must arrive.

    Raises: what `parse_source` raises, for each of them; InvalidRequest when two sizes differ.
    """
    own, typed = parse_source(url, protocol, options)
    replicas = {_replica_name(0, url): own}
    word = protocol.strip() or ("http" if type(typed) is HttpOptions else scheme_of(url))
    for number, mirror in enumerate(typed.mirrors, 1):
        replicas[_replica_name(number, mirror)], _ = parse_source(mirror, word, _for(mirror, url, typed))
    sums = None
    if typed.checksum is not None and is_url(typed.checksum):
        theirs = _for(typed.checksum, url, typed) if isinstance(typed, HttpOptions) else HttpOptions()
        theirs = theirs.model_copy(update={"expect_type": None, "query": {}, **_AS_IT_IS})
        sums, _ = parse_source(typed.checksum, "http", theirs)
    if None not in (size, typed.size) and size != typed.size:
        raise option_error("size", f"is {typed.size}, but size is {size}")
    return DownloadTerms(url, typed, replicas, sums, typed.size if size is None else size)


def _replica_name(number: int, url: str) -> str:
    """Return a replica's name for checkpoints: of the `public_url` only, as passwords could be guessed from a digest of
    the whole URL. The number tells apart URLs that are shown alike.
    """
    digest = hashlib.sha256(public_url(url).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{number}-{digest[:16]}"


def _for(other: str, url: str, options: CommonOptions) -> CommonOptions:
    """Return the options for another URL than the request's own."""
    if origin_of(other) == origin_of(url):
        return options
    dropped = (set(secret_fields(options)) | _LOGINS) - _OF_THE_PROXY
    kept = {name: getattr(options, name) for name in options.model_fields_set if name not in dropped}
    return type(options).model_construct(**{**type(options)().model_dump(), **kept})
