"""Large files that a program on the machine passes on: the bytes of the file that is open, or an error."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from datamanager.errors import ConnectionLost, PathReplaced, RemoteFailure, TransportTimeout
from datamanager.transports.port import Session
from datamanager.transports.remote.file_stream import FileStream
from datamanager.transports.sftp import large_reads
from tests.contract.conftest import impatient, opened, until
from tests.contract.test_transport import NAMES
from tests.support.filtered_sshd import FilteredSshd
from tests.support.process import command_line, signal_each
from tests.support.sshd import PrivateSshd

MIB = 1 << 20
SIZE = 24 * MIB + 5
READY = FileStream.ready


@pytest.fixture
def passed_on(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have a program read files from 1 MiB on, and be waited for; return how many bytes each one passed on."""
    sizes = list[int]()
    blocks = FileStream.blocks

    def ready_in_time(stream: FileStream) -> bool:
        assert until(lambda: READY(stream) or stream.ended)
        return READY(stream)

    def counted(stream: FileStream, offset: int) -> Iterator[memoryview]:
        sizes.append(0)
        for block in blocks(stream, offset):
            sizes[-1] += len(block)
            yield block

    monkeypatch.setattr(large_reads, "STREAMED_FROM", MIB)
    monkeypatch.setattr(large_reads, "LONG_PATH", math.inf)  # a busy host makes a long path of this one
    monkeypatch.setattr(FileStream, "ready", ready_in_time)
    monkeypatch.setattr(FileStream, "blocks", counted)
    return sizes


@pytest.fixture
def session(server: PrivateSshd, control_dir: Path, tmp_path: Path) -> Iterator[Session]:
    machine = server.machine("remote", tmp_path, connection="openssh")
    with opened(machine, control_dir) as storage, storage.session() as acquired:
        yield acquired


def file_of(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    os.utime(path, (1_600_000_000, 1_600_000_000))
    return str(path)


def read(session: Session, path: str, offset: int = 0, length: int | None = None) -> bytes:
    with session.open_read(path) as reader:
        return b"".join(map(bytes, reader.blocks(offset, length)))


def programs(server: PrivateSshd) -> list[int]:
    """Return the pids of the programs of this server that pass on a file."""
    return [pid for pid in server.descendants() if command_line(pid) == "cat"]


@pytest.mark.parametrize(("offset", "length"), [(0, None), (0, SIZE), (7, SIZE - 9), (SIZE // 2, None), (3, 5 * MIB)])
def test_the_bytes_are_those_that_were_asked_for(
    session: Session, tmp_path: Path, passed_on: list[int], offset: int, length: int | None
) -> None:
    data = os.urandom(SIZE)
    stop = SIZE if length is None else offset + length
    assert read(session, file_of(tmp_path / "file", data), offset, length) == data[offset:stop]
    assert len(passed_on) == 1
    assert passed_on[0] >= stop - offset
    assert session.stat(str(tmp_path)).mode


def test_a_name_is_only_a_name(session: Session, tmp_path: Path, passed_on: list[int]) -> None:
    data = os.urandom(MIB)
    for raw in NAMES:
        folder = tmp_path / os.fsdecode(raw)
        folder.mkdir()
        assert read(session, file_of(folder / os.fsdecode(raw), data)) == data
    assert passed_on == [MIB] * len(NAMES)


def test_paramiko_reads_over_sftp(server: PrivateSshd, control_dir: Path, tmp_path: Path, passed_on: list[int]) -> None:
    data, machine = os.urandom(2 * MIB), server.machine("remote", tmp_path, connection="paramiko")
    with opened(machine, control_dir) as storage, storage.session() as session:
        assert read(session, file_of(tmp_path / "file", data)) == data
    assert passed_on == []


def test_a_small_file_needs_no_program(session: Session, tmp_path: Path, passed_on: list[int]) -> None:
    data = os.urandom(MIB - 1)
    assert read(session, file_of(tmp_path / "file", data)) == data
    assert passed_on == []


def test_sftp_reads_while_the_program_starts(
    session: Session, tmp_path: Path, passed_on: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, asked, ready = os.urandom(SIZE), list[bool](), FileStream.ready  # which waits
    monkeypatch.setattr(large_reads, "_WHILE_STARTING", MIB)

    def later(stream: FileStream) -> bool:
        asked.append(True)
        return len(asked) > 4 and ready(stream)

    monkeypatch.setattr(FileStream, "ready", later)
    assert read(session, file_of(tmp_path / "file", data)) == data
    assert passed_on == [SIZE - 4 * MIB]


def test_a_program_that_ends_early_is_done_without(
    server: PrivateSshd, session: Session, tmp_path: Path, passed_on: list[int]
) -> None:
    data = os.urandom(SIZE)
    path, found = file_of(tmp_path / "file", data), bytearray()
    with session.open_read(path) as reader:
        for block in reader.blocks():
            if not found:
                signal_each(programs(server), signal.SIGKILL)
            found += block
    assert found == data
    assert 0 < passed_on[0] < SIZE


def test_a_program_ends_with_its_reader(
    server: PrivateSshd, session: Session, tmp_path: Path, passed_on: list[int]
) -> None:
    path = file_of(tmp_path / "file", bytes(SIZE))
    with session.open_read(path) as reader:
        for _ in reader.blocks():
            assert programs(server)
            break
    assert passed_on
    assert until(lambda: not programs(server))
    assert session.stat(path).size == SIZE


def test_a_file_that_grows_is_read_to_its_real_end_and_one_that_shrinks_too(
    session: Session, tmp_path: Path, passed_on: list[int]
) -> None:
    data = os.urandom(SIZE)
    path = file_of(tmp_path / "file", data)
    with session.open_read(path) as reader:
        with open(path, "ab") as file:
            file.write(b"more")
        assert b"".join(map(bytes, reader.blocks())) == data + b"more"
        os.truncate(path, 3 * MIB)
        assert b"".join(map(bytes, reader.blocks())) == data[: 3 * MIB]
    assert len(passed_on) == 2


def test_a_directory_exchanged_for_a_link_is_not_read_by_a_program(
    session: Session, tmp_path: Path, passed_on: list[int]
) -> None:
    data, (run, outside) = os.urandom(2 * MIB), (tmp_path / "run", tmp_path / "outside")
    for folder in (run, outside):
        folder.mkdir()
    path = file_of(run / "file", data)
    file_of(outside / "file", data[:MIB] + bytes(MIB))
    with session.open_read(path) as reader:
        run.rename(tmp_path / "away")
        run.symlink_to("outside")
        assert b"".join(map(bytes, reader.blocks())) == data
    assert passed_on == []


@pytest.mark.parametrize("link", [False, True])
def test_a_file_exchanged_for_another_one_is_not_given_out(
    session: Session, tmp_path: Path, passed_on: list[int], link: bool
) -> None:
    data, other = os.urandom(2 * MIB), tmp_path / "other"
    path = file_of(tmp_path / "file", data)
    file_of(other, os.urandom(2 * MIB))
    with session.open_read(path) as reader:
        os.unlink(path)
        other.rename(path) if not link else os.symlink(other, path)
        assert b"".join(map(bytes, reader.blocks())) == data
    assert [0 < one <= 2 * MIB for one in passed_on] == ([] if link else [True])


@pytest.mark.parametrize(("mtime", "error"), [(1_600_000_000, PathReplaced), (1_600_000_001, RemoteFailure)])
def test_another_file_that_begins_alike_is_noticed(
    session: Session, tmp_path: Path, passed_on: list[int], mtime: int, error: type[Exception]
) -> None:
    data = os.urandom(SIZE)
    path = file_of(tmp_path / "file", data)
    other = file_of(tmp_path / "other", data[:MIB] + os.urandom(SIZE - MIB))
    os.utime(other, (mtime, mtime))
    with session.open_read(path) as reader, pytest.raises(error) as caught:
        os.rename(other, path)
        for _ in reader.blocks():
            pass
    assert type(caught.value) is error
    assert error is PathReplaced or caught.value.retryable  # type: ignore[attr-defined]
    assert passed_on


def test_a_machine_without_a_shell_is_read_over_sftp(
    tmp_path: Path, control_dir: Path, passed_on: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.urandom(2 * MIB)
    monkeypatch.setattr(FileStream, "ready", READY)  # no program ever says anything
    with FilteredSshd(tmp_path / "sshd", [], shell=False) as server:
        with (
            opened(server.machine("remote", tmp_path, connection="openssh"), control_dir) as storage,
            storage.session() as session,
        ):
            assert read(session, file_of(tmp_path / "file", data)) == data
    assert passed_on == []


@pytest.mark.faults
@pytest.mark.parametrize("aborted", [False, True])
def test_a_program_that_stalls_is_given_up_and_one_that_is_aborted_at_once(
    alone: PrivateSshd,
    own_control_dir: Path,
    passed_on: list[int],
    tmp_path: Path,
    aborted: bool,
) -> None:
    path = file_of(tmp_path / "file", bytes(SIZE))
    machine = alone.machine("remote", tmp_path, connection="openssh")
    machine = machine if aborted else impatient(machine)
    try:
        with opened(machine, own_control_dir) as storage, storage.session() as session:
            with session.open_read(path) as reader, pytest.raises(ConnectionLost if aborted else TransportTimeout):
                for number, _ in enumerate(reader.blocks()):
                    if not number:
                        signal_each(programs(alone), signal.SIGSTOP)
                        if aborted:
                            session.abort()
    finally:
        signal_each(programs(alone), signal.SIGKILL)
    assert passed_on[0] < SIZE
