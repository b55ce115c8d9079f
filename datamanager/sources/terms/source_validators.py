"""Whether a source still has what was fetched from it: its validators then are compared with those of now.

Validators mean something for one URL only (RFC 9110, 8.8): two URLs are never compared. In doubt the source changed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from datamanager.domain.requests import GetExternalRequest
from datamanager.errors import SecretsUnreadable
from datamanager.sealing import Sealer
from datamanager.sources.source_port import Download, Source
from datamanager.sources.terms.urls import public_url

OPTION = "if_newer_than"
TEXT_MAX = 1000
"""Characters of a validator that are kept; a longer one counts as absent."""


@dataclass(frozen=True, slots=True)
class Validators:
    """What a source says of its bytes; None where it does not."""

    etag: str | None = None
    last_modified: str | None = None
    version: str | None = None
    size: int | None = None
    checksum: str | None = None
    """`sha256:…`: an object's own, or what a source is expected to have (the option `checksum`)."""

    @classmethod
    def of(cls, download: Download) -> Validators:
        """Return the validators of an answer."""
        return cls(_kept(download.etag), _kept(download.last_modified), _kept(download.version), download.size)

    def same_as(self, other: Validators) -> bool:
        """Say whether both are of the same bytes, by the strongest validator that both have. A checksum that differs
        from the expected one of `other` counts more than what the source says.
        """
        if other.checksum not in (None, self.checksum):
            return False
        if self.version is not None and other.version is not None:
            return self.version == other.version
        if self.etag is not None and other.etag is not None:
            return _weak(self.etag) == _weak(other.etag)
        dated = self.last_modified is not None and self.size is not None
        return dated and (self.last_modified, self.size) == (other.last_modified, other.size)


def identity_or_none(request: GetExternalRequest, sealer: Sealer) -> tuple[str, str | None] | None:
    """Return what identifies a request's bytes: the `public_url`, and a keyed digest of the whole URL, endpoint and
    compression where there is more than that. None where there is no key for the digest: nothing can be compared then.
    """
    shown, query = public_url(request.url), request.options.get("query")
    endpoint, packing = request.options.get("endpoint"), request.options.get("decompress")
    if shown == request.url and not query and not endpoint and not packing:
        return shown, None
    try:
        return shown, sealer.mark(json.dumps([request.url, query, endpoint, packing], sort_keys=True, default=str))
    except SecretsUnreadable:
        return None


def ask(source: Source) -> Validators:
    """Ask a source for its validators, without reading its bytes. Blocks. Raises: what `Source.open` raises."""
    with source.open() as download:
        return Validators.of(download)


def as_note(where: tuple[str, str | None], said: Validators) -> dict[str, Any]:
    """Return what is stored with a transfer until its object is registered."""
    url, mark = where
    return {
        "url": url,
        "url_mark": mark,
        "etag": said.etag,
        "last_modified": said.last_modified,
        "version": said.version,
    }


def is_empty(note: Mapping[str, Any]) -> bool:
    """Say whether a note has no validator."""
    return not any(note[name] for name in ("etag", "last_modified", "version"))


def _kept(text: str | None) -> str | None:
    return text if text is not None and 0 < len(text) <= TEXT_MAX else None


def _weak(etag: str) -> str:
    return etag.strip().removeprefix("W/")
