"""All that one getexternal reads: its URL, its mirrors, its file of checksums; each passes the guard.

Logins, client certificates, headers and queries of the options are for the URL's own origin: a mirror or a file of
checksums elsewhere is asked without them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datamanager.domain.requests import GetExternalRequest
from datamanager.errors import InvalidRequest
from datamanager.settings import Settings
from datamanager.sources import open_source, typed_options
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.parallel import Parallel
from datamanager.sources.port import Source
from datamanager.sources.remote_curl.remote_source import RemoteHttpSource, Run
from datamanager.sources.terms.checksums import SUMS_MAX, Checksum, fetch_checksum, is_url, parse_checksum
from datamanager.sources.terms.options import CommonOptions, HttpOptions, secret_fields
from datamanager.sources.terms.urls import origin_of, public_url, scheme_of

_LOGINS = frozenset({"username", "access_key", "credential", "host_key"})
_OF_THE_PROXY = frozenset({"proxy_password"})


@dataclass(frozen=True, slots=True)
class Fetching:
    """What a request reads. `sources` are places of the same bytes, by names that stay the same over all attempts."""

    url: str
    options: CommonOptions
    sources: Mapping[str, Source]
    sums: Source | None = None

    @property
    def remote(self) -> Mapping[str, RemoteHttpSource]:
        """The sources, if the machine itself reads them; else none."""
        return {name: one for name, one in self.sources.items() if isinstance(one, RemoteHttpSource)}

    def check(self) -> None:
        """Refuse at once what would be refused before a byte is sent; resolves every host. Raises: UrlNotAllowed."""
        for source in self.sources.values():
            source.check()
        if self.sums is not None:
            self.sums.check()

    def checksum(self) -> Checksum | None:
        """Return what must arrive, fetching the file of checksums. Blocks. Raises: what `fetch_checksum` raises."""
        if self.options.checksum is None:
            return None
        if self.sums is None:
            return parse_checksum(self.options.checksum)
        return fetch_checksum(self.sums, self.url)

    def limit(self, most: int) -> int:
        """Return how many bytes may be stored at most; `most` is the operator's word."""
        return most if self.options.max_size is None else min(most, self.options.max_size)

    def size(self, asked: int | None) -> int | None:
        """Return the bytes that must arrive; `asked` is the request's own field. Raises: InvalidRequest when they
        differ.
        """
        given = self.options.size
        if None not in (asked, given) and asked != given:
            why = f"is {given}, but size is {asked}"
            raise InvalidRequest(f"options.size: {why}", {"options.size": why})
        return given if asked is None else asked


def open_fetching(
    url: str,
    protocol: str,
    options: Mapping[str, object] | CommonOptions | None,
    guard: EgressGuard,
    *,
    max_size: int,
    **terms: Any,
) -> Fetching:
    """Return all that a request reads; nothing is resolved or sent yet. For `terms` see `open_source`.

    Raises: what `open_source` raises, also for a mirror and a file of checksums.
    """
    typed = typed_options(url, protocol, options)
    word = protocol.strip() or ("http" if type(typed) is HttpOptions else scheme_of(url))
    sources = {_place(0, url): open_source(url, protocol, typed, guard, max_size=max_size, **terms)}
    for number, mirror in enumerate(typed.mirrors, 1):
        theirs = _for(mirror, url, typed)
        sources[_place(number, mirror)] = open_source(mirror, word, theirs, guard, max_size=max_size, **terms)
    sums = None
    if typed.checksum is not None and is_url(typed.checksum):
        theirs = _for(typed.checksum, url, typed) if isinstance(typed, HttpOptions) else HttpOptions()
        theirs = theirs.model_copy(update={"expect_type": None, "max_size": None, "query": {}})
        sums = open_source(typed.checksum, "http", theirs, guard, max_size=SUMS_MAX, **terms)
    several = {name: one if isinstance(one, RemoteHttpSource) else Parallel(one) for name, one in sources.items()}
    return Fetching(url, typed, several, sums)


def requested(request: GetExternalRequest, guard: EgressGuard, settings: Settings, run: Run | None = None) -> Fetching:
    """Return all that a request reads, under the operator's settings. `run` begins a curl on the request's machine.

    Raises: what `open_fetching` and `size` raise.
    """
    fetching = open_fetching(
        request.url,
        request.protocol,
        request.options,
        guard,
        max_size=settings.max_download,
        insecure=settings.download_insecure,
        run=run,
    )
    fetching.size(request.size)
    return fetching


def _place(number: int, url: str) -> str:
    """Return a name that goes into checkpoints: of what is shown of the URL only, as passwords could be guessed from a
    digest of all of it. The number tells apart those that are shown alike.
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
