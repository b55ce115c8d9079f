"""Many small files by the publish protocol on real storages: what is published is exact, what fails fails alone."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest

from datamanager.domain.location import temporary_name
from datamanager.engine.attempt import Intent
from datamanager.engine.bulk import bulk_publish
from datamanager.engine.bulk.bulk_chunk import (
    SMALL,
    Deferred,
)
from datamanager.engine.bulk.bulk_removal import remove_sources
from datamanager.engine.control import Control
from datamanager.engine.single.source_removal import machine_time
from datamanager.errors import (
    Cancelled,
    ChecksumMismatch,
    DataManagerError,
    DestinationExists,
    NoSpace,
    PathNotAllowed,
    SizeMismatch,
    SourceChanged,
    SourceMissing,
    SourceNotRemoved,
)
from datamanager.machines import Connection, Machine, VerifyPolicy
from datamanager.transports.port import Session
from datamanager.transports.remote import many_files
from datamanager.transports.sftp import bulk as sftp_bulk
from tests.contract.test_transport import NAMES
from tests.contract.test_transport_limits import small_file_system
from tests.support.ends import Ends
from tests.support.process import signal_each
from tests.support.small_files import MTIME, Batch, Faulty, failed, parts, staged
from tests.support.sshd import PrivateSshd


@pytest.fixture(params=["local", "openssh", "paramiko"])
def ends(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ends]:
    """Two machines of one kind; `c` is a second name for the folder of `a`."""
    folders = {name: tmp_path / name for name in ("a", "b")}
    for folder in folders.values():
        folder.mkdir()
    folders["c"] = folders["a"]
    if request.param == "local":
        machines = {
            name: Machine.model_validate({"name": name, "transport": "local", "base_dir": str(folder)})
            for name, folder in folders.items()
        }
    else:
        servers: tuple[PrivateSshd, PrivateSshd] = request.getfixturevalue("sshd_pair")
        by_name = {"a": servers[0], "b": servers[1], "c": servers[1]}
        machines = {
            name: by_name[name].machine(name, str(folder), connection=request.param) for name, folder in folders.items()
        }
    both = Ends(machines, tmp_path / "run")
    yield both
    both.storages.close()


@pytest.fixture(params=["sha256", "packed"])
def batch(request: pytest.FixtureRequest, ends: Ends) -> Batch:
    """Files written and hashed, by a program there where OpenSSH's client starts it, or packed and measured."""
    packed = request.param == "packed"
    machine = ends.machines["a"]
    by_program = not packed and machine.host is not None and machine.connection is Connection.OPENSSH
    return Batch(ends, VerifyPolicy.SIZE if packed else VerifyPolicy.SHA256, packed=packed, by_program=by_program)


def some_files(batch: Batch, count: int = 150, *, largest: int = 255 * 1024 + 1) -> None:
    rng = random.Random(3)
    for number in range(count):
        size = min(rng.choice([0, 1, rng.randrange(20_000), 255 * 1024 + 1]), largest)
        batch.add(f"dir{number % 5}/file-{number}", rng.randbytes(size))


def test_exact_bytes_modes_and_times(batch: Batch) -> None:
    some_files(batch)
    control = Control()
    outcomes = batch.stage(control)
    assert len(staged(outcomes)) == len(batch.items)
    assert control.bytes_done == sum(map(len, batch.data.values()))
    assert not any(batch.out(item.number).exists() for item in batch.items)
    assert set(batch.publish(outcomes).values()) == {None}
    batch.assert_published(batch.data)
    assert not parts(batch.ends)
    for one in staged(outcomes):
        data = batch.data[one.number]
        digest = None if batch.verify is VerifyPolicy.SIZE else hashlib.sha256(data).hexdigest()
        assert one.intent == Intent(len(data), digest, MTIME)
        assert one.canonical == batch.items[one.number].destination.path


def test_hostile_names(batch: Batch) -> None:
    for number, raw in enumerate(NAMES):
        if raw.isascii() or os.fsdecode(raw).isprintable():
            name = os.fsdecode(raw)
            batch.add(f"{number}/{name}", os.urandom(1000), f"{name}/{name}")
    assert len(batch.items) > 12
    assert set(batch.publish(batch.stage()).values()) == {None}
    batch.assert_published(batch.data)
    assert not parts(batch.ends)


def test_long_names_that_begin_alike(batch: Batch) -> None:
    for tail in "abc":
        batch.add("n" * 254 + tail, tail.encode())
    assert set(batch.publish(batch.stage()).values()) == {None}
    batch.assert_published(batch.data)


def test_each_item_fails_alone(batch: Batch) -> None:
    some_files(batch, 20)
    good = list(batch.data)
    folder_a, folder_b = batch.ends.folder("a"), batch.ends.folder("b")
    expected: dict[int, type[DataManagerError]] = {batch.ask("nothing", "out/nothing"): SourceMissing}
    expected[batch.ask("no/folder/nothing", "out/nothing2")] = SourceMissing
    (folder_b / "taken").write_text("mine")
    expected[batch.add("source1", b"new", "taken")] = DestinationExists
    (folder_b / "folder").mkdir()
    expected[batch.add("source2", b"new", "folder")] = DestinationExists
    expected[batch.add("source3", b"new", "taken/below")] = DestinationExists
    expected[batch.add("source4", b"new", "new/dir0/file-0")] = DestinationExists
    (folder_b / "outside").symlink_to("/tmp")
    expected[batch.add("source5", b"new", "outside/leak")] = PathNotAllowed
    (folder_a / "outside").symlink_to("/etc")
    expected[batch.ask("outside/passwd", "out/leak")] = PathNotAllowed
    later = [batch.add("large", bytes(SMALL + 1))]
    (folder_a / "link").symlink_to("source1")
    later.append(batch.ask("link", "out/link"))
    later.append(batch.ask("dir0", "out/dir0"))
    os.mkfifo(folder_a / "fifo")
    later.append(batch.ask("fifo", "out/fifo"))
    outcomes = batch.stage()
    assert failed(outcomes) == expected
    assert [number for number, one in outcomes.items() if isinstance(one, Deferred)] == later
    assert [one.number for one in staged(outcomes)] == good
    assert set(batch.publish(outcomes).values()) == {None}
    batch.assert_published(good)
    assert (folder_b / "taken").read_text() == "mine"
    assert not parts(batch.ends)


def test_a_linked_directory_has_a_canonical_place(batch: Batch) -> None:
    (batch.ends.folder("b") / "real").mkdir()
    (batch.ends.folder("b") / "link").symlink_to("real")
    number = batch.add("file", b"data", "link/file")
    [one] = staged(batch.stage())
    assert one.canonical == "real/file"
    assert one.final == str(batch.ends.folder("b") / "real/file")
    assert number == one.number


class Meddling(Control):
    """Does something once, when the first bytes are done."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__()
        self._acts = [act]

    def advance(self, count: int) -> None:
        """Count, and act."""
        while self._acts:
            self._acts.pop()()
        super().advance(count)


def test_a_source_that_changes_is_caught(batch: Batch) -> None:
    some_files(batch, 200)
    (touched, grown, gone), last = (3, 4, 5), 199

    def meddle() -> None:
        os.utime(batch.source(touched), (MTIME + 1, MTIME + 1))
        for number in (grown, last):
            with batch.source(number).open("ab") as file:
                file.write(b"more")
            os.utime(batch.source(number), (MTIME, MTIME))
        batch.source(gone).unlink()

    outcomes = batch.stage(Meddling(meddle))
    caught = failed(outcomes)
    assert caught == dict.fromkeys((touched, grown, gone, last), SourceChanged) or (
        caught.pop(gone) is SourceMissing and caught == dict.fromkeys((touched, grown, last), SourceChanged)
    )
    batch.publish(outcomes)
    batch.assert_published(one.number for one in staged(outcomes))
    assert len(list(batch.ends.folder("b").rglob("file-*"))) == 196
    assert not parts(batch.ends)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


DAMAGING = """
LEFT = [{times}]
def damage(where, name):
    if b".damaged." in name and LEFT[0]:
        LEFT[0] -= 1
        handle = os.open(name, os.O_RDWR, dir_fd=where)
        {damage}
        os.close(handle)
"""
"""What the program for many files does to a file before it hashes it."""
DAMAGES: dict[Callable[[Path], None], str] = {
    flip: "os.pwrite(handle, bytes([os.pread(handle, 1, 9)[0] ^ 1]), 9)",
    truncate: "os.ftruncate(handle, 9)",
}


def damaging_program(damage: Callable[[Path], None], times: int) -> str:
    """Return the program for many files of a storage that damages what is written: there is no way between the two."""
    begin = "def digest(where, order, _):\n    def one(name):\n"
    head, found, tail = many_files._program().partition(begin)
    assert found
    return head + DAMAGING.format(times=times, damage=DAMAGES[damage]) + begin + "        damage(where, name)\n" + tail


@pytest.mark.parametrize(("damage", "times"), [(flip, 1), (flip, 2), (truncate, 2)])
def test_damage_to_what_was_stored_is_caught(
    batch: Batch, damage: Callable[[Path], None], times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    some_files(batch, 30)
    number = batch.add("damaged", os.urandom(5000))
    if batch.verify is VerifyPolicy.SIZE:
        damage = truncate  # sizes alone can't show the other
    if batch.by_program:
        text = damaging_program(damage, times)
        monkeypatch.setattr(many_files, "_program", lambda: text)
    control = Control()
    outcomes = batch.stage(control, wrap=lambda target: cast("Session", Faulty(target, "damaged", times, damage)))
    if times == 1:  # brought once more
        assert failed(outcomes) == {}
    else:
        assert failed(outcomes) == {number: SizeMismatch if batch.verify is VerifyPolicy.SIZE else ChecksumMismatch}
    assert set(batch.publish(outcomes).values()) == {None}
    batch.assert_published(one.number for one in staged(outcomes))
    assert batch.out(number).exists() == (times == 1)
    assert control.bytes_done == sum(map(len, batch.data.values()))  # each counted once
    assert not parts(batch.ends)


class Stopping(Control):
    """Does something when half of the sources are read."""

    def __init__(self, batch: Batch, act: Callable[[], None]) -> None:
        super().__init__()
        self._left = len(batch.items) // 2 + 1  # it is asked once before the sources are read
        self._act = act

    def check(self) -> None:
        """Act once."""
        self._left -= 1
        if self._left == 0:
            self._act()
        super().check()


def test_a_cancel_leaves_nothing(batch: Batch) -> None:
    some_files(batch, 600, largest=3000)  # more than are read ahead
    seen = []

    def cancel() -> None:
        seen.append(len(parts(batch.ends)))
        control.stop(Cancelled("enough"))

    control = Stopping(batch, cancel)
    with pytest.raises(Cancelled):
        batch.stage(control)
    assert len(seen) == 1
    assert batch.packed or 0 < seen[0] < 900
    assert not parts(batch.ends)
    assert not list(batch.ends.folder("b").rglob("file-*"))
    assert set(batch.publish(batch.stage(epoch=2)).values()) == {None}
    batch.assert_published(batch.data)


def test_a_retry_accepts_what_was_published(batch: Batch) -> None:
    """A crash after some names were given, before the catalogue knew."""
    some_files(batch, 40)
    first = batch.stage()
    batch.publish({number: first[number] for number in range(25)})
    inodes = {number: batch.out(number).stat().st_ino for number in range(25)}
    ours = {one.number: one.intent for one in staged(first)}
    batch.out(7).write_bytes(batch.data[7] + b"!")  # somebody else's
    batch.source(8).unlink()
    again = batch.stage(epoch=2, ours=ours)
    assert failed(again) == {7: DestinationExists}
    assert [one.number for one in staged(again) if one.published] == [n for n in range(25) if n != 7]
    assert {one.number: one.intent for one in staged(again)} == {n: i for n, i in ours.items() if n != 7}
    assert len(parts(batch.ends)) == 15  # those of the first attempt went
    assert set(batch.publish(again).values()) == {None}
    assert set(batch.publish(again).values()) == {None}  # the answer of the first was lost
    batch.assert_published(number for number in batch.data if number != 7)
    assert {number: batch.out(number).stat().st_ino for number in inodes} == inodes
    assert not parts(batch.ends)


def test_what_was_staged_before_in_the_same_attempt_is_written_anew(batch: Batch) -> None:
    some_files(batch, 40)
    for one in staged(batch.stage()):
        Path(one.part).write_text("left half written")
    assert set(batch.publish(batch.stage()).values()) == {None}
    batch.assert_published(batch.data)


def test_nothing_is_replaced_unless_asked(batch: Batch) -> None:
    some_files(batch, 40)
    for number in range(40):
        batch.out(number).parent.mkdir(parents=True, exist_ok=True)
        batch.out(number).write_text("old")
    assert failed(batch.stage()) == dict.fromkeys(range(40), DestinationExists)
    assert {batch.out(number).read_text() for number in range(40)} == {"old"}
    outcomes = batch.stage(overwrite=True)
    assert {batch.out(number).read_text() for number in range(40)} == {"old"}
    assert set(batch.publish(outcomes, overwrite=True).values()) == {None}
    batch.assert_published(batch.data)


def test_a_file_is_never_replaced_by_itself(ends: Ends) -> None:
    """Machine `c` is another name for the folder of `a`."""
    batch = Batch(ends, target="c")
    number, other = batch.add("same", b"precious", "same"), batch.add("one", b"other", "two")
    outcomes = batch.stage(overwrite=True)
    assert failed(outcomes) == {number: DestinationExists}
    assert set(batch.publish(outcomes, overwrite=True)) == {other}
    assert batch.source(number).read_bytes() == b"precious"
    assert not parts(ends)


def test_names_that_appear_in_the_last_moment_are_left(batch: Batch) -> None:
    some_files(batch, 40)
    outcomes = batch.stage()
    batch.out(11).write_text("somebody else's")
    batch.out(12).write_bytes(batch.data[12])
    os.utime(batch.out(12), (MTIME, MTIME))  # ours, as it seems: an answer was lost
    [gone] = [one for one in staged(outcomes) if one.number == 13]
    Path(gone.part).unlink()
    results = batch.publish(outcomes)
    assert {number for number, error in results.items() if error is not None} == {11, 13}
    assert isinstance(results[11], DestinationExists)
    assert batch.out(11).read_text() == "somebody else's"
    batch.data.pop(12)
    batch.assert_published(number for number in batch.data if number not in (11, 13))
    assert [path.name for path in parts(batch.ends)] == [temporary_name("file-11", batch.transfer, 1)]
    with batch.sessions() as (_, target):
        bulk_publish.discard(target, [one for one in staged(outcomes) if one.number in (11, 13)])
    assert not parts(batch.ends)


def test_sources_of_a_move_go_if_they_are_what_was_read(batch: Batch) -> None:
    some_files(batch, 40)
    with batch.sessions() as (source, _):
        outcomes = batch.stage(clock=partial(machine_time, source))
    batch.publish(outcomes)
    batch.source(3).write_bytes(b"written since")
    batch.source(4).unlink()
    batch.source(5).unlink()
    batch.source(5).symlink_to(batch.source(6))
    with batch.sessions() as (source, _):
        results = remove_sources(source, batch.removals(outcomes))
    assert {number: type(error) for number, error in enumerate(results) if error} == {
        3: SourceNotRemoved,
        5: SourceNotRemoved,
    }
    left = [path.name for path in batch.ends.folder("a").rglob("file-*")]
    assert sorted(left) == ["file-3", "file-5"]
    batch.assert_published(batch.data)


def test_what_does_not_fit_fails_alone(ends: Ends) -> None:
    with small_file_system(ends.folder("b") / "small", size=4 * 1024 * 1024):
        batch = Batch(ends, VerifyPolicy.SIZE)
        for number in range(20):
            batch.add(f"file-{number}", bytes(400_000), f"small/file-{number}")
        outcomes = batch.stage()
        assert set(failed(outcomes).values()) == {NoSpace}
        assert 0 < len(staged(outcomes)) < 20
        assert set(batch.publish(outcomes).values()) == {None}
        batch.assert_published(one.number for one in staged(outcomes))
        assert not parts(ends)
        ends.storages.close()


def test_what_is_for_another_file_system_is_not_held_up_by_a_full_one(ends: Ends) -> None:
    with small_file_system(ends.folder("b") / "small", size=1024 * 1024):
        batch = Batch(ends, VerifyPolicy.SIZE)
        full = [batch.add(f"file-{number}", bytes(400_000), f"small/file-{number}") for number in range(4)]
        others = [batch.add(f"else-{number}", bytes(400_000), f"else/file-{number}") for number in range(3)]
        outcomes = batch.stage()
        assert failed(outcomes) == dict.fromkeys(full[2:], NoSpace)
        assert set(batch.publish(outcomes).values()) == {None}
        batch.assert_published([*full[:2], *others])
        ends.storages.close()


def test_items_that_are_transfers_of_their_own_have_partial_files_as_if_alone(batch: Batch) -> None:
    some_files(batch, 3)
    keys = {item.number: (uuid4(), item.number + 1) for item in batch.items}  # epochs 1, 2 and 3

    def part(number: int, epoch: int) -> Path:
        return batch.out(number).with_name(temporary_name(batch.out(number).name, keys[number][0], epoch))

    earlier = [part(number, epoch) for number in keys for epoch in range(1, keys[number][1])]
    for left in earlier:
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(b"of an earlier attempt")
    outcomes = batch.stage(keys=keys)
    assert sorted(parts(batch.ends)) == sorted(part(number, epoch) for number, (_, epoch) in keys.items())
    assert set(batch.publish(outcomes).values()) == {None}
    batch.assert_published(keys)
    assert not parts(batch.ends)


@pytest.mark.faults
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("ends", ["openssh", "paramiko"], indirect=True)
def test_a_connection_that_breaks_ends_the_chunk(
    batch: Batch, sshd_pair: tuple[PrivateSshd, PrivateSshd], which: int
) -> None:
    some_files(batch, 600, largest=3000)  # more than are read ahead

    def kill() -> None:
        signal_each(sshd_pair[which].descendants(), signal.SIGKILL)

    with pytest.raises(DataManagerError) as caught:
        batch.stage(Stopping(batch, kill))
    assert caught.value.retryable
    if which == 0:
        assert not parts(batch.ends)
    assert set(batch.publish(batch.stage(epoch=2)).values()) == {None}
    batch.assert_published(batch.data)
    assert not parts(batch.ends)


@pytest.mark.parametrize("ends", ["openssh", "paramiko"], indirect=True)
def test_memory_does_not_grow_with_the_number_of_files(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    in_flight, size, count, known_of_each = 128, 40_000, 1000, 6_000
    monkeypatch.setattr(sftp_bulk, "MOST_IN_FLIGHT", in_flight)
    block = os.urandom(size)
    for number in range(count):
        batch.add(f"dir{number % 10}/file-{number}", block[number:] + block[:number])
    batch.data = dict.fromkeys(batch.data, b"")  # the test's own memory is not meant
    tracemalloc.start()
    try:
        outcomes = batch.stage()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * in_flight * size + count * known_of_each < count * size / 2
    assert set(batch.publish(outcomes).values()) == {None}
    for number in (0, 1, 499, 999):
        assert batch.out(number).read_bytes() == block[number:] + block[:number]


def test_nothing_to_do(batch: Batch) -> None:
    assert batch.stage() == {}
    assert batch.publish({}) == {}
