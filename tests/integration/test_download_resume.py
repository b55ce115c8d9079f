"""Going on with a download after a cut or a kill, and servers that lie about it: never a published mix."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from datamanager.engine.attempt import Attempt, Restart
from datamanager.engine.fetching import download as downloading
from datamanager.engine.fetching import replica_fetch
from datamanager.engine.single.probe import probe
from datamanager.engine.single.restart import parts_of
from datamanager.errors import ConnectionLost, DownloadFailed, SizeMismatch, SourceChanged, TransportTimeout
from datamanager.sources.download_terms import DownloadSources
from datamanager.transports.port import Session
from tests.support.downloads import LOOPBACK, open_download
from tests.support.fetcher import Fetcher
from tests.support.odd_http import OddServer, Step, answer
from tests.support.process import signal_each
from tests.support.site import eventually
from tests.support.sshd import PrivateSshd
from tests.support.web import Web

MIB = 2**20
BODY = random.Random(7).randbytes(8 * MIB + 5)
OTHER = random.Random(8).randbytes(len(BODY))
HALF = 4 * MIB
ETAG = 'ETag: "one"'


class Turns(Iterable[Step]):
    """Answers in turn, the last one for ever; each is made of the request's head."""

    def __init__(self, server: OddServer, *answers: Callable[[str], list[Step]]) -> None:
        self._server = server
        self._answers = list(answers)
        self.ranges: list[str | None] = []

    def __iter__(self) -> Iterator[Step]:
        head = self._server.heads[-1]
        asked = re.search(r"^Range: (.*)\r$", head, re.MULTILINE)
        self.ranges.append(asked[1] if asked else None)
        chosen = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return iter(chosen(head))


def whole(body: bytes = BODY, *headers: str, sent: int | None = None) -> Callable[[str], list[Step]]:
    """Answer with all, or break off after `sent` bytes."""

    def make(_: str) -> list[Step]:
        return [answer("200 OK", f"Content-Length: {len(body)}", "Accept-Ranges: bytes", *headers, body=body[:sent])]

    return make


def part(
    body: bytes = BODY,
    *headers: str,
    says: str = "bytes {first}-{last}/{size}",
    sent: int | None = None,
    shift: int = 0,
) -> Callable[[str], list[Step]]:
    """Answer with the part that was asked for, `shift` bytes beside it, saying so as `says`."""

    def make(head: str) -> list[Step]:
        asked = re.search(r"^Range: bytes=(\d+)-\r$", head, re.MULTILINE)
        assert asked, head
        first = int(asked[1]) + shift
        content = body[first:]
        line = says.format(first=first, last=len(body) - 1, size=len(body))
        length = f"Content-Length: {len(content)}"
        return [answer("206 Partial Content", length, f"Content-Range: {line}", *headers, body=content[:sent])]

    return make


@pytest.fixture
def fetcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fetcher]:
    monkeypatch.setattr(replica_fetch, "CHECKPOINT_EVERY", 0.0)
    monkeypatch.setattr(replica_fetch, "RECONNECT_FROM", 2**40)  # each cut ends the attempt, as a kill does
    made = Fetcher(tmp_path)
    yield made
    made.ends.storages.close()


def opened(url: str) -> DownloadSources:
    return open_download(url, "http", {}, LOOPBACK, max_size=2**30, connect_timeout=30, read_timeout=30)


def cut_once(
    server: OddServer, fetcher: Fetcher, *then: Callable[[str], list[Step]], etag: str = ETAG
) -> DownloadSources:
    """Let the first attempt break in the middle; `then` are the server's next answers."""
    server.answers["/"] = turns = Turns(server, whole(BODY, etag, sent=HALF + 999), *then)
    fetching = opened(server.url("/"))
    with pytest.raises(ConnectionLost):
        fetcher.attempt(fetching)
    assert fetcher.marker is None or fetcher.marker.done <= HALF + 999
    assert turns.ranges == [None]
    return fetching


def ranges(server: OddServer) -> list[str | None]:
    turns = server.answers["/"]
    assert isinstance(turns, Turns)
    return turns.ranges[1:]


def test_it_goes_on_where_it_was(server: OddServer, fetcher: Fetcher) -> None:
    fetching = cut_once(server, fetcher, part(BODY, ETAG))
    assert fetcher.attempt(fetching) == BODY
    assert ranges(server) == [f"bytes={HALF - replica_fetch.TAIL}-"], "the last block before the cut is sent again"
    assert 'If-Range: "one"\r\n' in server.heads[-1]


def test_an_attempt_that_removes_its_part_late_leaves_the_next_one_alone(
    server: OddServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetching = cut_once(server, fetcher, whole(BODY, ETAG))

    def look_before_they_go(job: Attempt, directory: str, session: Session) -> list[tuple[int, str]]:
        found = parts_of(job, directory, session)
        for part in fetcher.folder.glob(".*.dmpart"):
            part.unlink()
        assert found
        return found

    monkeypatch.setattr(downloading, "parts_of", look_before_they_go)
    assert fetcher.attempt(fetching) == BODY
    assert ranges(server) == [None], "nothing was left to resume"


def test_a_cut_within_an_attempt_is_gone_on_with_at_once(
    server: OddServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_fetch, "RECONNECT_FROM", MIB)
    server.answers["/"] = Turns(server, whole(BODY, ETAG, sent=HALF), part(BODY, ETAG, sent=3 * MIB), part(BODY, ETAG))
    assert fetcher.attempt(opened(server.url("/"))) == BODY
    assert ranges(server) == [f"bytes={HALF - MIB}-", f"bytes={HALF + 2 * MIB - MIB}-"]


LIES: dict[str, list[Callable[[str], list[Step]]]] = {
    "the whole, of the same version": [whole(BODY, ETAG)],
    "another version, whole": [whole(OTHER, 'ETag: "two"')],
    "another version as a part": [part(OTHER, 'ETag: "two"'), whole(OTHER, 'ETag: "two"')],
    "a part without its version": [part(OTHER), whole(OTHER, 'ETag: "two"')],
    "other bytes as the same version": [part(OTHER, ETAG), whole(OTHER, ETAG)],
    "another place": [part(BODY, ETAG, shift=7), whole(BODY, ETAG)],
    "another place, said to be the right one": [
        part(BODY, ETAG, shift=7, says=f"bytes {HALF - MIB}-{len(BODY) - 1}/{len(BODY)}"),
        whole(BODY, ETAG),
    ],
    "another total": [part(BODY, ETAG, says="bytes {first}-{last}/99999999"), whole(BODY, ETAG)],
    "an unknown total": [part(BODY, ETAG, says="bytes {first}-{last}/*"), whole(BODY, ETAG)],
    "no Content-Range": [part(BODY, ETAG, says=""), whole(BODY, ETAG)],
    "no bytes": [part(BODY, ETAG, says="pages {first}-{last}/{size}"), whole(BODY, ETAG)],
    "nothing there any more": [
        lambda _: [answer("416 Range Not Satisfiable", "Content-Length: 0", "Content-Range: bytes */5")],
        whole(OTHER[:5], 'ETag: "two"'),
    ],
}


@pytest.mark.parametrize("lie", LIES)
def test_never_a_mix(server: OddServer, fetcher: Fetcher, lie: str) -> None:
    fetching = cut_once(server, fetcher, *LIES[lie])
    got = fetcher.attempt(fetching)
    assert got in (BODY, OTHER, OTHER[:5])
    assert ranges(server)[-1] is None, "it began anew"
    assert [path.name for path in fetcher.folder.iterdir()] == ["file"]


@pytest.mark.parametrize("etag", ['ETag: W/"one"', "X-No: etag", "ETag: one"])
def test_without_a_strong_version_it_begins_anew(server: OddServer, fetcher: Fetcher, etag: str) -> None:
    fetching = cut_once(server, fetcher, whole(OTHER, etag), etag=etag)
    assert fetcher.marker is None
    assert fetcher.attempt(fetching) == OTHER
    assert ranges(server) == [None]


@pytest.mark.parametrize(
    ("date", "strong"),
    [("Tue, 15 Nov 1994 12:45:26 GMT", True), ("Tue, 15 Nov 1994 12:46:20 GMT", False), ("nonsense", False)],
)
def test_a_modification_time_is_strong_when_it_is_a_minute_old(
    server: OddServer, fetcher: Fetcher, date: str, strong: bool
) -> None:
    headers = ("Last-Modified: " + date, "Date: Tue, 15 Nov 1994 12:46:26 GMT")
    server.answers["/"] = Turns(
        server, whole(BODY, *headers, sent=HALF), part(BODY, *headers) if strong else whole(BODY, *headers)
    )
    with pytest.raises(ConnectionLost):
        fetcher.attempt(opened(server.url("/")))
    assert fetcher.attempt(opened(server.url("/"))) == BODY
    assert (f"If-Range: {date}\r\n" in server.heads[-1]) is strong


def test_what_changes_all_the_time_ends(server: OddServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins anew once in an attempt; a source that then is another one again is given up."""
    fetching = cut_once(
        server,
        fetcher,
        whole(OTHER, 'ETag: "two"'),
        whole(OTHER, 'ETag: "three"', sent=HALF),
        part(OTHER, 'ETag: "four"'),
        whole(OTHER, 'ETag: "five"'),
    )
    monkeypatch.setattr(replica_fetch, "RECONNECT_FROM", MIB)
    fetcher.refused(SourceChanged, fetching)
    assert len(ranges(server)) == 3, "two, three and four were asked for, five was not"


def test_a_part_that_ends_early_is_no_end(server: OddServer, fetcher: Fetcher) -> None:
    fetching = cut_once(server, fetcher, part(BODY, ETAG, sent=2 * MIB), part(BODY, ETAG, sent=MIB + 5))
    for _ in range(2):
        with pytest.raises(ConnectionLost):
            fetcher.attempt(fetching)
    assert not (fetcher.folder / "file").exists()


def test_a_part_nobody_asked_for(server: OddServer, fetcher: Fetcher) -> None:
    body = answer("206 Partial Content", "Content-Length: 3", "Content-Range: bytes 0-2/3", ETAG, body=b"abc")
    server.answers["/"] = [body]
    with pytest.raises(DownloadFailed, match="206"):
        fetcher.attempt(opened(server.url("/")))


def test_a_whole_that_says_it_is_a_part(server: OddServer, fetcher: Fetcher) -> None:
    server.answers["/"] = [answer("200 OK", "Content-Length: 3", "Content-Range: bytes 0-2/9", ETAG, body=b"abc")]
    fetcher.refused(DownloadFailed, opened(server.url("/")))


def test_more_than_the_part(server: OddServer, fetcher: Fetcher) -> None:
    def more(head: str) -> list[Step]:
        return [*part(BODY, ETAG)(head), b"x"]

    fetching = cut_once(server, fetcher, more)
    with pytest.raises(SizeMismatch):
        fetcher.attempt(fetching)


# --- kill -9 ---------------------------------------------------------------------------------------------------------


def _download_until_killed(folder: Path, url: str, notes: Path) -> None:
    replica_fetch.CHECKPOINT_EVERY = 0.05
    fetcher = Fetcher(folder)

    def remember(marker: Restart) -> None:
        there = notes.with_suffix(".new")
        there.write_text(json.dumps(asdict(marker)))
        there.replace(notes)

    fetcher.remember = remember  # type: ignore[method-assign]
    fetcher.attempt(opened(url))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.server
def test_after_kill_9_it_goes_on(tmp_path: Path, seed: int) -> None:
    """The process that downloads is killed at a random moment; the next one goes on with what is proved."""
    notes = tmp_path / "notes.json"
    with Web(tmp_path / "web") as web:
        web.put("slow/body.bin", BODY)
        url = f"{web.url}/slow/body.bin"
        child = multiprocessing.get_context("spawn").Process(target=_download_until_killed, args=(tmp_path, url, notes))
        child.start()
        deadline = time.monotonic() + 60
        while not notes.exists() or json.loads(notes.read_text())["done"] < MIB:
            assert child.is_alive()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(random.Random(seed).random() / 5)
        assert child.pid
        os.kill(child.pid, signal.SIGKILL)
        child.join(60)
        (tmp_path / "m").rename(tmp_path / "kept")
        fetcher = Fetcher(tmp_path)
        (tmp_path / "m").rmdir()
        (tmp_path / "kept").rename(tmp_path / "m")
        left = next((tmp_path / "m").iterdir())
        marker = Restart(**json.loads(notes.read_text()))
        left.rename(left.with_name(left.name.replace(left.name.split(".")[-3], fetcher.job.part_name.split(".")[-3])))
        fetcher.remember(marker)
        try:
            assert fetcher.attempt(opened(url)) == BODY
        finally:
            fetcher.ends.storages.close()
        sent = [int(line.split()[9]) for line in web.access_log.read_text().splitlines()]
        assert fetcher.begun == marker.done >= MIB
        assert sent[-1] <= len(BODY) - marker.done + replica_fetch.TAIL, "what was stored is not sent again"


@pytest.mark.parametrize("connection", ["openssh", "paramiko"])
def test_what_a_server_does_late_leaves_the_next_try_alone(tmp_path: Path, web: Web, connection: str) -> None:
    with PrivateSshd(tmp_path / "sshd") as server:
        fetcher = Fetcher(tmp_path, server.machine("m", tmp_path / "m", connection=connection, stall_timeout=1))
        fetching, found = opened(web.put("late", BODY)), probe(fetcher.job)
        frozen = server.descendants()
        signal_each(frozen, signal.SIGSTOP)
        try:
            with pytest.raises(TransportTimeout):
                fetcher.transfer(found, fetching)
            moved = fetcher.transfer(found, fetching)
        finally:
            signal_each(frozen, signal.SIGCONT)
        eventually(lambda: not set(frozen) & set(server.descendants()), "it did what it was told, and has ended")
        assert fetcher.finish(found, moved) == BODY
        assert [file.name for file in fetcher.folder.iterdir()] == ["file"]
        fetcher.ends.storages.close()
