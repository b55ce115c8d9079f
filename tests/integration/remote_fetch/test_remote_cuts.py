"""`fetch: remote`: what is cancelled, cut or killed ends on the machine, and is resumed with the right bytes."""

from __future__ import annotations

import random
import re
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from datamanager.engine.control import Control
from datamanager.engine.fetching import replica_fetch
from datamanager.engine.fetching.replica_fetch import TAIL
from datamanager.errors import (
    Cancelled,
    DataManagerError,
    DownloadFailed,
    Paused,
    SourceChanged,
)
from datamanager.sources.download_terms import DownloadSources
from tests.support.downloads import BODY
from tests.support.odd_http import OddServer, Step, answer, ok
from tests.support.process import command_line, signal_each
from tests.support.remote_machine import MIB, Machine, in_the_middle, waited
from tests.support.source_servers import CutProxy
from tests.support.sshd import PrivateSshd
from tests.support.web import Web

pytestmark = pytest.mark.server

ETAG = 'ETag: "one"'


def slow(body: bytes = BODY, *headers: str, pause: float = 0.02) -> list[Step]:
    """Answer with 64 KiB at a time."""
    steps: list[Step] = [answer("200 OK", f"Content-Length: {len(body)}", *headers)]
    for at in range(0, len(body), 65_536):
        steps += [body[at : at + 65_536], pause]
    return steps


@pytest.mark.parametrize("connection", ["openssh", "paramiko"])
@pytest.mark.parametrize("stage", ["waiting", "storing"])
def test_a_cancel_ends_curl(sshd: PrivateSshd, tmp_path: Path, server: OddServer, connection: str, stage: str) -> None:
    made = Machine(sshd, tmp_path, connection=connection)
    server.answers["/"] = [30.0] if stage == "waiting" else [*slow()[:40], 30.0]

    def stop() -> None:
        waited(made.running)
        waited(lambda: server.heads and (stage == "waiting" or made.part_size()))
        made.control.stop(Cancelled("enough"))

    thread = threading.Thread(target=stop)
    thread.start()
    with pytest.raises(Cancelled):
        made.got(server.url("/"))
    thread.join()
    assert not made.curls(), "it ended with the cancel, not with the source"
    made.control = Control()
    made.require_nothing()
    with made.ends.storages.get("m").session() as session:
        assert session.stat(str(made.folder)).mode
    made.ends.storages.close()


@pytest.mark.parametrize("connection", ["openssh", "paramiko"])
def test_the_leash_ends_curl_when_the_connection_goes(tmp_path: Path, server: OddServer, connection: str) -> None:
    server.answers["/"] = [*slow()[:60], 30.0]
    with PrivateSshd(tmp_path / "sshd") as sshd:
        made = Machine(sshd, tmp_path, connection=connection)
        pids: list[int] = []

        def cut() -> None:
            pids.extend(made.running())
            signal_each(sshd.children(), signal.SIGKILL)

        thread = in_the_middle(made, cut)
        with pytest.raises(DataManagerError) as lost:
            made.got(server.url("/"))
        thread.join()
        assert lost.value.retryable
        assert pids
        waited(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() and command_line(pid) for pid in pids))
        made.ends.storages.close()


class Parts:
    """Answers a GET with the whole, slowly, and one for a part with that; `ranges` are those asked for."""

    def __init__(self, server: OddServer, body: bytes = BODY, etag: str = ETAG) -> None:
        self.server = server
        self.body = body
        self.etag = etag
        self.ranges: list[int | None] = []

    def __iter__(self) -> Iterator[Step]:
        asked = re.search(r"^Range: bytes=(\d+)-\r$", self.server.heads[-1], re.MULTILINE)
        condition = re.search(r"^If-Range: (.*)\r$", self.server.heads[-1], re.MULTILINE)
        self.ranges.append(int(asked[1]) if asked else None)
        body, etag = self.body, self.etag
        if asked is None or condition is None or f"ETag: {condition[1]}" != etag:
            return iter(slow(body, etag, pause=0.01))
        first = int(asked[1])
        part = body[first:]
        line = f"Content-Range: bytes {first}-{len(body) - 1}/{len(body)}"
        steps = slow(part, pause=0.01)
        return iter([answer("206 Partial Content", f"Content-Length: {len(part)}", line, etag), *steps[1:]])


def paused_once(machine: Machine, server: OddServer, seed: int = 0) -> DownloadSources:
    """Stop a first attempt in the middle, as a pause does: it leaves a checkpoint and its partial file."""
    fetching = machine.opened(server.url("/"))
    control = machine.control
    size = random.Random(seed).randrange(MIB, 3 * MIB)
    thread = in_the_middle(machine, lambda: control.stop(Paused("later")), size)
    with pytest.raises(Paused):
        machine.attempt(fetching)
    thread.join()
    machine.control = Control()
    assert machine.marker is not None
    assert machine.marker.done > size
    assert not machine.curls()
    return fetching


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_it_goes_on_where_it_was(machine: Machine, server: OddServer, seed: int, again: bool) -> None:
    """In another attempt, and in another try of the same one; always in a file of its own."""
    server.answers["/"] = parts = Parts(server)
    fetching = paused_once(machine, server, seed)
    (old,) = machine.folder.iterdir()
    inode = old.stat().st_ino
    held = old.open("rb")  # its inode is not used again
    assert machine.attempt(fetching, again=again) == BODY
    assert (machine.folder / "file").stat().st_ino != inode
    held.close()
    assert parts.ranges == [None, machine.begun - TAIL]
    assert machine.begun > MIB


def test_nginx_goes_on(machine: Machine, web: Web) -> None:
    url = web.put("slow/part.bin", BODY)
    fetching = machine.opened(url)
    thread = in_the_middle(machine, lambda: machine.control.stop(Paused("later")), 2 * MIB)
    with pytest.raises(Paused):
        machine.attempt(fetching)
    thread.join()
    machine.control = Control()
    assert machine.attempt(fetching) == BODY
    sent = [int(line.split()[9]) for line in web.access_log.read_text().splitlines() if "/part.bin" in line]
    assert sent[1] == len(BODY) - machine.begun + TAIL
    assert machine.begun > 2 * MIB


def test_a_forgotten_curl_does_no_harm(machine: Machine, server: OddServer) -> None:
    """One of which nobody knows any more still has the old file open, and writes into it."""
    server.answers["/"] = parts = Parts(server)
    fetching = paused_once(machine, server)
    (old,) = machine.folder.iterdir()
    with old.open("ab", buffering=0) as forgotten:
        thread = in_the_middle(machine, lambda: forgotten.write(b"wrong" * 99_999), 4 * MIB)
        assert machine.attempt(fetching) == BODY
        thread.join()
        forgotten.write(b"wrong" * 99_999)
    assert parts.ranges == [None, machine.begun - TAIL], "it went on"
    assert (machine.folder / "file").read_bytes() == BODY


def test_a_cut_within_an_attempt_is_gone_on_with_at_once(machine: Machine, server: OddServer) -> None:
    server.answers["/"] = parts = Parts(server)
    with CutProxy(server.port, [5 * MIB // 2, 5 * MIB // 2]) as proxy:
        assert machine.got(f"http://127.0.0.1:{proxy.port}/") == BODY
        assert proxy.cuts == 2
    assert len(parts.ranges) == 3
    assert parts.ranges[0] is None
    assert None not in parts.ranges[1:]


def test_a_curl_that_is_killed_is_followed_by_another_one(machine: Machine, server: OddServer) -> None:
    server.answers["/"] = parts = Parts(server)

    def kill() -> None:
        signal_each(machine.running(), signal.SIGKILL)

    thread = in_the_middle(machine, kill, 2 * MIB)
    assert machine.got(server.url("/")) == BODY
    thread.join()
    assert len(parts.ranges) == 2


@pytest.mark.parametrize("seed", range(4))
def test_cut_at_random_places(tmp_path: Path, server: OddServer, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Killed are curl, our connections to the machine, or the attempt; in the end the right bytes are published."""
    monkeypatch.setattr(replica_fetch, "CHECKPOINT_EVERY", 0.05)
    chance = random.Random(seed)
    server.answers["/"] = Parts(server)
    with PrivateSshd(tmp_path / "sshd") as sshd:
        made = Machine(sshd, tmp_path, connection=chance.choice(["openssh", "paramiko"]))
        fetching = made.opened(server.url("/"))

        def strike(after: int, ended: threading.Event) -> None:
            waited(lambda: made.part_size() > after or ended.is_set())
            blow = chance.choice(["curl", "connection", "attempt"])
            if blow == "attempt":
                made.control.stop(Paused("later"))
            signal_each({"curl": made.running, "connection": sshd.children}.get(blow, list)(), signal.SIGKILL)

        def attempt(ended: threading.Event) -> bytes | None:
            try:
                return made.attempt(fetching, again=chance.random() < 0.5)
            except DataManagerError as error:
                if not error.retryable and not isinstance(error, Paused):
                    raise
                assert not (made.folder / "file").exists()
                return None
            finally:
                ended.set()

        got = None
        for _ in range(4):
            ended = threading.Event()
            after = made.part_size() + chance.randrange(MIB)
            thread = threading.Thread(target=strike, args=(after, ended))
            thread.start()
            got = attempt(ended)
            thread.join()
            made.control = Control()
            if got is not None:
                break
        got = got or made.attempt(fetching)
        assert got == BODY
        made.ends.storages.close()


CHANGES: dict[str, Callable[[Parts], None]] = {
    "another version": lambda parts: parts.__dict__.update(body=BODY[::-1], etag='ETag: "two"'),
    "other bytes as the same version": lambda parts: parts.__dict__.update(body=BODY[::-1]),
    "a shorter one as the same version": lambda parts: parts.__dict__.update(body=BODY[: 4 * MIB]),
    "no version any more": lambda parts: parts.__dict__.update(etag="X-No: etag"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_never_a_mix(machine: Machine, server: OddServer, change: str) -> None:
    server.answers["/"] = parts = Parts(server)
    fetching = paused_once(machine, server)
    CHANGES[change](parts)
    assert machine.attempt(fetching) == parts.body
    assert parts.ranges[-1] is None, "it began anew"


def test_the_whole_where_a_part_was_asked_for(machine: Machine, server: OddServer) -> None:
    server.answers["/"] = Parts(server)
    fetching = paused_once(machine, server)
    server.answers["/"] = slow(BODY, ETAG, pause=0)
    assert machine.attempt(fetching) == BODY


def test_what_changes_all_the_time_ends(machine: Machine, server: OddServer) -> None:
    server.answers["/"] = Parts(server)
    fetching = paused_once(machine, server)
    wrong = answer("206 Part", "Content-Length: 1", "Content-Range: bytes 0-0/1", 'ETag: "3"', body=b"x")
    server.answers["/"] = [wrong]
    with pytest.raises((SourceChanged, DownloadFailed)):
        machine.attempt(fetching)
    assert not (machine.folder / "file").exists()


def test_a_file_in_the_way_is_not_written(machine: Machine, server: OddServer) -> None:
    """What has the partial file's name when curl's bytes come is somebody else's."""
    elsewhere = machine.folder.parent / "elsewhere"
    elsewhere.write_bytes(b"mine")
    server.answers["/"] = [0.5, ok(b"abc")]
    job = replace(machine.job, epoch=2)

    def link() -> None:
        waited(lambda: server.heads)
        (machine.folder / job.part_name).symlink_to(elsewhere)

    thread = threading.Thread(target=link)
    thread.start()
    with pytest.raises(DataManagerError):
        machine.got(server.url("/"))
    thread.join()
    assert elsewhere.read_bytes() == b"mine"
