"""Bundles without machines' networks: layouts and frames as Debian's tar and zstd see them, manifests, groups."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamanager.domain.bundle_model import (
    MEMBERS_MAX,
    Frame,
    Group,
    Manifest,
    Member,
    Pack,
    SealedBundle,
    VerifyLevel,
    WantedMember,
    bundle_place,
    manifest_place,
)
from datamanager.domain.location import Place
from datamanager.engine.bundles import frames as framing
from datamanager.engine.bundles import manifest as manifests
from datamanager.engine.bundles.bundle_content import BundleDigest
from datamanager.engine.bundles.content_reader import BATCH, BundleReader
from datamanager.engine.bundles.frames import FramesReader
from datamanager.engine.bundles.layout import LARGE, BundleEntry, Layout, header_of
from datamanager.errors import ChecksumMismatch, DataManagerError, RemoteFailure, SourceChanged, SourceMissing
from datamanager.machines import Machine
from datamanager.transports.port import Session
from datamanager.transports.values import NextRange
from tests.support.ends import Ends

SCHEMA = Path(__file__).parents[2] / "docs" / "manifest.schema.json"
MTIME = 1_500_000_000
NAMES = [
    "plain",
    "-dash",
    "new\nline",
    " blank ",
    "quo'te\"",
    "$(id)",
    "n" * 255,
    "é" * 127,
    "文件",
    "a=b\n12 path=x\n",
]
SIZES = [0, 1, 511, 512, 513, LARGE - 1, LARGE, LARGE + 1, 3 * 2**20 + 5, 0, 7, 2 * 2**20, 2 * 2**20, 100]


def uuid(number: int) -> UUID:
    return UUID(int=number)


def entry(number: int, name: str, size: int, path: str = "", **rest: int) -> BundleEntry:
    values = {"mode": 0o640, "mtime": MTIME, **rest}
    return BundleEntry(uuid(number), Place("a", f"dir/{name}"), path, size, values["mode"], values["mtime"])


def built(layout: Layout, data: list[bytes]) -> bytes:
    """Build the stream in the most stupid way."""
    if layout.pack is Pack.NONE:
        return data[0]
    stream = b""
    for index, one in enumerate(data):
        stream += layout.header(index) + one + bytes(-len(one) % 512)
    return stream + bytes(layout.size - len(stream))


entries_st = st.lists(
    st.tuples(
        st.sampled_from(NAMES)
        | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1),
        st.integers(0, 2000),
        st.integers(0, 0o777),
        st.integers(0, 2**34),
    ),
    min_size=1,
    max_size=12,
)


@given(entries_st)
@settings(deadline=None)
def test_a_layout_is_what_the_standard_library_reads(given_entries: list[tuple[str, int, int, int]]) -> None:
    entries = [
        entry(number, name[:80], size, mode=mode, mtime=mtime)
        for number, (name, size, mode, mtime) in enumerate(given_entries)
    ]
    data = [os.urandom(one.size) for one in entries]
    layout = Layout(entries, Pack.TAR)
    stream = built(layout, data)
    assert len(stream) == layout.size
    digest = BundleDigest(layout)
    for at in range(0, len(stream), 700):
        digest.update(stream[at : at + 700])
    members = layout.members(digest.sums)
    assert digest.hexdigest() == hashlib.sha256(stream).hexdigest()
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        found = tar.getmembers()
        assert [info.name for info in found] == [one.name for one in members]
        for info, one, bytes_ in zip(found, members, data, strict=True):
            assert (info.offset_data, info.size, info.mode, info.mtime) == (one.offset, one.size, one.mode, one.mtime)
            assert info.isreg()
            assert hashlib.sha256(bytes_).hexdigest() == one.sha256
            assert layout.at(one.offset) == members.index(one) or not one.size


def test_headers_never_change() -> None:
    """They are compared byte by byte when a member is recalled, years later."""
    plain = header_of(BundleEntry(uuid(1), Place("m", "a"), "", 5, 0o640, MTIME))
    odd = header_of(BundleEntry(uuid(2), Place("m", "é" * 127), "", 9 * 2**30, 0o600, MTIME))
    assert (len(plain), len(odd)) == (512, 1536)
    digests = [hashlib.sha256(one).hexdigest()[:16] for one in (plain, odd)]
    assert digests == HEADERS


HEADERS = ["48ae30f07a30bb96", "2fbaf59bf4fcdffb"]


def test_debians_tar_reads_members_beyond_8_gib(tmp_path: Path) -> None:
    layout = Layout([entry(1, "big", 9 * 2**30), entry(2, "new\nline", 3)], Pack.TAR)
    with (tmp_path / "b.tar").open("wb") as file:
        file.truncate(layout.size)  # sparse
        for index in range(2):
            file.seek(layout.start(index))
            file.write(layout.header(index))
    listed = subprocess.run(["tar", "-tvf", tmp_path / "b.tar"], capture_output=True, text=True, check=True).stdout
    assert f" {9 * 2**30} " in listed.splitlines()[0]
    assert listed.splitlines()[1].endswith(f"{uuid(2)}/new\\nline")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Ends]:
    """A machine `a`, this host."""
    (tmp_path / "a").mkdir()
    machine = Machine.model_validate({"name": "a", "transport": "local", "base_dir": str(tmp_path / "a")})
    ends = Ends({"a": machine}, tmp_path / "run")
    yield ends
    ends.storages.close()


@pytest.fixture
def session(site: Ends) -> Iterator[Session]:
    with site.storages.get("a").session() as lent:
        yield lent


def files(folder: Path, sizes: list[int]) -> tuple[list[BundleEntry], list[bytes]]:
    entries, data = [], []
    for number, size in enumerate(sizes):
        path = folder / f"file{number}"
        data.append(os.urandom(size))
        path.write_bytes(data[-1])
        os.utime(path, (MTIME, MTIME))
        entries.append(entry(number, NAMES[number % len(NAMES)], size, str(path)))
    return entries, data


def dealt(ranges: list[tuple[int, int]]) -> NextRange:
    given_out = iter(ranges)
    return lambda wait: next(given_out, None)


def collected(found: Iterator[tuple[int, memoryview]]) -> list[tuple[int, bytes]]:
    """Join blocks that follow each other."""
    joined: list[tuple[int, bytes]] = []
    for offset, block in found:
        assert 0 < len(block) <= 2**20
        joined.append((offset, bytes(block)))
    return joined


@pytest.mark.parametrize("pack", [Pack.TAR, Pack.NONE])
def test_a_bundle_is_read_as_a_whole(site: Ends, session: Session, pack: Pack) -> None:
    entries, data = files(site.folder("a"), SIZES if pack is Pack.TAR else [LARGE * 3 + 1])
    layout = Layout(entries, pack)
    reader = BundleReader(session, layout, {})
    assert b"".join(bytes(block) for block in reader.blocks()) == built(layout, data)
    reader.close()


@pytest.mark.parametrize("size", [0, 1])
def test_a_tiny_file_stands_alone(site: Ends, session: Session, size: int) -> None:
    entries, data = files(site.folder("a"), [size])
    layout = Layout(entries, Pack.NONE)
    digest = BundleDigest(layout)
    for block in BundleReader(session, layout, {}).blocks():
        digest.update(block)
    assert digest.complete
    assert digest.sums == [hashlib.sha256(data[0]).hexdigest()]


@given(ranges=st.lists(st.tuples(st.integers(0, 10 * 2**20), st.integers(1, 5 * 2**20)), max_size=8))
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_bundle_is_read_at_any_offset(site: Ends, session: Session, ranges: list[tuple[int, int]]) -> None:
    folder = site.folder("a")
    if not (folder / "file0").exists():
        files(folder, SIZES)
    entries = [entry(n, NAMES[n % len(NAMES)], size, str(folder / f"file{n}")) for n, size in enumerate(SIZES)]
    layout = Layout(entries, Pack.TAR)
    stream = built(layout, [Path(one.path).read_bytes() for one in entries])
    within = [(at, min(length, layout.size - at)) for at, length in ranges if at < layout.size]
    reader = BundleReader(session, layout, {})
    assert_ranges(reader.ranges(dealt(within)), within, stream)
    reader.close()


def assert_ranges(found: Iterator[tuple[int, memoryview]], ranges: list[tuple[int, int]], stream: bytes) -> None:
    blocks = iter(collected(found))
    for offset, length in ranges:
        stop = offset + length
        while offset < stop:
            at, block = next(blocks)
            assert at == offset
            assert block == stream[offset : offset + len(block)]
            offset += len(block)
        assert offset == stop
    assert next(blocks, None) is None


def test_many_small_members_are_read_in_batches(site: Ends, session: Session) -> None:
    entries, data = files(site.folder("a"), [0, 1, 700, 64 * 1024] * 600)
    assert sum(map(len, data)) > 4 * BATCH
    layout = Layout(entries, Pack.TAR)
    digest = BundleDigest(layout)
    for block in BundleReader(session, layout, {}).blocks():
        digest.update(block)
    assert digest.sums == [hashlib.sha256(one).hexdigest() for one in data]


@pytest.mark.parametrize("size", [100, LARGE + 100])
@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda path: path.unlink(), SourceMissing),
        (lambda path: path.write_bytes(b"x"), SourceChanged),
        (lambda path: os.utime(path, (5, 5)), SourceChanged),
        (lambda path: path.write_bytes(bytes(LARGE * 3)), SourceChanged),
    ],
)
def test_the_entry_that_is_not_what_it_was_is_blamed(
    site: Ends, session: Session, size: int, change: Callable[[Path], object], error: type[DataManagerError]
) -> None:
    entries, _ = files(site.folder("a"), [10, size, 10])
    change(Path(entries[1].path))
    blamed: dict[int, DataManagerError] = {}
    with pytest.raises(error):
        list(BundleReader(session, Layout(entries, Pack.TAR), blamed).blocks())
    assert {index: type(one) for index, one in blamed.items()} == {1: error}


# --- compressed bundles ---


def compress(layout: Layout, stream: bytes) -> tuple[bytes, list[Frame]]:
    blocks = (memoryview(stream)[at : at + 300_001] for at in range(0, len(stream), 300_001))
    made = list(framing.compressed(blocks, framing.cuts(layout)))
    frames = [frame for frame, _ in made]
    return b"".join(data for _, data in made) + framing.seek_table(frames), frames


def table_of(data: bytes | bytearray) -> tuple[Frame, ...]:
    """Read the table at the end of a file."""
    return framing.read_table(bytes(data[-framing.table_size(bytes(data[-framing.FOOTER :])) :]), len(data))


@pytest.fixture
def packed(site: Ends) -> tuple[Layout, bytes, Path]:
    """A layout, its tar file, and that compressed, in a file."""
    entries = [entry(n, NAMES[n % len(NAMES)], size) for n, size in enumerate(SIZES)]
    data = [os.urandom(size // 2) + bytes(size - size // 2) for size in SIZES]
    layout = Layout(entries, Pack.TAR_ZST)
    stream = built(layout, data)
    path = site.folder("a") / "b.tar.zst"
    path.write_bytes(compress(layout, stream)[0])
    return layout, stream, path


def test_debians_zstd_and_tar_read_a_compressed_bundle(packed: tuple[Layout, bytes, Path], tmp_path: Path) -> None:
    layout, stream, path = packed
    assert subprocess.run(["zstd", "-dc", path], capture_output=True, check=True).stdout == stream
    listed = subprocess.run(["tar", "--zstd", "-tf", path, "--quoting-style=literal"], capture_output=True, check=True)
    assert len(listed.stdout) == sum(len(f"{one.uuid}/{one.source.name}\n".encode()) for one in layout.entries)
    subprocess.run(["zstd", "-t", "-q", path], check=True)


def test_the_table_tells_the_frames(packed: tuple[Layout, bytes, Path]) -> None:
    layout, stream, path = packed
    data = path.read_bytes()
    length = framing.table_size(data[-framing.FOOTER :])
    frames = table_of(data)
    assert sum(frame.size for frame in frames) == len(stream)
    starts = {sum(frame.size for frame in frames[:number]) for number in range(len(frames))}
    for index, one in enumerate(layout.entries):
        if one.size >= framing.FRAME:
            assert layout.start(index) in starts
            assert layout.start(index + 1) in starts
    for at in range(length):  # any bit of the table
        broken = bytearray(data)
        broken[-length + at] ^= 1 << at % 8
        with pytest.raises(RemoteFailure):
            table_of(broken)


@given(ranges=st.lists(st.tuples(st.integers(0, 10 * 2**20), st.integers(1, 5 * 2**20)), max_size=8))
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_compressed_bundle_is_read_at_any_offset(
    packed: tuple[Layout, bytes, Path], session: Session, ranges: list[tuple[int, int]]
) -> None:
    layout, stream, path = packed
    data = path.read_bytes()
    frames = table_of(data)
    within = [(at, min(length, layout.size - at)) for at, length in ranges if at < layout.size]
    with session.open_read(str(path)) as stored:
        assert_ranges(FramesReader(stored, frames).ranges(dealt(within)), within, stream)


def test_a_damaged_frame_is_told_where_it_is_needed(packed: tuple[Layout, bytes, Path], session: Session) -> None:
    layout, stream, path = packed
    data = bytearray(path.read_bytes())
    frames = table_of(data)
    data[frames[0].stored + frames[1].stored // 2] ^= 8
    path.write_bytes(data)
    first, second = frames[0].size, frames[0].size + frames[1].size
    with session.open_read(str(path)) as stored:
        reader = FramesReader(stored, frames)
        assert_ranges(reader.ranges(dealt([(0, first)])), [(0, first)], stream)
        for _ in range(2):
            with pytest.raises(ChecksumMismatch):
                list(reader.ranges(dealt([(0, first), (first, 5)])))
        rest = [(second, layout.size - second)]
        assert_ranges(reader.ranges(dealt(rest)), rest, stream)


def test_frames_grow_with_the_bundle() -> None:
    layout = Layout([entry(1, "huge", 10 * 2**40)], Pack.TAR_ZST)
    lengths = framing.cuts(layout)
    assert next(lengths) == framing.FRAME_MAX
    small = Layout([entry(1, "small", 100)], Pack.TAR_ZST)
    assert list(framing.cuts(small)) == [small.size]


# --- manifests ---

paths = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=20).filter(
        lambda part: part not in (".", "..")
    ),
    min_size=1,
    max_size=3,
).map("/".join)
sha256s = st.binary(min_size=32, max_size=32).map(bytes.hex)


@st.composite
def manifest_st(draw: st.DrawFn) -> Manifest:
    pack = draw(st.sampled_from(Pack))
    size = draw(st.integers(10, 2**60))
    count = 1 if pack is Pack.NONE else draw(st.integers(1, 4))
    members = tuple(
        Member(
            draw(st.uuids(version=4)),
            Place("a", draw(paths)),
            draw(st.integers(0, 5)),
            draw(st.integers(0, 0o777)),
            draw(st.integers(-(2**40), 2**40)),
            draw(sha256s),
            draw(st.integers(0, 5)),
        )
        for _ in range(count)
    )
    return Manifest(
        SealedBundle(draw(st.uuids()), pack, Place("arch", draw(paths)), draw(st.integers(0, 2**60)), draw(sha256s)),
        draw(st.datetimes(timezones=st.just(UTC))).replace(microsecond=0),
        draw(st.text(st.characters(exclude_categories=["Cs"]))),
        draw(st.uuids()),
        draw(st.sampled_from(VerifyLevel)),
        size,
        members,
        (Frame(7, 10), Frame(9, size - 10)) if pack is Pack.TAR_ZST else (),
    )


@given(manifest_st())
def test_manifests_are_read_as_they_were_written(manifest: Manifest) -> None:
    data = manifests.dump(manifest)
    assert manifests.load(data) == manifest
    assert manifests.dump(manifests.load(data)) == data


MANIFEST = Manifest(
    SealedBundle(uuid(9), Pack.TAR, Place("arch", "bundles/x.tar"), 10240, "0" * 64),
    datetime(2026, 7, 1, tzinfo=UTC),
    "ann",
    uuid(8),
    VerifyLevel.CHECKSUMS,
    10240,
    (Member(uuid(1), Place("a", "dir/file"), 5, 0o640, MTIME, "1" * 64, 512),),
)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.update(version=2),
        lambda document: document.update(format="other"),
        lambda document: document.update(more=1),
        lambda document: document.pop("made"),
        lambda document: document["made"].update(at="2026-07-01T00:00:00"),
        lambda document: document["members"].clear(),
        lambda document: document["members"].extend(document["members"]),
        lambda document: document["members"][0].update(path="../file"),
        lambda document: document["members"][0].update(path="/dir/file"),
        lambda document: document["members"][0].update(path="dir/other"),
        lambda document: document["members"][0].update(name="../../file"),
        lambda document: document["members"][0].update(offset=10240),
        lambda document: document["members"][0].update(size=-1),
        lambda document: document["members"][0].update(sha256="xyz"),
        lambda document: document.update(frames=[[1, 10240]]),
    ],
)
def test_what_is_no_manifest_is_refused(change: Callable[[dict[str, Any]], object]) -> None:
    document = orjson.loads(manifests.dump(MANIFEST))
    change(document)
    with pytest.raises(RemoteFailure):
        manifests.load(orjson.dumps(document))
    with pytest.raises(RemoteFailure):
        manifests.load(b"{" * 100_000)


def test_the_published_schema_is_the_code() -> None:
    assert orjson.loads(SCHEMA.read_bytes()) == manifests.ManifestDocument.model_json_schema()


# --- which objects go together ---


@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 40)), max_size=40),
    st.integers(1, 60),
    st.booleans(),
)
def test_groups(objects: list[tuple[str, int]], bundle_size: int, alone: bool) -> None:
    wanted = [WantedMember(uuid(n), Place(machine, f"f{n}"), size) for n, (machine, size) in enumerate(objects)]
    groups = Group.each(wanted, bundle_size, alone=alone)
    assert sorted((one for group in groups for one in group.wanted), key=wanted.index) == wanted
    for group in groups:
        assert {one.source.machine for one in group.wanted} == {group.machine}
        assert sum(one.size for one in group.wanted) <= bundle_size or len(group.wanted) == 1
        assert not alone or len(group.wanted) == 1
        assert list(group.wanted) == sorted(group.wanted, key=wanted.index)


def test_a_group_has_no_end_of_members() -> None:
    wanted = [WantedMember(uuid(n), Place("a", "f")) for n in range(MEMBERS_MAX + 1)]
    assert [len(group.wanted) for group in Group.each(wanted, 1)] == [MEMBERS_MAX, 1]


def test_names() -> None:
    machine = Machine.model_validate({"name": "arch", "transport": "local", "base_dir": "/x"})
    names = {pack: bundle_place(machine, "long/term", uuid(9), pack) for pack in Pack}
    assert [place.name for place in names.values()] == [f"{uuid(9)}{end}" for end in (".tar", ".tar.zst", ".data")]
    assert {manifest_place(uuid(9), one).path for one in names.values()} == {f"long/term/{uuid(9)}.manifest.json"}
