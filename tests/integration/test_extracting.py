"""Archives from outside: what is in them is read as others wrote it, and what could do harm is refused before a byte of
it is extracted."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamanager.engine.bulk.bulk_chunk import SMALL
from datamanager.engine.control import Control
from datamanager.engine.extracting import archive_member, member_staging
from datamanager.engine.extracting.archive_listing import Packaging
from datamanager.engine.extracting.member_staging import StoredArchive
from datamanager.errors import (
    ChecksumMismatch,
    DataManagerError,
    DownloadFailed,
    PathNotAllowed,
    SourceChanged,
    TooLarge,
)
from tests.support.extracting import Workbench
from tests.support.packing import MTIME, directory, link, regular, tar_of, zip_of

FILES = {
    "a.txt": b"hello",
    "empty": b"",
    "some/b.bin": bytes(range(256)) * 10,
    "some/two  blanks -- and $(id) 'quotes'": b"x" * 511,
    "ünïcödé/" + "n" * 200: b"y" * 512,
    "deep/" + "d/" * 60 + "end": b"z" * 513,
    "store.zarr/.zattrs": b"{}",
}


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Workbench]:
    made = Workbench(tmp_path)
    yield made
    made.ends.storages.close()


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_tar_file_is_extracted(there: Workbench, form: int) -> None:
    members = there.listed(tar_of(FILES, form), "tar")
    assert [one.name for one in members] == list(FILES)
    assert {one.mtime for one in members} == {MTIME}
    assert there.extracted(members) == FILES


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_file_is_extracted(there: Workbench, method: int) -> None:
    members = there.listed(zip_of(FILES, method), "zip")
    assert [one.name for one in members] == list(FILES)
    assert {one.mtime for one in members} == {MTIME}
    assert there.extracted(members) == FILES


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_large_files_and_what_lies_behind_them(there: Workbench, kind: Packaging) -> None:
    files = {"one": os.urandom(SMALL + 1), "zeros": bytes(9 * 2**20 + 1), "small": b"!", "two": os.urandom(5 * 2**20)}
    members = there.listed(tar_of(files) if kind == "tar" else zip_of(files), kind)
    assert there.extracted(members) == files


@pytest.mark.parametrize("program", ["tar", "zip"])
def test_what_the_usual_programs_write(there: Workbench, tmp_path: Path, program: Packaging) -> None:
    tree = tmp_path / "tree"
    for name, data in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    made = tmp_path / f"made.{program}"
    if program == "tar":
        subprocess.run(["tar", "-C", tree, "-cf", made, "."], check=True)
    else:
        shutil.make_archive(str(tmp_path / "made"), "zip", tree)
    members = there.listed(made.read_bytes(), program)
    assert {one.name: one.size for one in members} == {name: len(data) for name, data in FILES.items()}
    assert there.extracted(members) == FILES


def test_an_archive_may_be_empty(there: Workbench) -> None:
    assert there.listed(tar_of({}), "tar") == there.listed(zip_of({}), "zip") == []


# --- what is refused ---

ELSEWHERE = [
    "/etc/passwd",
    "../x",
    "a/../../x",
    "a/..",
    "..",
    "/",
    ".",
    "./",
    "a\nb",
    "a\x1b[2Jb",
    "n" * 256,
    "d/" * 2100,
]
AT_HOME = [".ssh/authorized_keys", "./.profile", ".bashrc"]


@pytest.mark.attack(cwe=22, title="Names in a tar or zip file lead elsewhere")
@pytest.mark.parametrize("name", ELSEWHERE)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_a_name_that_leads_elsewhere(there: Workbench, name: str, kind: Packaging) -> None:
    data = tar_of({"good": b"", name: b"x"}) if kind == "tar" else zip_of({"good": b"", name: b"x"})
    if name.endswith("/") and kind == "zip":  # a directory: nothing is extracted of it
        assert [one.name for one in there.listed(data, kind)] == ["good"]
    else:
        there.alone(data, kind)


@pytest.mark.parametrize("name", AT_HOME)
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_no_hidden_file_gets_into_a_base_directory(there: Workbench, name: str, kind: Packaging) -> None:
    files = {name: b"x", "good": b"y"}
    data = tar_of(files) if kind == "tar" else zip_of(files)
    for top in ("", ".", "./"):
        assert "path" in there.alone(data, kind, directory=top)
    there.refused(PathNotAllowed, data, kind, directory="/")
    assert len(there.listed(data, kind)) == 2


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_of_two_with_one_name_the_later_one_is_taken(there: Workbench, kind: Packaging) -> None:
    made = io.BytesIO()
    if kind == "tar":
        with tarfile.open(fileobj=made, mode="w") as tar:
            tar.addfile(regular("a/b", 1), io.BytesIO(b"1"))
            tar.addfile(regular("./a//b", 1), io.BytesIO(b"2"))
    else:
        with zipfile.ZipFile(made, "w") as archive:
            archive.writestr("a/b", b"1")
            archive.writestr("./a//b", b"2")
    members = there.listed(made.getvalue(), kind)
    assert there.extracted(members) == {"a/b": b"2"}
    assert "twice" in there.told["a/b"]


@pytest.mark.attack(cwe=61, title="A tar file has links and devices")
@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE],
)
def test_links_and_devices_are_no_files(there: Workbench, kind: bytes) -> None:
    special = link("a", "/etc/passwd", kind)
    if kind == tarfile.GNUTYPE_SPARSE:
        special.size = 0
    assert "'a'" in there.alone(tar_of({"good": b""}, tarfile.GNU_FORMAT, special), "tar")


def test_links_in_a_zip_file_are_no_files(there: Workbench) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        info = zipfile.ZipInfo("a")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/passwd")
        archive.writestr("good", b"1")
    assert "link" in there.alone(made.getvalue(), "zip")


def test_what_is_too_much(there: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"a": bytes(1000), "b": bytes(1000)}
    for data, kind in ((tar_of(files), "tar"), (zip_of(files), "zip")):
        there.refused(TooLarge, data, kind, limit=1999)  # type: ignore[arg-type]
        assert len(there.listed(data, kind, limit=2000)) == 2  # type: ignore[arg-type]
    monkeypatch.setattr(archive_member, "MEMBERS_MAX", 50)
    many = {str(n): b"" for n in range(51)}
    there.refused(TooLarge, tar_of(many), "tar")
    there.refused(TooLarge, zip_of(many), "zip")
    del many["0"]
    assert len(there.listed(tar_of(many), "tar")) == 50


@pytest.mark.attack(cwe=409, title="A packed file becomes many times as large")
def test_a_bomb_is_refused(there: Workbench) -> None:
    there.refused(TooLarge, zip_of({"zeros": bytes(80 * 2**20)}), "zip")


def test_files_that_share_their_bytes(there: Workbench) -> None:
    """One kernel of bytes, many entries over it (Fifield, "A better zip bomb", 2019)."""
    plain = zip_of({"a": bytes(10_000), "b": b"b"})
    directory_at = plain.index(b"PK\1\2")
    a = plain.index(b"PK\1\2", directory_at + 1)
    entry = bytearray(plain[a : plain.index(b"PK\1\2", a + 1)])
    entry[46:47] = b"c"
    end = bytearray(plain[plain.index(b"PK\5\6") :])
    body = plain[: len(plain) - len(end)] + bytes(entry)
    count, _, size = struct.unpack_from("<HHL", end, 8)
    struct.pack_into("<HHL", end, 8, count + 1, count + 1, size + len(entry))
    assert "overlaps another" in there.refused(DownloadFailed, body + bytes(end), "zip")


def test_an_encrypted_zip_file(there: Workbench) -> None:
    data = bytearray(zip_of({"good": b"plain", "a": b"secret"}))
    at = data.rindex(b"PK\1\2")
    data[at + 8] |= 1
    assert "encrypted" in there.alone(bytes(data), "zip")


def test_a_method_that_nobody_knows(there: Workbench) -> None:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("a", b"x" * 100, zipfile.ZIP_LZMA)
        archive.writestr("good", b"1")
    assert "deflate" in there.alone(made.getvalue(), "zip")


@pytest.mark.parametrize(("magic", "word"), [(b"\x1f\x8b\x08\0", "gzip"), (b"\x28\xb5\x2f\xfd", "zstd")])
def test_what_is_compressed_says_what_to_give(there: Workbench, magic: bytes, word: str) -> None:
    assert f"decompress: {word}" in there.refused(DownloadFailed, magic + bytes(600), "tar")


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_what_is_no_archive(there: Workbench, kind: Packaging) -> None:
    for data in (b"", b"x", b"<html>not found</html>" * 100, os.urandom(10_000), b"\1" * 512):
        there.refused(DownloadFailed, data, kind)
    other = zip_of(FILES) if kind == "tar" else tar_of(FILES)
    there.refused(DownloadFailed, other, kind)


def test_every_cut_of_a_tar_file_is_noticed(there: Workbench) -> None:
    """But where it ends behind its last file: the zeros there are optional for many a program."""
    files = {"a": b"1" * 700, "b" * 150: b"2" * 100, "c": b"3" * 512}
    data = tar_of(files)
    whole = there.listed(data, "tar")
    last = whole[-1].offset + 512
    for cut in [*range(1, last, 97), last - 1]:
        if any(cut == one.offset + -(-one.size // 512) * 512 for one in whole):
            continue
        there.refused(DownloadFailed, data[:cut], "tar")
    assert there.listed(data[:last], "tar") == whole


def test_a_damaged_header_is_no_end(there: Workbench) -> None:
    data = bytearray(tar_of({"a": b"1", "b": b"2", "c": b"3"}))
    at = data.index(b"b\0")
    data[at] ^= 0xFF
    assert "damaged" in there.refused(DownloadFailed, bytes(data), "tar")


def test_headers_take_no_memory_and_no_stack(there: Workbench) -> None:
    huge = tarfile.TarInfo("././@PaxHeader")
    huge.type, huge.size = tarfile.XHDTYPE, 2**40
    there.refused(DownloadFailed, huge.tobuf() + bytes(2**20), "tar")
    upon = tarfile.TarInfo("x")
    upon.type, upon.size = tarfile.GNUTYPE_LONGNAME, 512
    there.refused(DownloadFailed, (upon.tobuf(tarfile.GNU_FORMAT) + b"n" * 512) * 5000 + tar_of({"a": b""}), "tar")


@pytest.mark.parametrize("kind", ["tar", "zip"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_gets_past(there: Workbench, kind: Packaging, data: st.DataObject) -> None:
    """Whatever is flipped, cut or put between: an error of ours, or files that are listed and extracted as they say."""
    made = bytearray(tar_of(FILES) if kind == "tar" else zip_of(FILES))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(made) - 1))
        match data.draw(st.sampled_from(["flip", "cut", "put"])):
            case "flip":
                made[at] ^= data.draw(st.integers(1, 255))
            case "cut":
                del made[at : at + data.draw(st.integers(1, 700))]
            case _:
                made[at:at] = data.draw(st.binary(min_size=1, max_size=600))
        if not made:
            break
    try:
        members = there.listed(bytes(made), kind)
    except (DownloadFailed, TooLarge):
        return
    shutil.rmtree(there.folder / "in", ignore_errors=True)
    for name, result in there.extracted(members).items():
        size = next(one.size for one in members if one.name == name)
        assert isinstance(result, DataManagerError) or len(result) == size
        if kind == "zip" and isinstance(result, bytes) and name in FILES and size == len(FILES[name]):
            assert result == FILES[name]  # its CRC says so


@pytest.mark.parametrize("size", [100, SMALL + 100])
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_file_costs_itself_alone(there: Workbench, size: int, method: int) -> None:
    files = {"a": b"a" * 50, "b": os.urandom(size), "c": b"c" * 50}
    data = bytearray(zip_of(files, method))
    victim = next(one for one in there.listed(bytes(data), "zip") if one.name == "b")
    data[victim.offset + victim.stored // 2] ^= 0x40
    found = there.extracted(there.listed(bytes(data), "zip"))
    assert isinstance(found["b"], ChecksumMismatch)
    assert (found["a"], found["c"]) == (files["a"], files["c"])


def test_an_archive_that_changes_under_it(there: Workbench) -> None:
    members = there.listed(tar_of({"a": b"1" * 100, "b": bytes(SMALL + 1)}), "tar")
    lying = StoredArchive(str(there.archive), there.archive.stat().st_size)
    os.truncate(there.archive, 1024)
    job = there.ends.job("m:archive/b", "m:in/b")
    with pytest.raises(DataManagerError):
        member_staging.stage_large(job, lying, members[1], Control(), lambda _: None)
    with there.ends.end("m", "x").storage.session() as session, pytest.raises(SourceChanged):
        lying.require_unchanged(session)


def test_directories_are_made_only_for_files(there: Workbench) -> None:
    members = there.listed(tar_of({"x/y": b"1"}, tarfile.PAX_FORMAT, directory("lonely")), "tar")
    there.extracted(members)
    assert sorted(file.name for file in (there.folder / "in").iterdir()) == ["x"]


# --- what a hostile archive could cost ---


def record(keyword: str, value: bytes) -> bytes:
    """Return a record of a pax header (POSIX.1-2017, pax Extended Header)."""
    body = b" " + keyword.encode() + b"=" + value + b"\n"
    length = len(body) + len(str(len(body) + 3))
    return str(length).encode() + body


def extended(body: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """Return a pax header with this body, whatever it is."""
    info = tarfile.TarInfo("././@PaxHeader")
    info.type, info.size = kind, len(body)
    return info.tobuf(tarfile.USTAR_FORMAT) + body + bytes(-len(body) % tarfile.BLOCKSIZE)


def test_the_base_directory_by_its_own_path(there: Workbench) -> None:
    base = str(there.folder)
    for top in (base, f"{base}/", f"{base}/./", base.replace("/", "//")):
        assert "path" in there.alone(tar_of({".ssh/authorized_keys": b"x", "good": b""}), "tar", directory=top)
    assert len(there.listed(tar_of({".zattrs": b"{}"}), "tar", directory=f"{base}/in")) == 1


def test_the_base_directory_through_a_link_is_no_place_for_dot_names(there: Workbench) -> None:
    (there.folder / "in").mkdir()
    (there.folder / "top").symlink_to(".")
    (there.folder / "in" / "up").symlink_to("..")
    (there.folder / ".cache").mkdir()
    for top, name in (("top", ".ssh/x"), ("in/up", ".bashrc"), ("in", "up/.ssh/x"), ("top", "in/up/.x")):
        assert "hidden" in there.alone(tar_of({"good": b"", name: b"x"}), "tar", directory=top)
    for top, name in (("in", ".zattrs"), ("top", "in/.zattrs"), (".cache", "a"), ("top/.cache", ".b")):
        assert len(there.listed(tar_of({name: b"{}"}), "tar", directory=top)) == 1


def test_many_digits_are_no_record(there: Workbench) -> None:
    """The standard library looks for a record in time that grows with the square of them (CVE-2024-6232)."""
    data = extended(b"1" * 40_000) + tar_of({"a": b""})
    there.refused(DownloadFailed, data, "tar")


def test_a_sparse_map_is_read_no_further_than_a_header(there: Workbench) -> None:
    old = tarfile.TarInfo("a")
    old.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(old.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1  # more of the map follows
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    more = (b"00000000001\0" * 42).ljust(504, b"\0") + b"\1" + bytes(7)
    for map_ in (b"", more, more * 10_000):
        there.refused(DownloadFailed, bytes(header) + map_, "tar")
    new = extended(record("GNU.sparse.major", b"1") + record("GNU.sparse.minor", b"0")) + regular("a").tobuf()
    for count in (10, 3_000_000):
        there.refused(DownloadFailed, new + str(count).encode() + b"\n1" * count + b"\n" + bytes(10_240), "tar")


def test_global_headers_do_not_pile_up(there: Workbench) -> None:
    """Each may say something of all files behind it, and is kept until the end."""
    some = [extended(record(f"key{n}", b"v" * 1000), tarfile.XGLTYPE) + regular(f"{n}").tobuf() for n in range(1000)]
    there.refused(DownloadFailed, b"".join(some) + bytes(1024), "tar")
    few = extended(record("comment", b"c" * 40), tarfile.XGLTYPE) + tar_of({"a": b"1"})
    assert [one.name for one in there.listed(few, "tar")] == ["a"]


def test_more_directories_than_files(there: Workbench) -> None:
    deep = {f"{n}/{'d/' * 1500}x": b"" for n in range(20)}
    there.refused(TooLarge, tar_of(deep), "tar")


def test_many_bytes_that_become_few(there: Workbench) -> None:
    """They are not held in memory, as small files are."""
    nothing = b"\0\0\0\xff\xff"  # a stored block without a byte (RFC 1951, 3.2.4)
    packed = nothing * (32 * 2**20 // len(nothing)) + b"\1\3\0\xfc\xffabc"
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr("few", packed)
        archive.writestr("other", b"o")
    data = bytearray(made.getvalue())
    at = data.rindex(b"PK\1\2", 0, data.rindex(b"PK\1\2"))
    struct.pack_into("<H", data, at + 10, zipfile.ZIP_DEFLATED)
    struct.pack_into("<LLL", data, at + 16, zlib.crc32(b"abc"), len(packed), 3)
    members = there.listed(bytes(data), "zip")
    assert [(one.name, one.size, one.stored) for one in members] == [("few", 3, len(packed)), ("other", 1, 1)]
    del data, packed, made
    tracemalloc.start()
    try:
        assert there.extracted(members) == {"few": b"abc", "other": b"o"}
        assert tracemalloc.get_traced_memory()[1] < 16 * 2**20
    finally:
        tracemalloc.stop()


# --- what is unusual, and good ---


def test_a_zip_file_without_dates(there: Workbench) -> None:
    """Go's archive/zip writes zeros where nobody gave a time: there is no month 0."""
    data = bytearray(zip_of({"a": b"1"}))
    for signature, at in ((b"PK\3\4", 10), (b"PK\1\2", 12)):
        place = data.rindex(signature) + at
        data[place : place + 4] = bytes(4)
    members = there.listed(bytes(data), "zip")
    assert [one.mtime for one in members] == [0]
    assert there.extracted(members) == {"a": b"1"}


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_blanks_and_joiners_of_other_scripts(there: Workbench, kind: Packaging) -> None:
    files = {"no\u00a0break": b"1", "\u3000wide": b"2", "\u0646\u200c\u0627": b"3", "\U0001f469\u200d\U0001f680": b"4"}
    members = there.listed(tar_of(files) if kind == "tar" else zip_of(files), kind)
    assert there.extracted(members) == files
    for name in ("a\u2028b", "a\x85b", "a\x7f"):
        files = {name: b"", "good": b""}
        there.alone(tar_of(files) if kind == "tar" else zip_of(files), kind)
