"""`decompress`: a source whose compressed bytes are unpacked while they pass (gzip, RFC 1952; zstd, RFC 8878).

Size and checksum that were asked for are those of the file as the source has it, as publishers list it. Nothing can be
gone on with: where unpacked bytes begin in a compressed stream can't be told.
"""

from __future__ import annotations

import hashlib
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from datamanager.errors import ChecksumMismatch, DownloadFailed, SizeMismatch, TooLarge
from datamanager.sources.port import BLOCK, Download, Source
from datamanager.sources.terms.checksums import Checksum

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Packing = Literal["gzip", "zstd"]

RATIO_MAX = 200
"""Bytes that one compressed byte may become …"""
RATIO_FROM = 64 * 2**20
"""… once there are this many: zeros are packed much better, but not without end."""
WINDOW_LOG_MAX = 27
"""A zstd stream may ask for a window of 128 MiB, as much as the zstd program grants without being told otherwise."""

_PIECE = 16 * 1024
"""Bytes that are looked at together: what is left behind a member's end is copied, and members may be tiny."""
_GZIP = zlib.MAX_WBITS + 16


class Unpacking:
    """A source of what another one has compressed; `size` in bytes and `checksum` are of the compressed file."""

    def __init__(self, source: Source, packing: Packing, size: int | None, checksum: Checksum | None) -> None:
        self._source = source
        self._packing: Packing = packing
        self._size = size
        self._checksum = checksum

    def check(self) -> None:
        """See Source.check."""
        self._source.check()

    @contextmanager
    def open(self, start: int = 0, stop: int | None = None, *, version: str | None = None) -> Iterator[Download]:
        """See Source.open; it is read from the start, always."""
        del start, stop
        with self._source.open(version=version) as download:
            yield _Unpacked(download, self._packing, self._size, self._checksum)


class _Unpacked:
    """An answer whose bytes are unpacked."""

    size = None
    start = 0
    version = None
    ranges = False

    def __init__(self, download: Download, packing: Packing, size: int | None, checksum: Checksum | None) -> None:
        if None not in (size, download.size) and size != download.size:
            raise SizeMismatch(f"{size} bytes were announced by the request, {download.size} by the source")
        self._download = download
        self._packing = packing
        self._expected = size
        self._checksum = checksum
        self.etag = download.etag
        self.last_modified = download.last_modified
        self.content_type = download.content_type
        self.filename = download.filename
        self.url = download.url
        self._taken = 0

    def blocks(self) -> Iterator[memoryview]:
        """Yield the unpacked bytes; a block without end is yielded in many.

        Raises, besides what `Download.blocks` does: DownloadFailed when it is not packed so, damaged or cut short;
        TooLarge when it grows out of all proportion; SizeMismatch, ChecksumMismatch.
        """
        unpack, given = (_gunzip if self._packing == "gzip" else _unzstd), 0
        try:
            for block in unpack(self._packed()):
                given += len(block)
                if given > RATIO_FROM and given > RATIO_MAX * self._taken:
                    raise TooLarge(f"{self.url} becomes more than {RATIO_MAX} times its size when it is unpacked")
                yield memoryview(block)
        except (zlib.error, zstd.ZstdError, _CutShort) as wrong:
            raise DownloadFailed(f"{self.url} is no whole {self._packing} file: {wrong}") from wrong

    def _packed(self) -> Iterator[memoryview]:
        algorithm, expected = self._checksum or ("sha256", None)
        digest = hashlib.new(algorithm, usedforsecurity=False)
        for block in self._download.blocks():
            self._taken += len(block)
            if expected is not None:
                digest.update(block)
            yield block
        if self._expected is not None and self._taken != self._expected:
            raise SizeMismatch(f"{self._expected} bytes were announced by the request, {self._taken} arrived")
        if expected is not None and digest.hexdigest() != expected:
            # the source itself has other bytes than were expected
            raise ChecksumMismatch(
                f"{algorithm} {expected} was expected, {digest.hexdigest()} arrived", retryable=False
            )


class _CutShort(Exception):
    """The stream ends before its end."""

    def __init__(self) -> None:
        super().__init__("it ends too early")


def _pieces(packed: Iterator[memoryview]) -> Iterator[bytes]:
    for block in packed:
        for begin in range(0, len(block), _PIECE):
            yield bytes(block[begin : begin + _PIECE])


def _gunzip(packed: Iterator[memoryview]) -> Iterator[bytes]:
    """Yield what gzip members hold, at most BLOCK bytes at a time; zeros behind a member are padding."""
    member, members = None, 0
    for data in _pieces(packed):
        while data:
            if member is None:
                data = data.lstrip(b"\0") if members else data
                if not data:
                    break
                member, members = zlib.decompressobj(_GZIP), members + 1
            yield member.decompress(data, BLOCK)
            data = member.unconsumed_tail
            if member.eof:
                data, member = member.unused_data, None
    while member is not None and not member.eof:  # what a full block left behind
        left = member.decompress(b"", BLOCK)
        if not left and not member.eof:
            raise _CutShort
        yield left
    if not members:
        raise _CutShort


def _unzstd(packed: Iterator[memoryview]) -> Iterator[bytes]:
    """Yield what zstd frames hold, at most BLOCK bytes at a time."""
    frame, frames = None, 0
    for data in _pieces(packed):
        while data or (frame is not None and not frame.needs_input):
            if frame is None:
                frame = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: WINDOW_LOG_MAX})
                frames += 1
            yield frame.decompress(data, BLOCK)
            data = b""
            if frame.eof:
                data, frame = frame.unused_data, None
    if frame is not None or not frames:
        raise _CutShort
