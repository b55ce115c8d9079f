"""`fetch: remote`: a machine's own curl brings the right bytes, and sends what the mover would send."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datamanager.engine.fetching.machine_curl import on_machine
from datamanager.engine.throttle import Throttle
from datamanager.errors import (
    DownloadFailed,
    InvalidRequest,
    NotSupported,
)
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.terms.source_validators import ask
from tests.support.authority import Authority
from tests.support.downloads import BODY, LOOPBACK, chunked, open_download
from tests.support.ends import Ends
from tests.support.odd_http import OddServer, Step, answer, ok, redirect
from tests.support.process import all_pids
from tests.support.remote_machine import MIB, Machine, waited
from tests.support.sshd import PrivateSshd
from tests.support.web import PASSWORD, USER, Web

pytestmark = pytest.mark.server

SECRET = "hunter2-s3cret"
ETAG = 'ETag: "one"'
NAMES = ["file", "quo'te\"s", "$(id)", "`id`;&", "new\nline", "-dash", " blanks ", "back\\slash", "ünï", "x" * 200]


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


def test_interim_answers_and_many_headers(machine: Machine, server: OddServer) -> None:
    interim = [b"HTTP/1.1 102 Processing\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nContent-Length: 7\r\n\r\n"]
    server.answers["/"] = [*interim, ok(b"abc", *(f"X-{number}: y" for number in range(500)))]
    assert machine.got(server.url("/")) == b"abc"


def test_what_is_stored_encoded_is_what_it_is(machine: Machine, server: OddServer) -> None:
    stored = gzip.compress(BODY, 1, mtime=0)
    server.answers["/"] = [ok(stored, "Content-Encoding: gzip")]
    assert machine.got(server.url("/"), raw=True) == stored


@pytest.mark.parametrize("path", ["/%7Ea/b%2fc%2Fd", "/a%2f?x=%7e&y=~"])
def test_a_path_is_sent_as_it_was_given(machine: Machine, server: OddServer, path: str) -> None:
    server.answers[path] = [ok(b"abc")]
    assert machine.got(server.url(path)) == b"abc"


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


@pytest.mark.attack(cwe=214, title="A user of a machine looks at command lines and environments")
def test_secrets_are_on_no_command_line_in_no_environment_and_in_no_file(machine: Machine, server: OddServer) -> None:
    half = os.urandom(65_536)
    server.answers[f"/?q={SECRET}"] = [answer("200 OK", "Content-Length: 131072"), half, 2.0, half]
    told: list[bytes] = []

    def look() -> None:
        waited(machine.running)
        waited(machine.part_size)
        for pid in [*machine.server.descendants(), *all_pids()]:
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
