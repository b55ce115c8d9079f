"""What every source must do, whatever its protocol: one suite over real servers, through the engine that writes files.

A protocol is added in tests/support/source_servers.py.
"""

from __future__ import annotations

import gzip
import hashlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from datamanager.engine.fetching import replica_fetch
from datamanager.errors import (
    ChecksumMismatch,
    DataManagerError,
    SizeMismatch,
    SourceChanged,
    TooLarge,
    UrlNotAllowed,
)
from datamanager.sources.download_terms import DownloadSources
from datamanager.sources.network.egress_guard import EgressGuard
from tests.support.downloads import check_download, open_download, open_source
from tests.support.fetcher import Fetcher
from tests.support.source_servers import ALLOWED, SERVERS, SourceServer

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.server

BODY = random.Random(66).randbytes(6 * 2**20 + 17)
OTHER = random.Random(67).randbytes(len(BODY))
MIDWAY = (len(BODY) // 2, len(BODY) // 2, 1, 1)
"""Cuts that end an attempt with a part of the file there, whether or not a login takes a connection of its own."""


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SourceServer]:
    with SERVERS[request.param](tmp_path_factory.mktemp(request.param)) as running:
        yield running


@pytest.fixture
def fetcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fetcher]:
    monkeypatch.setattr(replica_fetch, "CHECKPOINT_EVERY", 0.0)
    made = Fetcher(tmp_path)
    yield made
    made.ends.storages.close()


def opened(server: SourceServer, url: str, guard: EgressGuard = ALLOWED, **options: Any) -> DownloadSources:
    """Return what a request for `url` reads."""
    return open_download(
        url,
        server.protocol,
        {**server.options, **options},
        guard,
        max_size=2**30,
        connect_timeout=30,
        read_timeout=30,
        ca_file=server.ca_file,
    )


@pytest.mark.parametrize("size", [0, 1, 2**20, len(BODY)])
def test_the_exact_bytes(server: SourceServer, fetcher: Fetcher, size: int) -> None:
    url = server.put("plain.bin", BODY[:size])
    assert fetcher.attempt(opened(server, url), size=size or None) == BODY[:size]


@pytest.mark.parametrize(
    "name", ["a b.bin", "ü€.bin", "semi;colon.bin", "per%cent.bin", "plus+and&.bin", "-dash", "$(id)"]
)
def test_odd_names(server: SourceServer, fetcher: Fetcher, name: str) -> None:
    """Servers' files with odd names are fetched by their escaped URL."""
    url = server.put(name, BODY[:1000])
    base = url[: -len(name)] if url.endswith(name) else url.rpartition("/")[0] + "/"
    assert fetcher.attempt(opened(server, base + quote(name))) == BODY[:1000]


def test_parts_and_versions(server: SourceServer) -> None:
    """A part is exactly the part, of the version that was begun; of another one there is none."""
    url = server.put("parts.bin", BODY)
    source = open_source(
        url, server.protocol, server.options, ALLOWED, max_size=2**30, ca_file=server.ca_file, read_timeout=30
    )
    with source.open() as whole:
        assert (whole.size, whole.start) == (len(BODY), 0)
        version, ranges = whole.version, whole.ranges
    assert version
    for start, stop in ((0, None), (1, None), (2**20, 2**20 + 1), (len(BODY) - 1, None), (5, len(BODY))):
        with source.open(start, stop, version=version) as part:
            assert (part.start, part.size, part.version) == (start, len(BODY), version)
            body = b"".join(bytes(block) for block in part.blocks())
        end = len(body) + start if stop is not None and not ranges else stop
        assert body == BODY[start:end]
    server.put("parts.bin", OTHER)
    for start in (0, 2**20):
        with pytest.raises(SourceChanged), source.open(start, version=version):
            pass
    server.put("parts.bin", OTHER[:1000])
    with pytest.raises(SourceChanged), source.open(2**20, version=version):
        pass


def test_login(server: SourceServer, fetcher: Fetcher) -> None:
    url = server.put("secret.bin", BODY[:5000], private=True)
    assert fetcher.attempt(opened(server, url, **server.login)) == BODY[:5000]


def test_a_wrong_login(server: SourceServer, fetcher: Fetcher) -> None:
    url = server.put("secret.bin", BODY[:5000], private=True)
    error = fetcher.refused(DataManagerError, opened(server, url, **server.wrong_login))
    assert not error.retryable
    for secret in server.wrong_login.values():
        assert len(secret) < 5 or str(secret) not in error.detail


def test_nothing_there(server: SourceServer, fetcher: Fetcher) -> None:
    url = server.put("gone.bin", b"x")
    server.remove("gone.bin")
    assert not fetcher.refused(DataManagerError, opened(server, url)).retryable


@pytest.mark.parametrize("seed", range(4))
def test_it_goes_on_after_cuts_at_random_places(server: SourceServer, fetcher: Fetcher, seed: int) -> None:
    chance = random.Random(seed)
    url = server.put("cut.bin", BODY)
    cuts = [chance.randrange(1000, len(BODY)) for _ in range(3)]
    with server.cut(*cuts) as by:
        fetching = opened(server, by(url), checksum=f"md5:{hashlib.md5(BODY).hexdigest()}")
        assert fetcher.until_done(fetching) == BODY
    assert sorted(path.name for path in fetcher.folder.iterdir()) == ["file"]


def test_another_version_after_a_cut_begins_anew(server: SourceServer, fetcher: Fetcher) -> None:
    url = server.put("changing.bin", BODY)
    with server.cut(*MIDWAY) as by:
        fetching = opened(server, by(url))
        with pytest.raises(DataManagerError):
            fetcher.attempt(fetching)
        server.put("changing.bin", OTHER)
        assert fetcher.until_done(fetching) == OTHER


def test_a_damaged_part_begins_anew(server: SourceServer, fetcher: Fetcher) -> None:
    url = server.put("damaged.bin", BODY)
    with server.cut(*MIDWAY * 2) as by:
        fetching = opened(server, by(url))
        content = bytearray()
        while not content:  # a connection that is reset takes with it what was not read yet
            with pytest.raises(DataManagerError):
                fetcher.attempt(fetching)
            [part] = fetcher.folder.iterdir()
            content = bytearray(part.read_bytes())
        content[1000] ^= 1
        part.write_bytes(content)
        assert fetcher.until_done(fetching) == BODY


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_a_wrong_checksum_publishes_nothing(server: SourceServer, fetcher: Fetcher, algorithm: str) -> None:
    url = server.put("sum.bin", BODY)
    wrong = hashlib.new(algorithm, OTHER).hexdigest()
    error = fetcher.refused(ChecksumMismatch, opened(server, url, checksum=f"{algorithm}:{wrong}"))
    assert not error.retryable
    right = hashlib.new(algorithm, BODY).hexdigest()
    assert fetcher.attempt(opened(server, url, checksum=f"{algorithm}:{right.upper()}")) == BODY


def test_a_wrong_size_publishes_nothing(server: SourceServer, fetcher: Fetcher) -> None:
    url = server.put("size.bin", BODY)
    fetcher.refused(SizeMismatch, opened(server, url), size=len(BODY) - 1)
    fetcher.refused(SizeMismatch, opened(server, url), size=len(BODY) + 1)


def test_too_large_publishes_nothing(server: SourceServer, fetcher: Fetcher) -> None:
    url = server.put("large.bin", BODY)
    fetcher.refused(TooLarge, opened(server, url, max_size=len(BODY) - 1))
    fetcher.refused(TooLarge, opened(server, url), limit=len(BODY) - 1)
    assert fetcher.attempt(opened(server, url, max_size=len(BODY)), limit=len(BODY)) == BODY


def test_the_guard_is_asked_before_anything_is_sent(server: SourceServer, fetcher: Fetcher) -> None:
    url = server.put("guarded.bin", b"x")
    with pytest.raises(UrlNotAllowed):
        check_download(url, server.protocol, server.options, EgressGuard())
    fetching = opened(server, url, guard=EgressGuard())
    fetcher.refused(UrlNotAllowed, fetching)


def test_a_mirror_is_taken_when_the_first_one_fails(server: SourceServer, fetcher: Fetcher) -> None:
    gone, wrong, good = (server.put(f"mirror{n}.bin", body) for n, body in enumerate((b"", OTHER, BODY)))
    server.remove("mirror0.bin")
    checksum = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
    assert fetcher.attempt(opened(server, gone, mirrors=[wrong, good], checksum=checksum)) == BODY


@pytest.mark.parametrize("packing", ["gzip", "zstd"])
def test_it_is_unpacked_on_the_way(server: SourceServer, fetcher: Fetcher, packing: str) -> None:
    packed = gzip.compress(BODY) if packing == "gzip" else zstd.compress(BODY)
    url = server.put("packed", packed)
    fetching = opened(server, url, decompress=packing, checksum=f"sha256:{hashlib.sha256(packed).hexdigest()}")
    assert fetcher.attempt(fetching, size=len(packed)) == BODY


def test_what_is_unpacked_and_cut_begins_anew(server: SourceServer, fetcher: Fetcher) -> None:
    url = server.put("packed-and-cut", gzip.compress(BODY))
    with server.cut(len(BODY) // 2) as through:
        assert fetcher.until_done(opened(server, through(url), decompress="gzip")) == BODY
