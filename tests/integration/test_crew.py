"""Several readers and writers of one file: exact bytes, seen in order, nothing far ahead, every thread ended."""

from __future__ import annotations

import hashlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from datamanager.engine.single import parallel_streams
from datamanager.engine.single.parallel_streams import AHEAD, BUFFERS, THREAD, ParallelStreams
from datamanager.engine.single.restart import WINDOW
from datamanager.errors import NoSpace, SourceChanged
from datamanager.machines import Machine
from datamanager.transports.local.storage import LocalStorage
from datamanager.transports.port import Reader, Session, Writer
from datamanager.transports.values import Bytes, FileStat, NextRange

CHUNK = 2**17


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many there are is what counts here."""
    monkeypatch.setattr(parallel_streams, "CHUNK", CHUNK)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    machine = Machine.model_validate({"name": "here", "transport": "local", "base_dir": str(tmp_path)})
    with LocalStorage(machine).session() as lent:
        yield lent


class Files:
    """A source of random bytes and a destination, opened as often as asked for."""

    def __init__(self, folder: Path, session: Session, stack: ExitStack, size: int, readers: int, writers: int) -> None:
        self.source, self.sink = folder / "in", folder / "out"
        self.source.write_bytes(os.urandom(size))
        self.readers: list[Reader] = [stack.enter_context(session.open_read(str(self.source))) for _ in range(readers)]
        self.writers: list[Writer] = [stack.enter_context(session.create(str(self.sink)))]
        self.writers += [stack.enter_context(session.reopen(str(self.sink))) for _ in range(writers - 1)]


@pytest.mark.parametrize(("readers", "writers"), [(1, 4), (4, 1), (3, 3)])
@pytest.mark.parametrize(
    ("start", "stop"), [(0, 1), (0, CHUNK), (5, 3 * CHUNK + 7), (CHUNK, (BUFFERS + 2) * CHUNK + 1)]
)
def test_exact_bytes_seen_in_order(
    session: Session, tmp_path: Path, readers: int, writers: int, start: int, stop: int
) -> None:
    seen, position = hashlib.sha256(), start
    with ExitStack() as stack:
        files = Files(tmp_path, session, stack, stop, readers, writers)

        def see(block: memoryview, stored: int) -> None:
            nonlocal position
            assert start <= stored <= position
            assert position - stored <= WINDOW
            seen.update(block)
            position += len(block)

        assert ParallelStreams(files.readers, files.writers, start, stop).move(see) == stop
    wanted = files.source.read_bytes()[start:]
    assert seen.digest() == hashlib.sha256(wanted).digest()
    assert files.sink.read_bytes()[start:] == wanted
    assert no_threads_left()


def test_nothing_is_dealt_beyond_the_window(session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The window is smaller than all buffers together here, so that it is what holds the readers back."""
    monkeypatch.setattr(parallel_streams, "WINDOW", 3 * CHUNK)
    furthest, lowest = 0, threading.Lock()

    class Slow:
        """A writer whose statuses come late: nothing counts as stored until it is asked to settle."""

        def __init__(self, writer: Writer) -> None:
            self._writer = writer
            self._open: int | None = None

        @property
        def unsettled(self) -> int | None:
            return self._open

        def write(self, offset: int, data: Bytes) -> None:
            nonlocal furthest
            with lowest:
                self._open = offset if self._open is None else min(self._open, offset)
                furthest = max(furthest, offset + len(memoryview(data)) - self._open)
            self._writer.write(offset, data)

        def settle(self) -> None:
            with lowest:
                self._open = None

        def flush(self) -> None:
            self._writer.flush()

    with ExitStack() as stack:
        files = Files(tmp_path, session, stack, 20 * CHUNK, 2, 2)
        slow: list[Writer] = [Slow(writer) for writer in files.writers]
        ParallelStreams(files.readers, slow, 0, 20 * CHUNK).move(lambda _block, _stored: None)
    assert files.sink.read_bytes() == files.source.read_bytes()
    assert furthest <= 3 * CHUNK


def test_a_reader_that_asks_for_all_it_can_leaves_some_for_the_others(session: Session, tmp_path: Path) -> None:
    held = list[int]()

    class Greedy:
        """A reader that asks as long as it is dealt something."""

        def __init__(self, reader: Reader) -> None:
            self._reader = reader

        def stat(self) -> FileStat:
            return self._reader.stat()

        def blocks(self, offset: int = 0, length: int | None = None) -> Iterator[memoryview]:
            return self._reader.blocks(offset, length)

        def ranges(self, following: NextRange) -> Iterator[tuple[int, memoryview]]:
            waiting = deque[tuple[int, int]]()
            while True:
                while (dealt := following(not waiting)) is not None:
                    waiting.append(dealt)
                if not waiting:
                    return
                held.append(len(waiting))
                offset, length = waiting.popleft()
                for block in self.blocks(offset, length):
                    yield offset, block
                    offset += len(block)

    with ExitStack() as stack:
        files = Files(tmp_path, session, stack, 20 * CHUNK, 2, 1)
        greedy: list[Reader] = [Greedy(reader) for reader in files.readers]
        ParallelStreams(greedy, files.writers, 0, 20 * CHUNK).move(lambda _block, _stored: None)
    assert max(held) == AHEAD
    assert files.sink.read_bytes() == files.source.read_bytes()


def test_a_writer_that_fails_ends_all(session: Session, tmp_path: Path) -> None:
    class Full:
        unsettled = None

        def write(self, offset: int, data: Bytes) -> None:
            raise NoSpace("full")

        def settle(self) -> None: ...

        def flush(self) -> None: ...

    with ExitStack() as stack:
        files = Files(tmp_path, session, stack, 2 * BUFFERS * CHUNK, 3, 1)
        with pytest.raises(NoSpace):
            ParallelStreams(files.readers, [*files.writers, Full()], 0, 2 * BUFFERS * CHUNK).move(
                lambda _block, _stored: None
            )
    assert no_threads_left()


def test_a_stop_in_the_middle_ends_all(session: Session, tmp_path: Path) -> None:
    with ExitStack() as stack:
        files = Files(tmp_path, session, stack, 2 * BUFFERS * CHUNK, 3, 3)
        blocks = iter(range(5))

        def see(_block: memoryview, _stored: int) -> None:
            if next(blocks, None) is None:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            ParallelStreams(files.readers, files.writers, 0, 2 * BUFFERS * CHUNK).move(see)
    assert no_threads_left()


def test_a_source_that_ends_early_is_told(session: Session, tmp_path: Path) -> None:
    with ExitStack() as stack:
        files = Files(tmp_path, session, stack, 5 * CHUNK - 9, 2, 2)
        with pytest.raises(SourceChanged):
            ParallelStreams(files.readers, files.writers, 0, 6 * CHUNK).move(lambda _block, _stored: None)
    assert no_threads_left()


def no_threads_left() -> bool:
    return all(thread.name != THREAD for thread in threading.enumerate())
