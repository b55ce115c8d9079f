"""Compressed bundles: frames of zstd that can be read one by one, and the table of them at the end.

(RFC 8878; "Zstandard Seekable Format" 0.1.0, contrib/seekable_format of the zstd repository)
"""

from __future__ import annotations

import os
import struct
import sys
import tarfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from datamanager.domain.bundle_model import Frame
from datamanager.engine.bundles.format.layout import Layout
from datamanager.errors import ChecksumMismatch, RemoteFailure

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FRAME = 1024 * 1024
"""Bytes of the tar file in a frame: what at most is read beside a small member."""
FRAMES = 16 * 1024
"""Frames in about which a bundle is cut: the frames of a larger one are longer …"""
FRAME_MAX = 8 * 1024 * 1024
"""… up to this, which is what reading one holds in memory."""
LEVEL = 3
_OPTIONS: dict[int, int] = {
    zstd.CompressionParameter.compression_level: LEVEL,
    zstd.CompressionParameter.checksum_flag: 1,
}
_WORKERS = min(4, os.cpu_count() or 1)
_SKIPPABLE, _SEEKABLE = 0x184D2A5E, 0x8F92EAB1
_HEAD, _ENTRY, _FOOTER = struct.Struct("<II"), struct.Struct("<II"), struct.Struct("<IBI")
_WITH_CHECKSUMS = 0x80
FOOTER = _FOOTER.size
"""Bytes at the end of the file that tell how long the table is."""


def cuts(layout: Layout) -> Iterator[int]:
    """Yield the lengths of the frames: large members have frames of their own, from their header to their padding."""
    frame = min(FRAME_MAX, FRAME * max(1, -(-layout.size // (FRAME * FRAMES))))
    begin = 0
    for index, entry in enumerate(layout.entries):
        if entry.size < frame:
            continue
        yield from _even(layout.start(index) - begin, frame)
        yield from _even(layout.start(index + 1) - layout.start(index), frame)
        begin = layout.start(index + 1)
    yield from _even(layout.size - begin, frame)


def _even(length: int, frame: int) -> Iterator[int]:
    while length > 0:
        yield min(length, frame)
        length -= frame


def compressed(blocks: Iterable[memoryview], lengths: Iterable[int]) -> Iterator[tuple[Frame, bytes]]:
    """Compress a stream that comes in blocks into frames of these lengths, several at a time, in order."""
    working: deque[tuple[int, Future[bytes]]] = deque()

    def done() -> tuple[Frame, bytes]:
        size, future = working.popleft()
        data = future.result()
        return Frame(len(data), size), data

    with ThreadPoolExecutor(_WORKERS, "zstd") as pool:
        for piece in _pieces(blocks, lengths):
            working.append((len(piece), pool.submit(zstd.compress, piece, None, _OPTIONS)))
            if len(working) > _WORKERS:
                yield done()
        while working:
            yield done()


def _pieces(blocks: Iterable[memoryview], lengths: Iterable[int]) -> Iterator[bytearray]:
    given = iter(blocks)
    rest = memoryview(b"")
    for length in lengths:
        piece = bytearray()
        while len(piece) < length:
            if not rest:
                rest = next(given)
            taken = rest[: length - len(piece)]
            piece += taken
            rest = rest[len(taken) :]
        yield piece


def expanded(data: bytes | bytearray | memoryview, frame: Frame) -> bytes:
    """Return the bytes of a frame. Raises: ChecksumMismatch when it is damaged."""
    decompressor = zstd.ZstdDecompressor()
    try:
        found = decompressor.decompress(data, frame.size + 1)
    except (zstd.ZstdError, EOFError) as exc:
        raise ChecksumMismatch("a frame of the bundle is damaged") from exc
    if len(found) != frame.size or not decompressor.eof or decompressor.unused_data:
        raise ChecksumMismatch("a frame of the bundle is damaged")
    return found


def seek_table(frames: Sequence[Frame]) -> bytes:
    """Return the table: a skippable frame, for the end of the file."""
    entries = b"".join(_ENTRY.pack(frame.stored, frame.size) for frame in frames)
    body = entries + _FOOTER.pack(len(frames), 0, _SEEKABLE)
    return _HEAD.pack(_SKIPPABLE, len(body)) + body


def table_size(footer: bytes) -> int:
    """Return the table's length in bytes. Raises: RemoteFailure when that is no table's end."""
    count: int
    count, descriptor, magic = _FOOTER.unpack(footer)
    if magic != _SEEKABLE or descriptor not in (0, _WITH_CHECKSUMS):
        raise RemoteFailure("the bundle has no table of frames at its end")
    entry = _ENTRY.size + (4 if descriptor == _WITH_CHECKSUMS else 0)
    return _HEAD.size + count * entry + _FOOTER.size


def read_table(table: bytes, size: int) -> tuple[Frame, ...]:
    """Read the table of a file of `size` bytes. Raises: RemoteFailure when it is damaged, or not of this file."""
    count, descriptor, _ = _FOOTER.unpack(table[-_FOOTER.size :])
    if _HEAD.unpack_from(table) != (_SKIPPABLE, len(table) - _HEAD.size):
        raise RemoteFailure("the bundle's table of frames is damaged")
    step = _ENTRY.size + (4 if descriptor == _WITH_CHECKSUMS else 0)
    frames = tuple(Frame(*_ENTRY.unpack_from(table, _HEAD.size + number * step)) for number in range(count))
    require_whole(frames, size - len(table))
    return frames


def require_whole(frames: Sequence[Frame], stored: int) -> None:
    """Check that frames are as many bytes as are stored, that they hold a tar file's records, which one wrong bit in
    their sizes excludes, and that none is too large. Raises: RemoteFailure.
    """
    sizes = [frame.size for frame in frames]
    whole = sum(frame.stored for frame in frames) == stored and sum(sizes) % tarfile.RECORDSIZE == 0
    if not whole or max(sizes, default=0) > FRAME_MAX:
        raise RemoteFailure("the bundle's table of frames is damaged")
