"""`fetch: remote`: a real machine's own curl brings the bytes; what is sent, refused, gone on with and left behind."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from datamanager.domain.states import TransferKind, Verified
from datamanager.engine.attempt import Attempt, Intent, Restart
from datamanager.engine.control import Control
from datamanager.engine.fetching import replica_fetch
from datamanager.engine.fetching.machine_curl import on_machine
from datamanager.engine.fetching.remote_download import fetch
from datamanager.engine.fetching.replica_fetch import TAIL, ExpectedBytes, FetchContext
from datamanager.engine.single.probe import probe
from datamanager.engine.single.publish import publish
from datamanager.engine.single.transfer import discard
from datamanager.engine.single.verify import verify
from datamanager.engine.throttle import Throttle
from datamanager.errors import (
    Cancelled,
    ChecksumMismatch,
    ConnectionLost,
    DataManagerError,
    DownloadFailed,
    InvalidRequest,
    NotSupported,
    Paused,
    SizeMismatch,
    SourceChanged,
    TooLarge,
    TransportTimeout,
    UrlNotAllowed,
)
from datamanager.sources.download_terms import DownloadSources
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.terms.source_validators import ask
from tests.support.authority import Authority
from tests.support.downloads import BODY, LOOPBACK, check_download, chunked, open_download
from tests.support.ends import Ends
from tests.support.odd_http import OddServer, Step, answer, ok, redirect
from tests.support.process import command_line, signal_each
from tests.support.source_servers import CutProxy
from tests.support.sshd import PrivateSshd
from tests.support.web import PASSWORD, USER, Web

pytestmark = pytest.mark.server

MIB = 2**20
SECRET = "hunter2-s3cret"
ETAG = 'ETag: "one"'
TIMEOUT = 60.0
NAMES = ["file", "quo'te\"s", "$(id)", "`id`;&", "new\nline", "-dash", " blanks ", "back\\slash", "ünï", "x" * 200]


class Machine:
    """A machine that fetches itself; attempts of one transfer share its checkpoints, as in the flow."""

    def __init__(self, server: PrivateSshd, folder: Path, name: str = "file", **keys: object) -> None:
        self.server = server
        self.folder = folder / "m"
        self.folder.mkdir()
        self.ends = Ends({"m": server.machine("m", self.folder, **keys)}, folder / "run")
        self.job = Attempt(uuid4(), 1, TransferKind.GETEXTERNAL, None, self.ends.end("m", name))
        self.marker: Restart | None = None
        self.begun = 0
        """Bytes that the last attempt went on from."""
        self.control = Control()

    def remember(self, marker: Restart) -> None:
        self.marker = marker

    def opened(
        self, url: str, guard: EgressGuard = LOOPBACK, *, protocol: str = "http", **options: Any
    ) -> DownloadSources:
        terms: dict[str, Any] = {"connect_timeout": 30, "read_timeout": 30}
        run = on_machine(self.job.target)
        options = {"fetch": "remote", **options}
        return open_download(url, protocol, options, guard, max_size=2**30, run=run, insecure=True, **terms)

    def attempt(
        self, fetching: DownloadSources, *, size: int | None = None, limit: int = 2**30, again: bool = False
    ) -> bytes:
        """Fetch once, as another mover's attempt (or as a further try of this one); return the published bytes."""
        self.job = replace(self.job, epoch=self.job.epoch + (not again), restart=self.marker)
        found = probe(self.job, size=size)
        self.begun = self.marker.done if self.marker is not None else 0
        wanted = ExpectedBytes(fetching.terms.limit(limit), size, fetching.checksum())
        assert set(fetching.remote) == set(fetching.sources), "the machine reads all of it"
        moved = fetch(FetchContext(self.job, found, self.control, wanted, self.remember), fetching.remote)
        assert self.control.bytes_done == moved.size
        proof = verify(self.job, found, moved, self.control)
        assert proof.verified is Verified.SHA256
        publish(self.job, found, Intent(proof.size, proof.sha256, 1_600_000_000))
        got = Path(found.final).read_bytes()
        assert proof.sha256 == hashlib.sha256(got).hexdigest()
        assert os.listdir(self.folder) == [os.path.basename(found.final)], "no partial file is left"
        return got

    def got(self, url: str, guard: EgressGuard = LOOPBACK, **options: Any) -> bytes:
        return self.attempt(self.opened(url, guard, **options))

    def refused(self, error: type[DataManagerError], fetching: DownloadSources, **rules: Any) -> DataManagerError:
        """Fetch what must fail, clear up as the flow does, and see that nothing is left, running or stored."""
        with pytest.raises(error) as caught:
            self.attempt(fetching, **rules)
        self.require_nothing()
        return caught.value

    def require_nothing(self) -> None:
        assert not self.curls()
        discard(self.job, probe(replace(self.job, restart=None)))
        assert not os.listdir(self.folder)

    def curls(self, patience: float = TIMEOUT) -> list[str]:
        """Return the command lines of what a fetch starts, as far as it still runs after a while."""
        deadline = time.monotonic() + patience
        while left := [line for line in map(command_line, self.server.descendants()) if _is_ours(line)]:
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return left

    def running(self) -> list[int]:
        """Return the pids of the curls that run now."""
        return [pid for pid in self.server.descendants() if command_line(pid).startswith("curl ")]

    def part_size(self) -> int:
        sizes: list[int] = []
        for path in self.folder.glob(".*.dmpart"):
            with contextlib.suppress(FileNotFoundError):  # renamed or removed in this moment
                sizes.append(path.stat().st_size)
        return max(sizes, default=0)


def _is_ours(line: str) -> bool:
    return line.split(" ")[0] in ("curl", "head", "sh", "cmp", "tail", "cat")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateSshd]:
    with PrivateSshd(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture
def server() -> Iterator[OddServer]:
    with OddServer() as running:
        yield running


@pytest.fixture
def other() -> Iterator[OddServer]:
    with OddServer() as running:
        yield running


@pytest.fixture
def machine(sshd: PrivateSshd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    monkeypatch.setattr(replica_fetch, "CHECKPOINT_EVERY", 0.2)
    made = Machine(sshd, tmp_path, connection="paramiko")
    yield made
    made.ends.storages.close()
    assert not made.curls()


def waited(ready: Callable[[], object]) -> None:
    deadline = time.monotonic() + TIMEOUT
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- the right bytes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("connection", ["openssh", "paramiko"])
def test_the_machine_fetches(sshd: PrivateSshd, web: Web, tmp_path: Path, connection: str) -> None:
    made = Machine(sshd, tmp_path, connection=connection)
    assert made.got(web.put(f"{connection}.bin", BODY), checksum=f"sha256:{hashlib.sha256(BODY).hexdigest()}") == BODY
    said = [line.split('"')[-2] for line in web.access_log.read_text().splitlines() if f"/{connection}.bin" in line]
    assert said == ["data-manager"]
    assert not made.curls()
    made.ends.storages.close()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_never_interpreted(sshd: PrivateSshd, web: Web, tmp_path: Path, name: str) -> None:
    made = Machine(sshd, tmp_path, name, connection="paramiko")
    assert made.got(web.put("small", b"some bytes")) == b"some bytes"
    made.ends.storages.close()


@pytest.mark.parametrize("body", [b"", b"x", os.urandom(3 * MIB + 1), b"\0\r\n\ndm-end 5 0.1 0\n" * 9])
def test_any_bytes(machine: Machine, server: OddServer, body: bytes) -> None:
    server.answers["/"] = [ok(body)]
    server.answers["/chunked"] = [chunked(*(body[at : at + 70_000] for at in range(0, len(body), 70_000)))]
    assert machine.got(server.url("/")) == body
    (machine.folder / "file").unlink()
    assert machine.got(server.url("/chunked")) == body


def test_md5_and_a_file_of_checksums(machine: Machine, server: OddServer) -> None:
    server.answers["/a/file.bin"] = [ok(BODY)]
    sums = f"{hashlib.sha256(b'').hexdigest()}  else\n{hashlib.sha256(BODY).hexdigest()}  file.bin\n"
    server.answers["/SUMS"] = [ok(sums.encode())]
    assert machine.got(server.url("/a/file.bin"), checksum=f"md5:{hashlib.md5(BODY).hexdigest()}") == BODY
    (machine.folder / "file").unlink()
    assert machine.got(server.url("/a/file.bin"), checksum=server.url("/SUMS")) == BODY
    assert [head.split(" ")[1] for head in server.heads] == ["/a/file.bin", "/SUMS", "/a/file.bin"]


def test_what_the_source_says_is_asked_from_the_machine(machine: Machine, server: OddServer) -> None:
    server.answers["/"] = [ok(BODY, ETAG, "Last-Modified: Tue, 15 Nov 1994 12:45:26 GMT"), 30.0]
    said = ask(machine.opened(server.url("/")).sources.popitem()[1])  # type: ignore[attr-defined]
    assert (said.etag, said.last_modified, said.size) == ('"one"', "Tue, 15 Nov 1994 12:45:26 GMT", len(BODY))
    assert not machine.curls()


def test_nothing_but_the_machine_reaches_the_source(sshd: PrivateSshd, tmp_path: Path, server: OddServer) -> None:
    """What asks is a child of the machine's SSH server."""
    made = Machine(sshd, tmp_path, connection="paramiko")
    seen: list[int] = []

    def steps() -> Iterator[Step]:
        yield answer("200 OK", "Content-Length: 3")
        seen.extend(made.running())  # while it waits for the rest
        yield b"abc"

    server.answers["/"] = steps()
    assert made.got(server.url("/")) == b"abc"
    assert len(seen) == 1
    assert server.connections == 1
    made.ends.storages.close()


# --- what is sent, to whom -------------------------------------------------------------------------------------------

QUOTED = f'üser:a"b\\c{SECRET}'
LOGINS: dict[str, tuple[dict[str, Any], str]] = {
    "basic": (
        {"username": "üser", "password": QUOTED.removeprefix("üser:")},
        f"Authorization: Basic {base64.b64encode(QUOTED.encode()).decode()}",
    ),
    "token": ({"token": SECRET}, f"Authorization: Bearer {SECRET}"),
    "headers": (
        {"headers": {"X-Api-Key": f'a "b" \\n @{SECRET}', "Accept": "text/csv", "X-Empty": ""}},
        f'X-Api-Key: a "b" \\n @{SECRET}\r\nAccept: text/csv\r\nX-Empty:',
    ),
}


@pytest.mark.parametrize("login", LOGINS)
def test_logins_go_to_their_origin_only(machine: Machine, server: OddServer, other: OddServer, login: str) -> None:
    options, line = LOGINS[login]
    server.answers["/"] = [redirect("/here")]
    server.answers["/here"] = [redirect(other.url("/there"))]
    other.answers["/there"] = [redirect(server.url("/back"))]
    server.answers["/back"] = [ok(b"abc")]
    assert machine.got(server.url("/"), **options) == b"abc"
    lines = [
        set(line.split("\r\n")) <= set(head.replace("X-Empty: ", "X-Empty:").split("\r\n")) for head in server.heads
    ]
    assert lines == [True, True, True]
    assert [SECRET in head or "X-Empty" in head for head in other.heads] == [False]


def test_the_same_is_sent_as_by_the_mover(machine: Machine, server: OddServer) -> None:
    server.answers["/a%20b?x=1&key=a%26b"] = [ok(b"abc")]
    options: dict[str, Any] = {"query": {"key": "a&b"}, "headers": {"X-A": "b"}}
    url = server.url("/a b?x=1#part")
    assert machine.got(url, **options) == b"abc"
    (source,) = open_download(url, "http", options, LOOPBACK, max_size=9).sources.values()
    with source.open() as download:
        assert b"".join(bytes(block) for block in download.blocks()) == b"abc"
    machines, movers = (sorted(head.strip().split("\r\n")) for head in server.heads)
    assert machines == movers


def test_private_files_of_nginx(machine: Machine, web: Web) -> None:
    url = web.put("private/p.bin", BODY)
    machine.refused(DownloadFailed, machine.opened(url, username=USER, password="wrong"))
    assert machine.got(url, username=USER, password=PASSWORD) == BODY


def test_secrets_are_on_no_command_line_in_no_environment_and_in_no_file(machine: Machine, server: OddServer) -> None:
    half = os.urandom(65_536)
    server.answers[f"/?q={SECRET}"] = [answer("200 OK", "Content-Length: 131072"), half, 2.0, half]
    told: list[bytes] = []

    def look() -> None:
        waited(machine.running)
        waited(machine.part_size)
        for pid in [*machine.server.descendants(), *map(int, filter(str.isdecimal, os.listdir("/proc")))]:
            for name in ("cmdline", "environ"):
                with contextlib.suppress(OSError):
                    told.append(Path(f"/proc/{pid}/{name}").read_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    assert machine.got(server.url("/"), token=SECRET, query={"q": SECRET}) == half * 2
    thread.join()
    assert any(b"--config" in text for text in told), "curl was seen"
    assert not [text for text in told if SECRET.encode() in text]
    for folder in (machine.folder.parent, machine.server.directory):
        for path in folder.rglob("*"):
            assert not path.is_file() or SECRET.encode() not in path.read_bytes()


# --- where it may go -------------------------------------------------------------------------------------------------


def test_a_redirect_to_where_downloads_may_not_go(machine: Machine, server: OddServer, other: OddServer) -> None:
    server.answers["/"] = [redirect(other.url("/"))]
    other.answers["/"] = [ok(b"secret")]
    machine.refused(UrlNotAllowed, machine.opened(server.url("/"), EgressGuard([f"127.0.0.1:{server.port}"])))
    assert other.connections == 0


def test_the_url_itself_is_checked(machine: Machine, server: OddServer) -> None:
    with pytest.raises(UrlNotAllowed):
        check_download(server.url("/"), "http", {"fetch": "remote"}, EgressGuard())
    fetching = machine.opened(server.url("/"), EgressGuard())
    machine.refused(UrlNotAllowed, fetching)
    assert server.connections == 0


def test_https_never_becomes_http(machine: Machine, server: OddServer, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with OddServer(tls=authority.server_context("127.0.0.1")) as secure:
        secure.answers["/"] = [redirect(server.url("/"))]
        machine.refused(UrlNotAllowed, machine.opened(secure.url("/"), ca=authority.ca_file.read_text()))
    assert server.connections == 0


def test_redirects_end(machine: Machine, server: OddServer) -> None:
    server.answers["/"] = [redirect("/b")]
    server.answers["/b"] = [redirect("/")]
    server.answers["/no"] = [answer("302 Found", "Content-Length: 0")]
    server.answers |= {f"/{number}": [redirect(f"/{number + 1}")] for number in range(20)}
    for path in ("/", "/0", "/no"):
        machine.refused(DownloadFailed, machine.opened(server.url(path)))


def test_a_redirects_body_is_not_stored(machine: Machine, server: OddServer) -> None:
    page = b"<html>elsewhere</html>" * 9000
    server.answers["/"] = [answer("302 Found", "Location: /x", f"Content-Length: {len(page)}", body=page)]
    server.answers["/x"] = [b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n", ok(b"abc")]
    assert machine.got(server.url("/")) == b"abc"


def test_the_checked_address_is_asked(machine: Machine) -> None:
    """The machine would find no address for the name, or another one."""
    with OddServer("127.0.0.3") as server:
        server.answers["/"] = [ok(b"abc")]
        asked: list[str] = []

        def resolve(host: str, port: int) -> list[str]:
            asked.append(host)
            return ["127.0.0.3"]

        guard = EgressGuard(["127.0.0.0/8"], resolve=resolve)
        for name in ("localhost", "nowhere.invalid"):
            assert machine.got(server.url("/", name), guard) == b"abc"
            (machine.folder / "file").unlink()
        assert asked == ["localhost", "nowhere.invalid"], "each is resolved once"
        assert f"Host: nowhere.invalid:{server.port}\r\n" in server.heads[1]


def test_the_next_address_is_tried_when_there_is_no_connection(machine: Machine, server: OddServer) -> None:
    server.answers["/"] = [ok(b"abc")]
    guard = EgressGuard(["127.0.0.0/8"], resolve=lambda _, __: ["127.0.0.9", "127.0.0.1"])
    assert machine.got(server.url("/", "name.example"), guard) == b"abc"
    failing = EgressGuard(["127.0.0.0/8"], resolve=lambda _, __: ["127.0.0.9", "127.0.0.8"])
    (machine.folder / "file").unlink()
    machine.refused(ConnectionLost, machine.opened(server.url("/", "name.example"), failing))


# --- TLS -------------------------------------------------------------------------------------------------------------


def test_tls_is_verified(machine: Machine, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with OddServer(tls=authority.server_context("data.example")) as secure:
        secure.answers["/"] = [ok(BODY)]
        guard = EgressGuard(["data.example", "other.example"], resolve=lambda _, __: ["127.0.0.1"])
        url, ca = secure.url("/", "data.example"), authority.ca_file.read_text()
        error = machine.refused(DownloadFailed, machine.opened(url, guard))
        assert "no trusted TLS connection" in error.detail
        machine.refused(DownloadFailed, machine.opened(secure.url("/", "other.example"), guard, ca=ca))
        assert not secure.heads
        assert machine.got(url, guard, ca=f"# ours\n{ca}\nnoise") == BODY
        (machine.folder / "file").unlink()
        assert machine.got(url, guard, verify_tls=False) == BODY


def test_the_machines_own_authorities_count(web: Web, tmp_path: Path) -> None:
    bundle = f'SetEnv "CURL_CA_BUNDLE={web.certificate}" "HOME={tmp_path}" "PATH={os.environ["PATH"]}"'
    web.put("t.bin", BODY)
    with PrivateSshd(tmp_path / "sshd", extra=[bundle]) as sshd:
        made = Machine(sshd, tmp_path, connection="paramiko")
        assert made.got(f"{web.tls_url}/t.bin") == BODY
        made.ends.storages.close()


def test_the_file_of_authorities_goes(web: Web, tmp_path: Path) -> None:
    """Also after a cancel; while curl works it is readable by the login alone."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    web.put("slow/ca.bin", BODY)
    variables = f'SetEnv "TMPDIR={folder}" "HOME={tmp_path}" "PATH={os.environ["PATH"]}"'
    with PrivateSshd(tmp_path / "sshd", extra=[variables]) as sshd:
        made = Machine(sshd, tmp_path, connection="paramiko")
        modes: list[int] = []

        def look() -> None:
            modes.extend(path.stat().st_mode & 0o777 for path in folder.iterdir())

        for stopped, act in ((True, lambda: made.control.stop(Cancelled("enough"))), (False, look)):
            thread = in_the_middle(made, act)
            fetching = made.opened(f"{web.tls_url}/slow/ca.bin", ca=web.certificate.read_text())
            if stopped:
                made.refused(Cancelled, fetching)
            else:
                assert made.attempt(fetching) == BODY
            thread.join()
            made.control = Control()
            assert not os.listdir(folder)
        assert modes == [0o600]
        made.ends.storages.close()


# --- what is no good answer ------------------------------------------------------------------------------------------

BAD: dict[str, tuple[list[Step], type[DataManagerError], dict[str, Any]]] = {
    "not found": ([answer("404 Not Found", "Content-Length: 4", body=b"gone")], DownloadFailed, {}),
    "a server's error": ([answer("503 Busy", "Content-Length: 4", body=b"busy")], DownloadFailed, {}),
    "a short body": ([answer("200 OK", "Content-Length: 9", body=b"abc")], ConnectionLost, {}),
    "a short body in chunks": ([chunked(b"abc", end=b"")], ConnectionLost, {}),
    "an error page": ([ok(b"<html>", "Content-Type: text/html")], DownloadFailed, {"expect_type": "image/*"}),
    "unasked encoding": ([ok(b"abc", "Content-Encoding: gzip")], DownloadFailed, {}),
    "two lengths": ([answer("200 OK", "Content-Length: 3", "Content-Length: 4", body=b"abcd")], DownloadFailed, {}),
    "a part unasked": (
        [answer("206 Part", "Content-Length: 1", "Content-Range: bytes 0-0/9", body=b"a")],
        DownloadFailed,
        {},
    ),
    "a malformed head": ([b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nno colon\r\nX: y\r\n\r\nabc"], DownloadFailed, {}),
    "no HTTP": ([b"220 ready\r\n" * 99], DownloadFailed, {}),
    "nothing": ([b""], ConnectionLost, {}),
    "an endless head": ([b"HTTP/1.1 200 OK\r\n", b"X-A: " + b"y" * 2**22], DataManagerError, {}),
    "a wrong checksum": ([ok(b"abc")], ChecksumMismatch, {"checksum": f"sha256:{'0' * 64}"}),
    "a wrong md5": ([ok(b"abc")], ChecksumMismatch, {"checksum": f"md5:{'0' * 32}"}),
    "too large, announced": ([ok(b"abcd" * 99)], TooLarge, {"max_size": 395}),
    "too large, not announced": ([chunked(bytes(6 * MIB))], TooLarge, {"max_size": 5 * MIB}),
    "trailers": ([chunked(b"abc", end=b"0\r\nX-Trailer: 1\r\n\r\n")], DownloadFailed, {}),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_answers_leave_nothing(machine: Machine, server: OddServer, name: str) -> None:
    steps, error, options = BAD[name]
    server.answers["/"] = steps
    machine.refused(error, machine.opened(server.url("/"), **options))


def test_nothing_of_a_bad_body_is_ever_stored(machine: Machine, server: OddServer) -> None:
    server.answers["/"] = [answer("404 Not Found", "Content-Length: 999999", body=bytes(99_999)), 1.0]
    with pytest.raises(DownloadFailed):
        machine.got(server.url("/"))
    assert not os.listdir(machine.folder)


@pytest.mark.parametrize("size", [len(BODY) - 1, len(BODY) + 1])
def test_another_size_than_was_asked_for(machine: Machine, server: OddServer, size: int) -> None:
    server.answers["/"] = [ok(BODY)]
    server.answers["/chunked"] = [chunked(BODY)]
    for path in ("/", "/chunked"):
        machine.refused(SizeMismatch, machine.opened(server.url(path)), size=size)


def test_endless_bytes_are_cut_at_the_limit(machine: Machine, server: OddServer) -> None:
    server.answers["/"] = [answer("200 OK"), *[bytes(MIB)] * 64]
    with pytest.raises(TooLarge):
        machine.attempt(machine.opened(server.url("/")), limit=3 * MIB)
    assert machine.part_size() <= 3 * MIB + 1


def test_a_silent_and_a_dripping_source(machine: Machine, server: OddServer) -> None:
    dripping: list[Step] = [b"x", 0.2] * 200
    server.answers["/silent"] = [60.0]
    server.answers["/drip"] = [answer("200 OK", "Content-Length: 9999"), *dripping]
    for path in ("/silent", "/drip"):
        machine.refused(TransportTimeout, machine.opened(server.url(path), timeout=1))


def test_a_curl_that_hangs(machine: Machine, server: OddServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own limits of time are of no use then."""
    monkeypatch.setattr("datamanager.sources.http.remote_source.LATE", 0.5)
    monkeypatch.setattr("datamanager.transports.remote.curl._ENDING", 0.5)
    server.answers["/"] = [60.0]
    run, pids = on_machine(machine.job.target), list[int]()
    terms: dict[str, Any] = {"connect_timeout": 1, "max_size": 2**20, "run": run}
    fetching = open_download(server.url("/"), "http", {"fetch": "remote", "timeout": 1}, LOOPBACK, **terms)

    def stop() -> None:
        waited(lambda: server.heads)  # before that, a curl is asked for its version
        pids.extend(machine.running())
        signal_each(pids, signal.SIGSTOP)

    thread = threading.Thread(target=stop)
    thread.start()
    giving_up = threading.Timer(TIMEOUT, machine.control.stop, [Cancelled("nothing else ended it")])
    giving_up.start()
    try:
        with pytest.raises(TransportTimeout):
            machine.attempt(fetching)
    finally:
        giving_up.cancel()
        thread.join()
        signal_each(pids, signal.SIGCONT)
    assert pids
    machine.require_nothing()


def test_mirrors_are_tried_in_turn(machine: Machine, server: OddServer, other: OddServer) -> None:
    server.answers["/a"] = [answer("503 Busy", "Content-Length: 0")]
    other.answers["/a"] = [ok(BODY)]
    good = f"sha256:{hashlib.sha256(BODY).hexdigest()}"
    assert (
        machine.got(server.url("/a"), mirrors=[server.url("/b"), other.url("/a")], checksum=good, token=SECRET) == BODY
    )
    assert SECRET not in other.heads[0]


# --- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{"proxy": "http://127.0.0.1:3128"}, {"decompress": "gzip"}, {"extract": "tar"}],
)
def test_what_can_not_be_with_it_is_refused_by_name(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(InvalidRequest, match=rf"options\.{name}: cannot be combined with fetch: remote") as caught:
        open_download("https://data.example/a", "https", {"fetch": "remote", **options}, EgressGuard(), max_size=9)
    assert list(caught.value.fields) == [f"options.{name}"]


def test_a_client_certificate_is_refused(tmp_path: Path) -> None:
    pem = (Authority(tmp_path), (tmp_path / "ca.pem").read_text())[1]
    options = {"fetch": "remote", "client_cert": pem}
    with pytest.raises(InvalidRequest, match=r"options\.client_cert"):
        open_download("https://data.example/a", "https", options, EgressGuard(), max_size=9)


@pytest.mark.parametrize(
    ("url", "protocol"),
    [("ftp://h/a", "ftp"), ("s3://bucket/a", "s3"), ("sftp://h/a", "sftp"), ("webdavs://h/a", "webdavs")],
)
def test_other_protocols_have_no_such_option(url: str, protocol: str) -> None:
    with pytest.raises(NotSupported, match="option fetch is not supported by"):
        open_download(url, protocol, {"fetch": "remote"}, EgressGuard(), max_size=9)


def test_another_word_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"options\.fetch"):
        open_download("https://data.example/a", "https", {"fetch": "curl"}, EgressGuard(), max_size=9)


def test_on_the_movers_own_host_the_mover_fetches(tmp_path: Path) -> None:
    from datamanager.machines import Machine as Configured

    here = Configured.model_validate({"name": "m", "transport": "local", "base_dir": str(tmp_path)})
    end = Ends({"m": here}, tmp_path / "run").end("m", "file")
    assert on_machine(end) is None
    fetching = open_download("http://127.0.0.1/a", "http", {"fetch": "remote"}, LOOPBACK, max_size=9, run=None)
    assert not fetching.remote


def limited_programs(directory: Path, *names: str) -> str:
    """Return a PATH with only these programs."""
    programs = directory / "bin"
    programs.mkdir()
    for name in names:
        (programs / name).symlink_to(str(shutil.which(name)))
    return str(programs)


@pytest.mark.parametrize(
    ("programs", "why"),
    [
        (("sh", "head", "cat", "cmp", "openssl"), "no curl"),
        (("sh", "curl", "cat", "cmp", "openssl"), "head"),
        ((), "no shell"),
    ],
)
def test_a_machine_that_can_not(tmp_path: Path, server: OddServer, programs: tuple[str, ...], why: str) -> None:
    server.answers["/"] = [ok(b"abc")]
    with PrivateSshd(tmp_path / "sshd", path=limited_programs(tmp_path, *programs)) as sshd:
        made = Machine(sshd, tmp_path, connection="paramiko")
        with pytest.raises(NotSupported, match=rf"^m cannot download by itself .*{why}") as caught:
            made.got(server.url("/"))
        assert not caught.value.retryable
        assert not os.listdir(made.folder)
        assert server.connections == 0
        made.ends.storages.close()


def test_a_machine_for_files_only(tmp_path: Path, server: OddServer) -> None:
    with PrivateSshd(tmp_path / "sshd", extra=["ForceCommand internal-sftp"]) as sshd:
        made = Machine(sshd, tmp_path, connection="paramiko")
        with pytest.raises(NotSupported, match=r"^m cannot download by itself .*no shell"):
            made.got(server.url("/"))
        made.ends.storages.close()


def test_login_shells_that_talk(tmp_path: Path, server: OddServer) -> None:
    """What a login's start-up files print is not taken for an answer."""
    server.answers["/"] = [ok(BODY)]
    talk = tmp_path / "talk"
    talk.write_text("echo welcome; printf 'dm-ready\\nHTTP/1.1 200 OK\\n\\n'\n")
    shell = f'SetEnv "BASH_ENV={talk}" "HOME={tmp_path}" "PATH={os.environ["PATH"]}"'
    with PrivateSshd(tmp_path / "sshd", extra=[shell]) as sshd:
        made = Machine(sshd, tmp_path, connection="paramiko")
        with made.ends.storages.get("m").session() as session:
            assert session.programs.run(["true"]) == 0
        assert made.got(server.url("/")) == BODY
        made.ends.storages.close()


def test_a_bandwidth_limit_is_kept(machine: Machine, server: OddServer) -> None:
    """After a burst of some MiB, which is curl's."""
    server.answers["/"] = [ok(bytes(12 * MIB))]
    machine.control.throttle = Throttle([], 2 * MIB)
    began = time.monotonic()
    assert machine.got(server.url("/")) == bytes(12 * MIB)
    assert time.monotonic() - began > 1.5


# --- cancelled, cut, killed ------------------------------------------------------------------------------------------


def in_the_middle(machine: Machine, act: Callable[[], object], size: int = MIB) -> threading.Thread:
    """Start a thread that acts once so many bytes are stored."""

    def wait_and_act() -> None:
        waited(lambda: machine.part_size() > size)
        act()

    thread = threading.Thread(target=wait_and_act)
    thread.start()
    return thread


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
