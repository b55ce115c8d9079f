"""The checksum that a download must have: given, or a line of a file such as SHA256SUMS."""

from __future__ import annotations

import posixpath
import re
from urllib.parse import unquote, urlsplit

from datamanager.errors import DownloadFailed
from datamanager.sources.source_port import Source
from datamanager.sources.terms.urls import public_url

Checksum = tuple[str, str]
"""Algorithm of hashlib (`sha256`, `md5`) and lower-case hex."""

SUMS_MAX = 2**20
"""Bytes of a file of checksums."""

_HEX = r"[0-9a-fA-F]{64}|[0-9a-fA-F]{32}"
_GNU = re.compile(rf"\\?(?P<hex>{_HEX})(?: [ *](?P<name>.+))?")  # sha256sum, md5sum; a lone digest
_BSD = re.compile(rf"(?:SHA256|MD5) ?\((?P<name>.+)\) ?= (?P<hex>{_HEX})")


def parse_checksum(text: str) -> Checksum:
    """Return a checksum that `options` validated (`sha256:…`, `md5:…`)."""
    algorithm, _, digest = text.partition(":")
    return algorithm, digest


def is_url(text: str) -> bool:
    """Say whether `checksum` names a file of checksums."""
    return text.lower().startswith(("http://", "https://"))


def fetch_checksum(sums: Source, url: str) -> Checksum:
    """Fetch a file of checksums, and return the one of `url`'s file.

    Raises: DownloadFailed when it has none, and what the source raises (TooLarge beyond 1 MiB).
    """
    with sums.open() as download:
        body = b"".join(bytes(block) for block in download.blocks())
        shown = download.url
    return checksum_of(body.decode("utf-8", "replace"), url, shown)


def checksum_of(text: str, url: str, shown: str) -> Checksum:
    """Return the checksum of the file that `url` ends with; a lone digest without a name is taken for it.

    Raises: DownloadFailed when no line, or lines that differ, name the file.
    """
    wanted = posixpath.basename(unquote(urlsplit(url).path))
    found: set[str] = set()
    alone: list[str] = []
    for line in text.splitlines():
        match = _GNU.fullmatch(line.strip()) or _BSD.fullmatch(line.strip())
        if match is None:
            continue
        if match["name"] is None:
            alone.append(match["hex"].lower())
        elif posixpath.basename(match["name"]) == wanted and wanted:
            found.add(match["hex"].lower())
    if not found and len(alone) == 1:
        found = set(alone)
    found = {one for one in found if len(one) == 64} or found
    if len(found) != 1:
        say = "several checksums" if found else "no checksum"
        raise DownloadFailed(f"{shown} has {say} for the file of {public_url(url)}")
    digest = found.pop()
    return ("sha256" if len(digest) == 64 else "md5"), digest
