"""`decompress`: a download whose bytes are decompressed while they pass (gzip, RFC 1952; zstd, RFC 8878).

The expected size and checksum are those of the file as the source has it, as publishers list them. It can't be resumed:
where a byte of the content begins in a compressed stream can't be known.
"""

from __future__ import annotations

import hashlib
import sys
import zlib
from collections.abc import Iterator
from typing import Literal

from datamanager.errors import ChecksumMismatch, DownloadFailed, SizeMismatch, TooLarge
from datamanager.sources.source_port import BLOCK, Download
from datamanager.sources.terms.checksums import Checksum

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Compression = Literal["gzip", "zstd"]

RATIO_MAX = 200
"""Bytes that one compressed byte may become …"""
RATIO_FROM = 64 * 2**20
"""… once there are this many: zeros are compressed much better, but not without end."""
WINDOW_LOG_MAX = 27
"""A zstd stream may ask for a window of 128 MiB, the zstd program's default limit."""

_PIECE = 16 * 1024
"""Bytes that are decompressed together: what is left behind a member's end is copied, and members may be tiny."""
_GZIP = zlib.MAX_WBITS + 16


class Decompressed:
    """A download whose bytes are decompressed; `size` in bytes and `checksum` are of the compressed file.

    It must begin at offset 0. Raises (when made): SizeMismatch.
    """

    size = None
    start = 0
    version = None
    ranges = False

    def __init__(
        self, download: Download, compression: Compression, size: int | None, checksum: Checksum | None
    ) -> None:
        if None not in (size, download.size) and size != download.size:
            raise SizeMismatch(f"{size} bytes were announced by the request, {download.size} by the source")
        self._download = download
        self._compression = compression
        self._expected = size
        self._checksum = checksum
        self.etag, self.last_modified = download.etag, download.last_modified
        self.content_type, self.filename, self.url = download.content_type, download.filename, download.url
        self._taken = 0

    def blocks(self) -> Iterator[memoryview]:
        """Yield the content in blocks of at most 1 MiB.

        Raises, besides what `Download.blocks` does: DownloadFailed when it is not compressed so, damaged or cut short;
        TooLarge when it grows out of all proportion; SizeMismatch, ChecksumMismatch.
        """
        unpack, given = (_gunzip if self._compression == "gzip" else _unzstd), 0
        try:
            for block in unpack(self._compressed()):
                given += len(block)
                if given > RATIO_FROM and given > RATIO_MAX * self._taken:
                    raise TooLarge(f"{self.url} becomes more than {RATIO_MAX} times its size when it is decompressed")
                yield memoryview(block)
        except (zlib.error, zstd.ZstdError, _CutShort) as wrong:
            raise DownloadFailed(f"{self.url} is not a complete {self._compression} file: {wrong}") from wrong

    def _compressed(self) -> Iterator[memoryview]:
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


def _pieces(compressed: Iterator[memoryview]) -> Iterator[bytes]:
    for block in compressed:
        for begin in range(0, len(block), _PIECE):
            yield bytes(block[begin : begin + _PIECE])


def _gunzip(compressed: Iterator[memoryview]) -> Iterator[bytes]:
    """Yield what gzip members hold, at most BLOCK bytes at a time; zeros behind a member are padding."""
    member, members = None, 0
    for data in _pieces(compressed):
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


def _unzstd(compressed: Iterator[memoryview]) -> Iterator[bytes]:
    """Yield what zstd frames hold, at most BLOCK bytes at a time."""
    frame, frames = None, 0
    for data in _pieces(compressed):
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
