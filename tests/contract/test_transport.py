"""What every transport promises, tried on each of them; the files are looked at from outside, too."""

from __future__ import annotations

import filecmp
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from paramiko.sftp import CMD_READDIR

from datamanager.errors import PathExists, PathMissing, PermissionDenied, RemoteFailure
from datamanager.transports.port import Session, Storage
from datamanager.transports.sftp.wire import Reply, Wire
from datamanager.transports.values import FileKind

BLOCK = 255 * 1024
NAMES = [
    b"plain",
    b"-dash",
    b"--help",
    b"quo'te\"",
    b"$(id)",
    b"`x`; rm -rf",
    b"new\nline",
    b"two  blanks",
    b" leading",
    b"trailing ",
    b"not\xff\xfeutf-8",
    b"back\\slash",
    b"%h ~ * ? [a]",
    "ünïcödé-文件".encode(),
    b"n" * 255,
    "é".encode() * 127 + b"x",
]


def put(session: Session, path: str, data: bytes, *, step: int = 100_003) -> None:
    """Write the data in pieces that fit no block size."""
    with session.create(path) as writer:
        for offset in range(0, len(data), step):
            writer.write(offset, data[offset : offset + step])
        writer.flush()


def get(session: Session, path: str, offset: int = 0, length: int | None = None) -> bytes:
    with session.open_read(path) as reader:
        return b"".join(bytes(block) for block in reader.blocks(offset, length))


@pytest.mark.parametrize("raw", NAMES)
def test_a_name_is_only_a_name(session: Session, tmp_path: Path, raw: bytes) -> None:
    path = os.path.join(str(tmp_path), os.fsdecode(raw))
    other = os.path.join(str(tmp_path), "other")
    data = os.urandom(1000)
    put(session, path, data)
    assert os.listdir(os.fsencode(tmp_path)) == [raw]
    assert Path(path).read_bytes() == data
    assert get(session, path) == data
    assert [name for name, _ in session.list_dir(str(tmp_path))] == [os.fsdecode(raw)]
    assert session.real_path(path) == os.path.realpath(path)
    assert session.programs.digest(path) == hashlib.sha256(data).hexdigest()
    session.programs.copy(path, other)
    session.rename(other, path, overwrite=True)
    session.rename(path, other, overwrite=False)
    session.rename(other, path, overwrite=False)
    session.set_attributes(path, mode=0o640, mtime=1_000_000_000)
    assert session.stat(path).mtime == 1_000_000_000
    session.remove(path)
    assert list(session.bulk.make_dir([path])) == [(0, None)]
    assert session.stat(path).kind is FileKind.DIRECTORY
    assert os.listdir(os.fsencode(tmp_path)) == [raw]


@pytest.mark.parametrize("size", [0, 1, BLOCK, 3 * BLOCK + 1, 20 * 1024 * 1024 + 7])
def test_what_is_written_is_read(session: Session, tmp_path: Path, size: int) -> None:
    data, path = os.urandom(size), str(tmp_path / "file")
    put(session, path, data)
    assert Path(path).read_bytes() == data
    assert get(session, path) == data
    assert session.stat(path).size == size


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (0, 1), (7, BLOCK), (BLOCK - 1, 2), (BLOCK + 5, None), (3 * BLOCK, 100), (10**7, 5)]
)
def test_a_part_of_a_file_is_read(session: Session, tmp_path: Path, offset: int, length: int | None) -> None:
    data, file = os.urandom(3 * BLOCK + 1), tmp_path / "file"
    file.write_bytes(data)
    assert get(session, str(file), offset, length) == data[offset:][:length]


def test_blocks_are_small_and_come_in_order(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(10_000_000))
    seen = hashlib.sha256()
    with session.open_read(str(file)) as reader:
        for block in reader.blocks():
            assert 0 < len(block) <= 1 << 20
            seen.update(block)
    assert seen.hexdigest() == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_reader_that_stops_early_leaves_a_session_that_works(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(20_000_000))
    for _ in range(3):
        with session.open_read(str(file)) as reader:
            for _ in reader.blocks():
                break
        assert session.stat(str(file)).size == 20_000_000


def test_a_file_whose_size_is_not_known_is_read_to_its_end(session: Session) -> None:
    assert get(session, "/proc/version") == Path("/proc/version").read_bytes()


def test_one_session_reads_and_writes_at_once(session: Session, tmp_path: Path) -> None:
    """Both directions are full then: neither side may wait for the other for ever."""
    file, copy = tmp_path / "file", tmp_path / "copy"
    file.write_bytes(os.urandom(48 * 1024 * 1024))
    with session.open_read(str(file)) as reader, session.create(str(copy)) as writer:
        offset = 0
        for block in reader.blocks():
            writer.write(offset, block)
            offset += len(block)
    assert copy.read_bytes() == file.read_bytes()


def test_blocks_may_be_written_in_any_order(session: Session, tmp_path: Path) -> None:
    data, file = os.urandom(5 * BLOCK), tmp_path / "file"
    with session.create(str(file)) as writer:
        for part in (3, 0, 4, 2, 1):
            writer.write(part * BLOCK, memoryview(data)[part * BLOCK : (part + 1) * BLOCK])
    assert file.read_bytes() == data


def test_a_buffer_may_be_reused_after_write(session: Session, tmp_path: Path) -> None:
    buffer, file = bytearray(BLOCK), tmp_path / "file"
    with session.create(str(file)) as writer:
        for part in range(20):
            buffer[:] = bytes([part]) * BLOCK
            writer.write(part * BLOCK, buffer)
    assert file.read_bytes() == b"".join(bytes([part]) * BLOCK for part in range(20))


@pytest.mark.parametrize("taken", ["file", "directory", "link", "dangling"])
def test_create_is_exclusive(session: Session, tmp_path: Path, taken: str) -> None:
    path = tmp_path / "taken"
    match taken:
        case "file":
            path.write_text("mine")
        case "directory":
            path.mkdir()
        case "link":
            (tmp_path / "target").write_text("mine")
            path.symlink_to(tmp_path / "target")
        case "dangling":
            path.symlink_to(tmp_path / "nowhere")
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(PathExists), session.create(str(path)):
        pass
    assert sorted(os.listdir(tmp_path)) == before
    if taken in ("file", "link"):
        assert path.read_text() == "mine"


def test_create_sets_the_mode_and_needs_a_parent(session: Session, tmp_path: Path) -> None:
    with session.create(str(tmp_path / "file"), mode=0o4640):
        pass
    assert (tmp_path / "file").stat().st_mode & 0o7777 == 0o640
    with pytest.raises(PathMissing), session.create(str(tmp_path / "no" / "file")):
        pass


def test_an_exception_inside_create_passes_and_leaves_the_file(session: Session, tmp_path: Path) -> None:
    with pytest.raises(KeyError), session.create(str(tmp_path / "file")) as writer:
        writer.write(0, b"partial")
        raise KeyError
    assert (tmp_path / "file").exists()
    assert session.stat(str(tmp_path / "file")).kind is FileKind.FILE


def test_rename_replaces_only_when_asked(session: Session, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.write_text("1")
    two.write_text("2")
    with pytest.raises(PathExists):
        session.rename(str(one), str(two), overwrite=False)
    assert (one.read_text(), two.read_text()) == ("1", "2")
    session.rename(str(one), str(two), overwrite=True)
    assert two.read_text() == "1"
    assert not one.exists()
    session.rename(str(two), str(one), overwrite=False)
    assert sorted(os.listdir(tmp_path)) == ["one"]


def test_rename_does_not_replace_a_dangling_link(session: Session, tmp_path: Path) -> None:
    (tmp_path / "one").write_text("1")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(PathExists):
        session.rename(str(tmp_path / "one"), str(tmp_path / "link"), overwrite=False)
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("overwrite", [True, False])
def test_rename_of_nothing(session: Session, tmp_path: Path, overwrite: bool) -> None:
    with pytest.raises(PathMissing):
        session.rename(str(tmp_path / "one"), str(tmp_path / "two"), overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [True, False])
def test_rename_to_another_file_system(session: Session, tmp_path: Path, overwrite: bool) -> None:
    elsewhere = Path("/dev/shm") / f"dm-test-{os.getpid()}"
    if elsewhere.parent.stat().st_dev == tmp_path.stat().st_dev:
        elsewhere = Path("/run") / elsewhere.name
    (tmp_path / "one").write_text("1")
    with pytest.raises(RemoteFailure):
        session.rename(str(tmp_path / "one"), str(elsewhere), overwrite=overwrite)
    assert (tmp_path / "one").exists()
    assert not elsewhere.exists()


def test_stat_of_links_and_kinds(session: Session, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("12345")
    (tmp_path / "file").chmod(0o641)
    os.utime(tmp_path / "file", (1, 1_234_567_890))
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "fifo")
    found = session.stat(str(tmp_path / "link"))
    assert (found.kind, found.size, found.mtime, found.mode) == (FileKind.FILE, 5, 1_234_567_890, 0o641)
    assert session.lstat(str(tmp_path / "link")).kind is FileKind.SYMLINK
    assert session.lstat(str(tmp_path / "dangling")).kind is FileKind.SYMLINK
    assert session.stat(str(tmp_path)).kind is FileKind.DIRECTORY
    assert session.stat(str(tmp_path / "fifo")).kind is FileKind.OTHER
    with pytest.raises(PathMissing):
        session.stat(str(tmp_path / "dangling"))
    with pytest.raises(PathMissing):
        session.lstat(str(tmp_path / "nothing"))


def test_stat_of_an_open_file_is_not_that_of_its_name(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("12345")
    with session.open_read(str(file)) as reader:
        file.unlink()
        file.write_text("1")
        assert reader.stat().size == 5


def test_real_path(session: Session, tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("a")
    assert session.real_path(str(tmp_path / "link" / "b")) == os.path.realpath(tmp_path / "a" / "b")
    assert session.real_path(str(tmp_path / "link" / ".." / "a")) == os.path.realpath(tmp_path / "a")
    for missing in ("nothing", "nothing/below"):
        with pytest.raises(PathMissing):
            session.real_path(str(tmp_path / missing))


def test_list_dir_of_many(session: Session, tmp_path: Path) -> None:
    names = [f"entry-{number:04}-{'x' * 50}" for number in range(2000)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(bytes(number % 7))
    (tmp_path / "link").symlink_to("nowhere")
    found = dict(session.list_dir(str(tmp_path)))
    assert sorted(found) == sorted([*names, "link"])
    assert found[names[13]].size == 13 % 7
    assert found["link"].kind is FileKind.SYMLINK


def test_list_dir_has_several_requests_under_way(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way, most, post, take = set[int](), [0], Wire.post, Wire.take

    def posted(wire: Wire, kind: int, *rest: Any) -> int:
        number = post(wire, kind, *rest)
        if kind == CMD_READDIR:
            under_way.add(number)
            most[0] = max(most[0], len(under_way))
        return number

    def taken(wire: Wire, number: int) -> Reply:
        under_way.discard(number)
        return take(wire, number)

    monkeypatch.setattr(Wire, "post", posted)
    monkeypatch.setattr(Wire, "take", taken)
    for count, expected in ((10, 2), (2000, 8)):
        for number in range(count):
            (tmp_path / str(number)).touch()
        assert len(list(session.list_dir(str(tmp_path)))) == count
        assert most[0] == (expected if session.round_trip else 0)
        assert not under_way


def test_list_dir_can_be_left_early(session: Session, tmp_path: Path) -> None:
    for number in range(300):
        (tmp_path / str(number)).touch()
    for _ in session.list_dir(str(tmp_path)):
        break
    assert session.stat(str(tmp_path)).kind is FileKind.DIRECTORY


def test_nothing_is_there(session: Session, tmp_path: Path) -> None:
    path = str(tmp_path / "nothing")
    with pytest.raises(PathMissing):
        get(session, path)
    with pytest.raises(PathMissing):
        session.remove(path)
    with pytest.raises(PathMissing):
        session.programs.digest(path)
    with pytest.raises(PathMissing):
        session.programs.copy(path, str(tmp_path / "copy"))
    with pytest.raises(PathMissing):
        session.set_attributes(path, mode=0o600, mtime=0)
    with pytest.raises(PathMissing):
        list(session.list_dir(path))
    assert os.listdir(tmp_path) == []


def test_the_machine_computes_the_digest(session: Session, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    assert session.programs.digest(str(tmp_path / "file")) == hashlib.sha256(data).hexdigest()
    with pytest.raises(RemoteFailure):
        session.programs.digest(str(tmp_path))


@pytest.mark.parametrize("size", [0, 1, 5_000_001])
def test_copy_within(session: Session, tmp_path: Path, size: int) -> None:
    file, copy, told = tmp_path / "file", tmp_path / "copy", [0]
    file.write_bytes(os.urandom(size))
    assert session.programs.can_copy
    session.programs.copy(str(file), str(copy), told.append)
    assert copy.read_bytes() == file.read_bytes()
    assert sum(told) == size
    with pytest.raises(PathExists):
        session.programs.copy(str(file), str(copy))


def test_sessions_share_a_copy(storage: Storage, tmp_path: Path) -> None:
    file, copy, told = tmp_path / "file", tmp_path / "copy", [0]
    with file.open("wb") as out:  # sparse: three ranges, each with bytes of its own at either end
        for offset in (0, 2**27 - 5, 2**28 - 5, 2**28 + 777):
            out.seek(offset)
            out.write(os.urandom(10))
    with storage.session() as session, storage.extra_sessions(1) as beside:
        assert len(beside) == 1
        session.programs.copy(str(file), str(copy), told.append, beside)
    assert sum(told) == file.stat().st_size
    assert filecmp.cmp(file, copy, shallow=False)


def test_copy_within_stops_when_told(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "file"
    with file.open("wb") as out:
        out.truncate(400 * 1024 * 1024)

    def stop(_: int) -> None:
        raise KeyError

    with pytest.raises(KeyError):
        session.programs.copy(str(file), str(tmp_path / "copy"), stop)
    assert (tmp_path / "copy").stat().st_size < file.stat().st_size
    assert session.stat(str(file)).size == file.stat().st_size


def test_set_attributes_never_sets_setuid(session: Session, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    session.set_attributes(str(tmp_path / "file"), mode=0o6755, mtime=1_500_000_000)
    found = session.stat(str(tmp_path / "file"))
    assert (found.mode, found.mtime) == (0o755, 1_500_000_000)


def test_remove_is_for_files(session: Session, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "target").touch()
    (tmp_path / "link").symlink_to("target")
    with pytest.raises((RemoteFailure, PermissionDenied)):
        session.remove(str(tmp_path / "directory"))
    session.remove(str(tmp_path / "link"))
    assert sorted(os.listdir(tmp_path)) == ["directory", "target"]
