"""`decompress`: what is packed is unpacked while it passes; nothing that is not whole is published."""

from __future__ import annotations

import gzip
import hashlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datamanager.domain.requests import GetExternalRequest
from datamanager.errors import (
    ChecksumMismatch,
    ConnectionLost,
    DataManagerError,
    DownloadFailed,
    SizeMismatch,
    TooLarge,
)
from datamanager.sources.download_terms import DownloadSources
from tests.support.downloads import LOOPBACK, open_download
from tests.support.fetcher import Fetcher
from tests.support.odd_http import OddServer, answer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MIB = 2**20
BODY = random.Random(5).randbytes(3 * MIB + 1) + bytes(3 * MIB)
GZIP = gzip.compress(BODY, 1, mtime=0)
ZSTD = zstd.compress(BODY)


@pytest.fixture
def fetcher(tmp_path: Path) -> Iterator[Fetcher]:
    made = Fetcher(tmp_path)
    yield made
    made.ends.storages.close()


def packed(
    server: OddServer, content: bytes, packing: str, *, sent: int | None = None, **options: Any
) -> DownloadSources:
    """Return what a request reads from a server that has `content`, and breaks off after `sent` bytes of it."""
    server.answers["/a"] = [answer("200 OK", f"Content-Length: {len(content)}", 'ETag: "1"', body=content[:sent])]
    return open_download(server.url("/a"), "http", {"decompress": packing, **options}, LOOPBACK, max_size=2**40)


@pytest.mark.parametrize(
    ("packing", "content", "unpacked"),
    [
        ("gzip", GZIP, BODY),
        ("gzip", gzip.compress(b"one") + gzip.compress(b"") + gzip.compress(b"two"), b"onetwo"),
        ("gzip", gzip.compress(b"padded") + bytes(2 * MIB), b"padded"),
        ("gzip", gzip.compress(b"a") + bytes(5) + gzip.compress(b"b"), b"ab"),
        ("gzip", gzip.compress(b""), b""),
        ("gzip", gzip.compress(b"a") * 50_000, b"a" * 50_000),
        ("zstd", ZSTD, BODY),
        ("zstd", zstd.compress(b"one") + zstd.compress(b"") + zstd.compress(b"two"), b"onetwo"),
        (
            "zstd",
            bytes.fromhex("50 2a 4d 18 03 00 00 00") + b"abc" + zstd.compress(b"behind a skipped frame"),
            b"behind a skipped frame",
        ),
        ("zstd", zstd.compress(b""), b""),
        ("zstd", zstd.compress(b"a") * 50_000, b"a" * 50_000),
    ],
    ids=[
        "gzip",
        "members",
        "padding",
        "zeros between",
        "nothing",
        "tiny members",
        "zstd",
        "frames",
        "skippable",
        "empty frame",
        "tiny frames",
    ],
)
def test_it_is_unpacked(server: OddServer, fetcher: Fetcher, packing: str, content: bytes, unpacked: bytes) -> None:
    assert fetcher.attempt(packed(server, content, packing)) == unpacked


@pytest.mark.parametrize(
    ("packing", "content"),
    [
        ("gzip", b""),
        ("gzip", b"CDF is no gzip"),
        ("gzip", ZSTD),
        ("gzip", GZIP[:-1]),
        ("gzip", GZIP[: len(GZIP) // 2]),
        ("gzip", gzip.compress(b"good", mtime=0) + b"and more"),
        ("gzip", GZIP[:-8] + bytes([GZIP[-8] ^ 1]) + GZIP[-7:]),
        ("zstd", b""),
        ("zstd", GZIP),
        ("zstd", ZSTD[:-1]),
        ("zstd", ZSTD + b"and more"),
        ("zstd", ZSTD[:100] + bytes([ZSTD[100] ^ 1, *ZSTD[101:110]])),
    ],
)
def test_what_is_no_whole_packed_file_is_not_published(
    server: OddServer, fetcher: Fetcher, packing: str, content: bytes
) -> None:
    error = fetcher.refused(DownloadFailed, packed(server, content, packing))
    assert f"not a complete {packing} file" in error.detail
    assert not error.retryable


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
def test_a_bomb_is_let_go(server: OddServer, fetcher: Fetcher, packing: str) -> None:
    zeros = bytes(MIB)
    if packing == "gzip":
        content = gzip.compress(zeros * 100)
    else:
        content = zstd.compress(zeros * 100)
    assert len(content) * 200 < 100 * MIB
    error = fetcher.refused(TooLarge, packed(server, content, packing))
    assert "200 times" in error.detail


def test_what_is_stored_has_the_limit_too(server: OddServer, fetcher: Fetcher) -> None:
    fetcher.refused(TooLarge, packed(server, GZIP, "gzip"), limit=len(BODY) - 1)
    assert fetcher.attempt(packed(server, GZIP, "gzip"), limit=len(BODY)) == BODY


def test_size_and_checksum_are_of_what_the_source_has(server: OddServer, fetcher: Fetcher) -> None:
    right, wrong = (f"sha256:{hashlib.sha256(content).hexdigest()}" for content in (GZIP, BODY))
    assert not fetcher.refused(ChecksumMismatch, packed(server, GZIP, "gzip", checksum=wrong)).retryable
    fetcher.refused(SizeMismatch, packed(server, GZIP, "gzip"), size=len(BODY))
    assert fetcher.attempt(packed(server, GZIP, "gzip", checksum=right), size=len(GZIP)) == BODY


def test_a_cut_is_no_end(server: OddServer, fetcher: Fetcher) -> None:
    fetcher.refused(ConnectionLost, packed(server, GZIP, "gzip", sent=2 * MIB))
    assert fetcher.marker is None  # nothing can be gone on with
    assert fetcher.attempt(packed(server, GZIP, "gzip")) == BODY


def test_another_mirror_is_asked_for_what_is_damaged(server: OddServer, fetcher: Fetcher) -> None:
    server.answers["/b"] = [answer("200 OK", f"Content-Length: {len(GZIP)}", body=GZIP)]
    damaged = packed(server, GZIP[:-1], "gzip", mirrors=[server.url("/b")])
    assert fetcher.attempt(damaged) == BODY


@pytest.mark.parametrize(
    ("url", "options", "name"),
    [
        ("https://data.example/a.nc.gz", {"decompress": "gzip"}, "a.nc"),
        ("https://data.example/a.nc.ZST?x=1", '{"decompress": "zstd"}', "a.nc"),
        ("https://data.example/a.nc", {"decompress": "gzip"}, "a.nc"),
        ("https://data.example/a.nc.gz", {}, "a.nc.gz"),
        ("https://data.example/.gz", {"decompress": "gzip"}, "gz"),
    ],
)
def test_the_name_is_that_of_what_is_inside(url: str, options: dict[str, str] | str, name: str) -> None:
    request = GetExternalRequest.model_validate({"url": url, "machine": "m", "options": options})
    assert request.filename == name
    given = GetExternalRequest.model_validate({"url": url, "machine": "m", "options": options, "filename": "b.gz"})
    assert given.filename == "b.gz"


def test_an_unknown_packing_is_refused_by_name() -> None:
    with pytest.raises(DataManagerError, match=r"options\.decompress"):
        open_download("https://data.example/a", "http", {"decompress": "rar"}, LOOPBACK, max_size=1)
