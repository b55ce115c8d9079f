"""Going on where a transfer was cut off: exact bytes, little sent again, and never bytes of another source."""

from __future__ import annotations

import dataclasses
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamanager.domain.states import Verified
from datamanager.engine.attempt import Attempt, Intent, Restart
from datamanager.engine.control import Control
from datamanager.engine.single import parallel_streams, restart, transfer
from datamanager.engine.single import probe as probing
from datamanager.engine.single import publish as publishing
from datamanager.engine.single.probe import probe
from datamanager.engine.single.verify import verify
from datamanager.errors import Cancelled, ChecksumMismatch, ConnectionLost, DataManagerError, MachineUnavailable
from datamanager.machines import Machine
from tests.support.ends import Ends
from tests.support.process import signal_each
from tests.support.proxy import Proxy
from tests.support.sshd import PrivateSshd

MIB = 2**20
BLOCK = 8 * MIB
WINDOW = 2 * BLOCK
SIZE = WINDOW + 24 * MIB + 12345
OVERHEAD = 8 * MIB
"""Bytes of a connection that are no file's: handshakes, packet headers, statuses."""


class Site:
    """`a` is this host, `b` is reached through a proxy that can cut; both in memory."""

    def __init__(self, folder: Path, server: PrivateSshd, proxy: Proxy, connection: str) -> None:
        self.proxy = proxy
        for name in ("a", "b"):
            (folder / name).mkdir()
        known = folder / "known_hosts"
        known.write_text(server.known_host_line().replace(f":{server.port} ", f":{proxy.port} "))
        local = {"name": "a", "transport": "local", "base_dir": str(folder / "a")}
        far = {"connection": connection, "port": proxy.port, "known_hosts": known, "stall_timeout": 60}
        machines = {"a": Machine.model_validate(local), "b": server.machine("b", folder / "b", **far)}
        self.ends = Ends(machines, folder / "run")
        self.source = folder / "a" / "in"
        self.final = folder / "b" / "out"
        self.marker: Restart | None = None

    def write_source(self, size: int) -> None:
        """Make a file of random bytes."""
        with self.source.open("wb") as file:
            for start in range(0, size, MIB):
                file.write(os.urandom(min(MIB, size - start)))

    def remember(self, marker: Restart) -> None:
        """Record the marker, as the catalogue does."""
        self.marker = marker

    def attempt(self, job: Attempt, control: Control | None = None) -> Verified:
        """Do what one attempt of the flow does."""
        job, control = dataclasses.replace(job, restart=self.marker), control or Control()
        found = probe(job)
        proof = verify(job, found, transfer.relay(job, found, control, self.remember), control)
        intent = Intent(proof.size, proof.sha256, found.source_stat.mtime)
        publishing.publish(job, found, publishing.set_attributes(job, found, intent))
        return proof.verified

    def attempts(self, job: Attempt, most: int = 6) -> int:
        """Attempt until it works; each attempt is another mover's, with the next epoch. Returns how many it took."""
        for number in range(1, most + 1):
            try:
                self.attempt(dataclasses.replace(job, epoch=number))
            except (ConnectionLost, MachineUnavailable):
                continue
            return number
        raise AssertionError("it never worked")

    def parts(self) -> list[Path]:
        """Return the partial files at the destination."""
        return list(self.final.parent.glob(".*.dmpart"))

    def assert_exact(self) -> None:
        """Compare both files, byte by byte, and see that nothing else is left."""
        with self.source.open("rb") as ours, self.final.open("rb") as theirs:
            while block := ours.read(MIB):
                assert theirs.read(MIB) == block
            assert not theirs.read(1)
        assert not self.parts()


@pytest.fixture(autouse=True)
def small_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of 40 MiB are large: with the window of the service they would have to be three times as large."""
    monkeypatch.setattr(restart, "BLOCK", BLOCK)
    monkeypatch.setattr(restart, "WINDOW", WINDOW)
    monkeypatch.setattr(parallel_streams, "WINDOW", WINDOW)


both_ways = pytest.mark.parametrize("connection", ["openssh", "paramiko"])


@pytest.fixture
def connection() -> str:
    """The way to `b` of tests that do not ask for both: what they try is the engine's, not the transport's."""
    return "paramiko"


@pytest.fixture
def site(sshd_pair: tuple[PrivateSshd, PrivateSshd], connection: str) -> Iterator[Site]:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, Proxy(sshd_pair[1].port) as proxy:
        made = Site(Path(folder), sshd_pair[1], proxy, connection)
        made.write_source(SIZE)
        yield made
        made.ends.storages.close()


@pytest.mark.slow
@both_ways
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(MIB, SIZE - MIB), min_size=1, max_size=3))
def test_cut_anywhere_it_goes_on_and_sends_little_again(site: Site, cuts: list[int]) -> None:
    site.final.unlink(missing_ok=True)
    site.marker = None
    waiting = list(cuts)
    begun = site.proxy.sent
    job = site.ends.job("a:in", "b:out")
    for number in range(1, len(cuts) + 2):
        before = site.proxy.sent
        site.proxy.cut_after = before + waiting.pop() if waiting else None
        try:
            site.attempt(dataclasses.replace(job, epoch=number))
        except (ConnectionLost, MachineUnavailable):
            assert site.proxy.sent > before
            assert not site.final.exists()
            continue
        break
    site.proxy.cut_after = None
    site.assert_exact()
    assert site.proxy.sent - begun <= SIZE + len(cuts) * (WINDOW + OVERHEAD) + OVERHEAD


@both_ways
@pytest.mark.parametrize("cut", [SIZE // 2, SIZE - 10 * MIB])
def test_several_connections_leave_holes_that_are_filled(
    sshd_pair: tuple[PrivateSshd, PrivateSshd], connection: str, cut: int
) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, Proxy(sshd_pair[1].port, delay=0.01) as proxy:
        site = Site(Path(folder), sshd_pair[1], proxy, connection)
        site.write_source(SIZE)
        with site.ends.storages.get("b").session() as session:
            assert session.round_trip >= 0.01
        proxy.cut_after = proxy.sent + cut
        before = proxy.sent
        assert site.attempts(site.ends.job("a:in", "b:out")) == 2
        assert proxy.cuts == 1
        site.assert_exact()
        assert proxy.sent - before <= SIZE + WINDOW + 2 * OVERHEAD
        site.ends.storages.close()


@both_ways
def test_a_get_over_several_connections_is_exact(
    sshd_pair: tuple[PrivateSshd, PrivateSshd], connection: str, tmp_path: Path
) -> None:
    with Proxy(sshd_pair[1].port, delay=0.01) as proxy:
        site = Site(tmp_path, sshd_pair[1], proxy, connection)
        data = os.urandom(24 * MIB + 3)
        (tmp_path / "b" / "far").write_bytes(data)
        job = site.ends.job("b:far", "a:near")
        site.attempt(job)
        assert (tmp_path / "a" / "near").read_bytes() == data
        site.ends.storages.close()


@both_ways
def test_the_same_try_goes_on_after_the_sftp_server_was_killed(
    site: Site, sshd_pair: tuple[PrivateSshd, PrivateSshd]
) -> None:
    job = site.ends.job("a:in", "b:out")

    class Kills(Control):
        def advance(self, count: int) -> None:
            before = self.bytes_done
            super().advance(count)
            if before < WINDOW + 12 * MIB <= self.bytes_done:
                signal_each(sshd_pair[1].descendants(), signal.SIGKILL)

    with pytest.raises((ConnectionLost, MachineUnavailable)):
        site.attempt(job, Kills())
    before = site.proxy.sent
    assert [part.name for part in site.parts()] == [job.part_name]
    site.attempt(job)  # the task's next try: the same epoch
    site.assert_exact()
    assert site.proxy.sent - before <= SIZE - 8 * MIB + OVERHEAD


def interrupted(site: Site, at: int = WINDOW + 16 * MIB) -> Attempt:
    """Make an attempt that is cut off at about so many bytes; return the next attempt's job."""
    job = site.ends.job("a:in", "b:out")
    site.proxy.cut_after = site.proxy.sent + at
    with pytest.raises((ConnectionLost, MachineUnavailable)):
        site.attempt(job)
    assert len(site.parts()) == 1
    return dataclasses.replace(job, epoch=2)


def test_another_source_is_not_gone_on_with(site: Site) -> None:
    job = interrupted(site)
    old = site.parts()[0].stat().st_ino
    with site.parts()[0].open("rb"):  # keeps the inode's number from being given to the new file
        site.write_source(SIZE)
        os.utime(site.source, (1_500_000_000, 1_500_000_000))
        before = site.proxy.sent
        site.attempt(job)
        assert site.final.stat().st_ino != old
    assert site.proxy.sent - before > SIZE
    site.assert_exact()


def test_resume_refuses_a_source_that_changed_before_the_block_that_is_compared(site: Site) -> None:
    job = interrupted(site, SIZE - 4 * MIB)
    assert site.parts()[0].stat().st_size - WINDOW > BLOCK
    flip(site.source, 5)
    os.utime(site.source, (1_500_000_000, 1_500_000_000))
    site.attempt(job)
    assert site.final.read_bytes() == site.source.read_bytes()


@pytest.mark.parametrize("resumable", [True, False])
def test_an_attempt_that_removes_its_part_late_leaves_the_next_one_alone(
    site: Site, monkeypatch: pytest.MonkeyPatch, resumable: bool
) -> None:
    """A mover that hung until its lease was lost ends its attempt while the next one looks at what is there."""
    job = interrupted(site)
    where, name = (restart, "parts_of") if resumable else (probing, "parts_among")
    site.marker = site.marker if resumable else None
    look, seen = getattr(where, name), list[Path]()

    def look_before_they_go(*args: Any) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = look(*args)
        seen.extend(Path(path) for _, path in found)
        for part in site.parts():
            part.unlink()
        return found

    monkeypatch.setattr(where, name, look_before_they_go)
    site.attempt(job)
    assert len(seen) == 1
    site.assert_exact()


def test_damage_in_the_last_block_begins_anew(site: Site) -> None:
    job = interrupted(site)
    flip(site.parts()[0], site.parts()[0].stat().st_size - WINDOW - BLOCK // 2)
    site.attempt(job)
    site.assert_exact()


def test_damage_before_the_last_block_is_found_and_nothing_is_published(site: Site) -> None:
    job = interrupted(site, SIZE - 4 * MIB)
    size = site.parts()[0].stat().st_size
    assert size - WINDOW > BLOCK, "the damage must lie before the block that is compared"
    flip(site.parts()[0], 5)
    with pytest.raises(ChecksumMismatch):
        site.attempt(job)
    assert not site.final.exists()


def test_a_cancel_stops_a_resumed_transfer_too(site: Site) -> None:
    job = interrupted(site)
    control = Control()
    control.stop(Cancelled("enough"))
    with pytest.raises(Cancelled):
        site.attempt(job, control)
    assert not site.final.exists()


def test_a_local_part_is_gone_on_with(site: Site) -> None:
    """The other direction: the destination is this host, the source breaks."""
    far = site.final.parent / "far"
    site.source.rename(far)
    job = site.ends.job("b:far", "a:in")

    class Breaks(Control):
        def advance(self, count: int) -> None:
            super().advance(count)
            if self.bytes_done > WINDOW + 12 * MIB:
                raise ConnectionLost("as if")

    with pytest.raises(DataManagerError):
        site.attempt(job, Breaks())
    control = Control()
    seen: list[int] = []
    control.advance = lambda count: seen.append(count)  # type: ignore[method-assign]
    site.attempt(dataclasses.replace(job, epoch=2), control)
    assert 0 < sum(seen) <= SIZE - 11 * MIB
    assert far.read_bytes() == site.source.read_bytes()


def flip(file: Path, at: int) -> None:
    """Change one bit."""
    with file.open("r+b") as part:
        part.seek(at)
        byte = part.read(1)[0]
        part.seek(at)
        part.write(bytes([byte ^ 1]))
