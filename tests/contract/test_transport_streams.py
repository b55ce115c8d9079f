"""What large files need of every transport: files opened again, writes that are known to be stored, reads dealt out."""

from __future__ import annotations

import os
from collections import deque
from pathlib import Path

import pytest

from datamanager.errors import NoSpace, PathMissing, RemoteFailure, TransportError
from datamanager.transports.port import Reader, Session
from tests.contract.test_transport import NAMES
from tests.contract.test_transport_limits import small_file_system

BLOCK = 255 * 1024


class Dealer:
    """Deals out ranges as a queue does that others fill: asked without waiting, it has one only every other time."""

    def __init__(self, ranges: list[tuple[int, int]], *, every: int = 2) -> None:
        self._left = deque(ranges)
        self._every = every
        self._asked = 0
        self.dealt = 0
        """Bytes dealt so far."""
        self.given = 0
        """Bytes that the test has got."""
        self.ahead = 0
        """How often a range was dealt while bytes of the one before were still to come."""

    def __call__(self, wait: bool) -> tuple[int, int] | None:
        if wait:
            assert self.given == self.dealt, "asked to wait while there is something to give out"
        else:
            self._asked += 1
            if self._asked % self._every:
                return None
        if not self._left:
            return None
        self.ahead += self.given < self.dealt
        self.dealt += self._left[0][1]
        return self._left.popleft()

    def read(self, reader: Reader) -> list[tuple[int, bytes]]:
        """Read all that is dealt; return the pieces as they came."""
        pieces = []
        for offset, block in reader.ranges(self):
            assert 0 < len(block) <= 1 << 20
            pieces.append((offset, bytes(block)))
            self.given += len(block)
        return pieces


@pytest.mark.parametrize("raw", NAMES)
def test_reopen_keeps_the_bytes(session: Session, tmp_path: Path, raw: bytes) -> None:
    path = os.path.join(str(tmp_path), os.fsdecode(raw))
    data = bytearray(os.urandom(3 * BLOCK + 1))
    Path(path).write_bytes(data)
    with session.reopen(path) as writer:
        pass
    assert Path(path).read_bytes() == data
    with session.reopen(path) as writer:
        writer.write(BLOCK, b"changed")
        writer.write(3 * BLOCK + 10, b"behind a hole")
        writer.flush()
    data[BLOCK : BLOCK + 7] = b"changed"
    assert Path(path).read_bytes() == data + bytes(9) + b"behind a hole"


def test_reopen_needs_a_file_of_that_very_name(session: Session, tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    for name in ("link", "dangling", "folder", "fifo"):
        with pytest.raises(RemoteFailure), session.reopen(str(tmp_path / name)) as writer:
            writer.write(0, b"yours")
    with pytest.raises(PathMissing), session.reopen(str(tmp_path / "nothing")):
        pass
    assert (tmp_path / "target").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["dangling", "fifo", "folder", "link", "target"]


def test_an_exception_inside_reopen_passes_and_leaves_the_file(session: Session, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    with pytest.raises(KeyError), session.reopen(str(tmp_path / "file")) as writer:
        writer.write(5, b"6")
        raise KeyError
    assert session.stat(str(tmp_path / "file")).size in (5, 6)


def test_what_lies_before_unsettled_is_stored(session: Session, tmp_path: Path) -> None:
    data, file = os.urandom(100 * BLOCK + 1), tmp_path / "file"
    seen: set[int | None] = set()
    with session.create(str(file)) as writer:
        for offset in range(0, len(data), 100_003):
            writer.write(offset, data[offset : offset + 100_003])
            unsettled = writer.unsettled
            seen.add(unsettled)
            if unsettled is not None and unsettled % (20 * 100_003) == 0:
                assert file.read_bytes()[:unsettled] == data[:unsettled]
        writer.settle()
        assert writer.unsettled is None
        assert file.read_bytes() == data
    if session.round_trip:  # here a write is done when it returns; elsewhere it falls behind, and catches up
        assert 0 in seen
        assert len(seen) > 10


def test_unsettled_is_the_lowest_in_whatever_order(session: Session, tmp_path: Path) -> None:
    with session.create(str(tmp_path / "file")) as writer:
        for part in (3, 1, 2):
            writer.write(part * BLOCK, bytes(BLOCK))
        assert writer.unsettled in (None, BLOCK)
        writer.settle()
        writer.write(0, b"x")
        assert writer.unsettled in (None, 0)


def test_a_write_that_failed_is_never_settled(session: Session, tmp_path: Path) -> None:
    with small_file_system(tmp_path / "small", size=40 * BLOCK) as small:
        with pytest.raises(NoSpace), session.create(str(small / "file")) as writer:
            try:
                for part in range(120):
                    writer.write(part * BLOCK, bytes(BLOCK))
                writer.settle()
            except TransportError:
                failed = writer.unsettled
                assert failed is not None
                assert failed <= 40 * BLOCK
                with pytest.raises(NoSpace):
                    writer.settle()
                assert writer.unsettled == failed
                raise


@pytest.mark.parametrize("length", [1, 1000, BLOCK, 4 * 1024 * 1024])
def test_ranges_come_in_the_order_in_which_they_were_dealt(session: Session, tmp_path: Path, length: int) -> None:
    data, file = os.urandom(20 * 1024 * 1024 + 7), tmp_path / "file"
    file.write_bytes(data)
    wanted = [(offset, min(length, len(data) - offset)) for offset in range(0, len(data), length)[:200]]
    dealer = Dealer(wanted[::2] + wanted[1::2])
    expected = b"".join(data[offset : offset + size] for offset, size in wanted[::2] + wanted[1::2])
    with session.open_read(str(file)) as reader:
        pieces = dealer.read(reader)
    assert b"".join(block for _, block in pieces) == expected
    for offset, block in pieces:
        assert data[offset : offset + len(block)] == block
    if session.round_trip:
        assert dealer.ahead, "no range was asked for before the last one's bytes were given out"


@pytest.mark.parametrize("every", [1, 10**9])
def test_ranges_of_a_queue_that_is_always_full_or_always_empty(session: Session, tmp_path: Path, every: int) -> None:
    data, file = os.urandom(40 * BLOCK + 1), tmp_path / "file"
    file.write_bytes(data)
    dealer = Dealer([(part * BLOCK, BLOCK) for part in range(40)] + [(40 * BLOCK, 1)], every=every)
    with session.open_read(str(file)) as reader:
        assert b"".join(block for _, block in dealer.read(reader)) == data


def test_ranges_end_with_the_queue_or_with_the_file(session: Session, tmp_path: Path) -> None:
    data, file = os.urandom(BLOCK + 100), tmp_path / "file"
    file.write_bytes(data)
    with session.open_read(str(file)) as reader:
        assert Dealer([]).read(reader) == []
        cut = Dealer([(BLOCK, BLOCK), (0, 100)]).read(reader)
        assert b"".join(block for _, block in cut) == data[BLOCK:]
        assert Dealer([(10**9, 5)]).read(reader) == []
        assert Dealer([(7, 0), (3, 4)]).read(reader) == [(3, data[3:7])]


def test_ranges_left_early_leave_a_session_that_works(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(20_000_000))
    with session.open_read(str(file)) as reader:
        for _ in range(3):
            for _ in reader.ranges(Dealer([(0, 10_000_000), (10_000_000, 10_000_000)], every=1)):
                break
        assert sum(len(block) for block in reader.blocks()) == 20_000_000
    assert session.stat(str(file)).size == 20_000_000


def test_what_a_dealer_raises_passes(session: Session, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(1000))

    def cancelled(_: bool) -> tuple[int, int] | None:
        raise KeyError

    with session.open_read(str(file)) as reader, pytest.raises(KeyError):
        list(reader.ranges(cancelled))
    assert session.stat(str(file)).size == 1000
