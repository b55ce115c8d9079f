"""`fetch: remote`: what is refused: addresses, certificates, bad answers; nothing of it is left behind."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from datamanager.engine.control import Control
from datamanager.engine.fetching.machine_curl import on_machine
from datamanager.errors import (
    Cancelled,
    ChecksumMismatch,
    ConnectionLost,
    DataManagerError,
    DownloadFailed,
    SizeMismatch,
    TooLarge,
    TransportTimeout,
    UrlNotAllowed,
)
from datamanager.sources.network.egress_guard import EgressGuard
from tests.support.authority import Authority
from tests.support.downloads import BODY, LOOPBACK, check_download, chunked, open_download
from tests.support.odd_http import OddServer, Step, answer, ok, redirect
from tests.support.process import signal_each
from tests.support.remote_machine import MIB, TIMEOUT, Machine, in_the_middle, waited
from tests.support.sshd import PrivateSshd
from tests.support.web import Web

pytestmark = pytest.mark.server

SECRET = "hunter2-s3cret"
ETAG = 'ETag: "one"'


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
