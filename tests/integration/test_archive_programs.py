"""Archives as people make them: what `zip`, `bsdtar` and GNU tar write arrives as `unzip`, `bsdtar` and GNU tar unpack
it, and what can't be had is told, and hinders nothing else."""

from __future__ import annotations

import os
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.engine.extracting.archive_listing import Packaging, members_of
from datamanager.engine.extracting.archive_member import ArchiveListing
from datamanager.machines import Machine
from tests.support.ends import Ends
from tests.support.programs import find_program

TREE = {
    "é 中.nc": b"named as people name",
    "a\\b": b"a backslash of Unix",
    "sub/ünï/cödé": b"1",
    "sub/two  blanks": b"22",
    "-dash": b"333",
    "n" * 90: b"",
}
MAKERS: dict[str, tuple[Packaging, list[str]]] = {
    "zip": ("zip", ["zip", "-q", "-r", "-y", "{out}", "."]),
    "zip in UTF-8": ("zip", ["env", "LC_ALL=C.UTF-8", "zip", "-q", "-r", "-y", "{out}", "."]),
    "zip with the flag": ("zip", ["env", "LC_ALL=C.UTF-8", "zip", "-q", "-UN=UTF8", "-r", "-y", "{out}", "."]),
    "bsdtar zip": ("zip", ["env", "LC_ALL=C.UTF-8", "bsdtar", "--format=zip", "-cf", "{out}", "."]),
    "bsdtar zip in C": ("zip", ["env", "LC_ALL=C", "bsdtar", "--format=zip", "-cf", "{out}", "."]),
    **{f"tar {one}": ("tar", ["tar", f"--format={one}", "-cf", "{out}", "."]) for one in ("gnu", "pax", "ustar")},
    "tar with a label": ("tar", ["tar", "--label=a label", "-cf", "{out}", "."]),
    "tar incremental": ("tar", ["tar", "--incremental", "-cf", "{out}", "."]),
    **{
        f"bsdtar {one}": ("tar", ["env", "LC_ALL=C.UTF-8", "bsdtar", f"--format={one}", "-cf", "{out}", "."])
        for one in ("pax", "gnutar", "ustar")
    },
}
READERS = {
    "unzip": ["env", "LC_ALL=C.UTF-8", "unzip", "-q", "-o", "{archive}", "-d", "{to}"],
    "bsdtar": ["env", "LC_ALL=C.UTF-8", "bsdtar", "-xf", "{archive}", "-C", "{to}"],
    "tar": ["tar", "-xf", "{archive}", "-C", "{to}"],
}


class Reading:
    """Lists archives as a mover does."""

    def __init__(self, folder: Path) -> None:

        self.machine = Machine.model_validate({"name": "m", "transport": "local", "base_dir": str(folder)})
        self.ends = Ends({"m": self.machine}, folder / "run")

    def listing(self, archive: Path, kind: Packaging) -> ArchiveListing:
        with self.ends.end("m", "x").storage.session() as session:
            return members_of(session, str(archive), kind, self.machine, "in", 2**30, lambda: None)

    def content(self, archive: Path, kind: Packaging) -> dict[str, bytes]:
        """Return what is in an archive; what can't be had is None."""
        data = archive.read_bytes()
        found = {}
        for one in self.listing(archive, kind).members:
            stored = data[one.offset : one.offset + one.stored]
            found[one.name] = zlib.decompress(stored, -zlib.MAX_WBITS) if one.deflated else stored
        return found


@pytest.fixture
def reading(tmp_path: Path) -> Iterator[Reading]:
    made = Reading(tmp_path)
    yield made
    made.ends.storages.close()


def _filled(command: list[str], **paths: Path) -> list[str]:
    find_program(command[2] if command[0] == "env" else command[0])
    return [part.format(**paths) for part in command]


def made(tree: Path, out: Path, command: list[str]) -> Path:
    subprocess.run(_filled(command, out=out), cwd=tree, check=True, capture_output=True)
    return out


def unpacked(archive: Path, to: Path, command: list[str]) -> dict[str, bytes]:
    """Return what a program unpacks; it may complain."""
    to.mkdir()
    subprocess.run(_filled(command, archive=archive, to=to), check=False, capture_output=True)
    files = [file for file in to.rglob("*") if file.is_file() and not file.is_symlink()]
    return {str(file.relative_to(to)): file.read_bytes() for file in files}


@pytest.mark.parametrize("maker", MAKERS)
def test_what_a_program_packs_is_what_arrives(reading: Reading, tmp_path: Path, maker: str) -> None:
    tree = tmp_path / "tree"
    for name, data in TREE.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    kind, command = MAKERS[maker]
    archive = made(tree, tmp_path / f"made.{kind}", command)
    assert reading.content(archive, kind) == TREE
    assert not reading.listing(archive, kind).refused
    for reader in ("unzip",) if kind == "zip" else ("tar", "bsdtar"):
        assert unpacked(archive, tmp_path / reader, READERS[reader]) == TREE


@pytest.mark.parametrize("maker", MAKERS)
def test_links_and_devices_are_left_out_and_told(reading: Reading, tmp_path: Path, maker: str) -> None:
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "a").write_bytes(b"1")
    (tree / "b").write_bytes(b"2")
    (tree / "sub" / "latest").symlink_to("../a")
    (tree / "out").symlink_to("/etc/passwd")
    kind, command = MAKERS[maker]
    told = {"sub/latest", "out"}
    if kind == "tar":
        os.mkfifo(tree / "fifo")
        os.link(tree / "b", tree / "hard")
        told |= {"fifo"}
    archive = made(tree, tmp_path / f"made.{kind}", command)
    listing = reading.listing(archive, kind)
    refused = {one.name.removeprefix("./"): one.error for one in listing.refused}
    if kind == "tar":  # whichever of the two is the first has the bytes
        told |= {"b", "hard"} & refused.keys()
        assert len(told) == 4
    assert refused.keys() == told
    assert all(("link" in error.detail) != (name == "fifo") for name, error in refused.items())
    assert {one.name for one in listing.members} == ({"a", "b", "hard"} if kind == "tar" else {"a", "b"}) - told


def zip_entries(*entries: tuple[bytes, int, int, bytes], flags: int = 0) -> bytes:
    """Return a zip file: names as bytes, with the system that wrote them, flags and extra fields."""
    body, directory = bytearray(), bytearray()
    for name, system, flag, extra in entries:
        crc, offset = zlib.crc32(name), len(body)
        common = struct.pack("<5H3L2H", 20, flag | flags, 0, 0, 0x5000, crc, len(name), len(name), len(name), 0)
        body += b"PK\3\4" + common + name + name
        common = struct.pack(
            "<4B4H3L5H2L", 20, system, 20, 0, flag | flags, 0, 0, 0x5000, crc, len(name), len(name), len(name),
            len(extra), 0, 0, 0, 0, offset,
        )  # fmt: skip
        directory += b"PK\1\2" + common + name + extra
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, len(entries), len(entries), len(directory), len(body), 0)
    return bytes(body + directory + end)


def unicode_path(name: bytes, meant: str) -> bytes:
    """Return the extra field 0x7075 (APPNOTE 4.6.9)."""
    value = struct.pack("<BL", 1, zlib.crc32(name)) + meant.encode()
    return struct.pack("<HH", 0x7075, len(value)) + value


DOS, UNIX, NTFS = 0, 3, 10


@pytest.mark.parametrize(
    ("entry", "name", "alike"),
    [
        (("é 中.nc".encode(), UNIX, 0, b""), "é 中.nc", True),
        (("é 中.nc".encode(), DOS, 0x800, b""), "é 中.nc", False),
        ((b"? ?.nc", DOS, 0, unicode_path(b"? ?.nc", "é 中.nc")), "é 中.nc", True),
        ((b"? ?.nc", UNIX, 0, b"UT\5\0\1\0\0\0\0" + unicode_path(b"? ?.nc", "é 中.nc")), "é 中.nc", True),
        (
            (b"renamed", UNIX, 0, unicode_path(b"before", "é 中.nc")),
            "renamed",
            True,
        ),  # by a program that knows no such field
        (("é.nc".encode("cp437"), DOS, 0, b""), "é.nc", False),
        ((b"a\\b\\c", DOS, 0, b""), "a/b/c", True),
        ((b"a\\b\\c", NTFS, 0, b""), "a/b/c", False),
        (("a\\é".encode(), DOS, 0x800, b""), "a/é", False),
        ((b"a/b\\c", DOS, 0, b""), "a/b\\c", True),
        ((b"a\\b", UNIX, 0, b""), "a\\b", True),
    ],
)
def test_names_of_zip_files_are_read_as_unzip_reads_them(
    reading: Reading, tmp_path: Path, entry: tuple[bytes, int, int, bytes], name: str, alike: bool
) -> None:
    """Except: it writes all names from DOS as ISO 8859-1, whatever the locale, and knows no Windows but DOS."""
    archive = tmp_path / "made.zip"
    archive.write_bytes(zip_entries((b"plain", UNIX, 0, b""), entry))
    assert reading.content(archive, "zip") == {"plain": b"plain", name: entry[0]}
    by_unzip = unpacked(archive, tmp_path / "out", READERS["unzip"])
    if alike:
        assert by_unzip == {"plain": b"plain", name: entry[0]}


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ((b"..\\..\\x", DOS, 0, b""), "leads out"),
        ((b"\\\\host\\x", DOS, 0, b""), "leads out"),
        ((b"\xe9.nc", UNIX, 0, b""), "not Unicode"),
        ((b"\xe9.nc", DOS, 0x800, b""), "not Unicode"),
        ((b"a\0b", UNIX, 0, b""), "control characters"),
        ((b"a", DOS, 0, unicode_path(b"a", "../x")), "leads out"),
        ((b"n" * 60_000, UNIX, 0, b""), "too long"),
        ((b"x", UNIX, 0x41, b""), "encrypted"),
    ],
)
def test_a_member_that_can_not_be_had_fails_alone(
    reading: Reading, tmp_path: Path, entry: tuple[bytes, int, int, bytes], word: str
) -> None:
    archive = tmp_path / "made.zip"
    archive.write_bytes(zip_entries(entry, (b"good", UNIX, 0, b"")))
    listing = reading.listing(archive, "zip")
    assert [one.name for one in listing.members] == ["good"]
    (refused,) = listing.refused
    assert word in refused.error.detail
    assert refused.printable.isprintable()
    assert len(refused.printable) <= 4096


def test_a_directory_of_long_names_and_a_comment_that_looks_like_its_end(reading: Reading, tmp_path: Path) -> None:
    deep = "/".join(["d" * 200] * 10)
    names = [f"{deep}/{number}".encode() for number in range(3000)]
    data = zip_entries(*[(name, UNIX, 0, b"") for name in names])
    comment = b"PK\5\6 is where a directory ends" + bytes(40)
    data = b"#!/bin/sh\n" + data[:-2] + struct.pack("<H", len(comment)) + comment
    (tmp_path / "made.zip").write_bytes(data)
    listing = reading.listing(tmp_path / "made.zip", "zip")
    assert [one.name.encode() for one in listing.members] == names
    assert all(data.startswith(one.name.encode(), one.offset) for one in listing.members)
