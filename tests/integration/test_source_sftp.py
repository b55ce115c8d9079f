"""sftp as a source: whom it trusts, who it says it is, and servers that lie."""

from __future__ import annotations

import base64
import os
import random
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paramiko.sftp import SFTP_FAILURE, SFTP_PERMISSION_DENIED

from datamanager.errors import (
    AuthenticationFailed,
    ConnectionLost,
    DataManagerError,
    DownloadFailed,
    HostKeyMismatch,
    InvalidRequest,
    NotSupported,
    PermissionDenied,
    SizeMismatch,
    SourceChanged,
    SourceMissing,
    TooLarge,
    TransportTimeout,
    UrlNotAllowed,
)
from datamanager.known_hosts import fingerprint
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.network.source_context import SourceContext
from datamanager.sources.registry import parse_source
from datamanager.sources.sftp.client import SftpSource, SftpTerms
from tests.support.downloads import check_download, open_source
from tests.support.odd_sftp import PASSWORD, USER, OddSftp, honest
from tests.support.sshd import PrivateSshd, make_key

BODY = random.Random(22).randbytes(5 * 2**20 + 3)
ALLOWED = EgressGuard(["127.0.0.0/8"])


@pytest.fixture
def odd() -> Iterator[OddSftp]:
    with OddSftp(BODY) as server:
        yield server


def options(odd: OddSftp, **others: Any) -> dict[str, Any]:
    return {"username": USER, "password": PASSWORD, "host_key": odd.host_key, **others}


def fetch(url: str, given: dict[str, Any], *, guard: EgressGuard = ALLOWED, read_timeout: float = 30.0) -> bytes:
    source = open_source(url, "sftp", given, guard, max_size=2**30, connect_timeout=10, read_timeout=read_timeout)
    with source.open() as download:
        return b"".join(bytes(block) for block in download.blocks())


def refused(error: type[DataManagerError], url: str, given: dict[str, Any], **terms: Any) -> str:
    with pytest.raises(error) as caught:
        fetch(url, given, **terms)
    assert type(caught.value) is error
    assert PASSWORD not in caught.value.detail
    return caught.value.detail


# --- whom it trusts, who it is ----------------------------------------------------------------------------------------


def test_login_by_password(odd: OddSftp) -> None:
    assert fetch(odd.url, options(odd)) == BODY


def test_logins_that_are_refused(odd: OddSftp, tmp_path: Path) -> None:
    wrong = "another pass phrase"
    assert wrong not in refused(AuthenticationFailed, odd.url, options(odd, password=wrong))
    refused(AuthenticationFailed, odd.url, options(odd, password=None))
    key = make_key(tmp_path / "key").read_text()
    refused(AuthenticationFailed, odd.url, options(odd, password=None, private_key=key))
    assert fetch(odd.url, options(odd, private_key=key)) == BODY, "the password is tried after the key"


def test_no_key_and_no_agent_of_the_mover_is_offered(
    sshd_pair: tuple[PrivateSshd, PrivateSshd], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """sshd would take this key, which lies where a user's own key lies."""
    sshd = sshd_pair[0]
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/id_ed25519").write_text(sshd.client_key.read_text())
    monkeypatch.setenv("HOME", str(tmp_path))
    host_key = " ".join(sshd.host_key.with_suffix(".pub").read_text().split()[:2])
    own = sshd.machine("m", "/").username
    given = {"username": own, "host_key": host_key}
    refused(AuthenticationFailed, f"sftp://127.0.0.1:{sshd.port}/etc/hostname", given)


def test_host_keys(odd: OddSftp, tmp_path: Path) -> None:
    mark = fingerprint(odd.key.asbytes())
    assert fetch(odd.url, options(odd, host_key=mark)) == BODY
    assert fetch(odd.url, options(odd, host_key=odd.host_key + " a comment")) == BODY
    other = " ".join(make_key(tmp_path / "other").with_suffix(".pub").read_text().split()[:2])
    assert mark in refused(HostKeyMismatch, odd.url, options(odd, host_key=other))
    refused(HostKeyMismatch, odd.url, options(odd, host_key="SHA256:" + "A" * 43))
    assert "host_key" in refused(HostKeyMismatch, odd.url, options(odd, host_key=None))


@pytest.mark.parametrize(
    ("lines", "trusted"),
    [
        ("{name} {key}\n", True),
        ("# nothing\nother {key}\n", False),
        ("{name} {key}\n@revoked {name} {key}\n", False),
        ("@cert-authority {name} {key}\n", False),
        ("", False),
    ],
)
def test_known_hosts_decide_without_a_host_key(odd: OddSftp, tmp_path: Path, lines: str, trusted: bool) -> None:
    known = tmp_path / "known_hosts"
    known.write_text(lines.format(name=f"[127.0.0.1]:{odd.port}", key=odd.host_key))
    terms, _ = parse_source(odd.url, "sftp", {"username": USER, "password": PASSWORD})
    assert isinstance(terms, SftpTerms)
    source = SftpSource(terms, SourceContext(ALLOWED, 2**30), known_hosts=[known])
    if not trusted:
        with pytest.raises(HostKeyMismatch), source.open():
            pass
        return
    with source.open() as download:
        assert download.size == len(BODY)


def test_secrets_are_not_shown(odd: OddSftp) -> None:
    source = open_source(odd.url, "sftp", options(odd), ALLOWED, max_size=2**30)
    assert PASSWORD not in repr(source)


# --- what can be asked for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"username": None}, InvalidRequest, "options.username"),
        ({"host_key": "ssh-ed25519"}, InvalidRequest, "options.host_key"),
        ({"host_key": "ssh-ed25519 AAAA"}, InvalidRequest, "options.host_key"),
        ({"host_key": "ssh-rsa " + base64.b64encode(b"\0\0\0\x0bssh-ed25519").decode()}, InvalidRequest, "host_key"),
        ({"private_key": "my secret key"}, InvalidRequest, "options.private_key"),
        ({"expect_type": "image/*"}, NotSupported, "expect_type"),
        ({"region": "eu"}, NotSupported, "region"),
        ({"colour": "red"}, InvalidRequest, "colour"),
    ],
)
def test_options_that_are_refused(
    odd: OddSftp, given: dict[str, Any], error: type[DataManagerError], says: str
) -> None:
    with pytest.raises(error, match=says) as caught:
        open_source(odd.url, "sftp", options(odd, **given), ALLOWED, max_size=2**30)
    assert "my secret key" not in caught.value.detail


@pytest.mark.parametrize(
    "url",
    [
        "sftp://user@h/a",
        "sftp://user:secret@h/a",
        "sftp://h/",
        "sftp://h",
        "sftp://h/a/",
        "sftp://h/a/..",
        "sftp://h/a?b",
        "sftp://h/a#b",
        "sftp://h/a%0ab",
        "sftp://h/a%00b",
        "sftp://h/a%zz",
        "sftp://h/a\\b",
        "sftp://h:99999/a",
        "sftp://0x7f.1/a",
        "sftp:///a",
        "sftp:a",
        "http://h/a",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(UrlNotAllowed) as caught:
        check_download(url, "sftp", {"username": "u", "password": "p"}, EgressGuard())
    assert "secret" not in caught.value.detail


def test_the_guard_stands_before_the_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.2)
        port = listener.getsockname()[1]
        refused(UrlNotAllowed, f"sftp://127.0.0.1:{port}/a", {"username": "u"}, guard=EgressGuard())
        with pytest.raises(TimeoutError):
            listener.accept()


# --- files --------------------------------------------------------------------------------------------------------


def test_paths_below_the_login_directory(odd: OddSftp) -> None:
    for path, asked in (("/~/a%20b", "a b"), ("//x/y", "//x/y"), ("/%C3%BC", "/ü")):
        fetch(odd.url.replace("/file", path), options(odd))
        assert odd.paths[-1] == asked


@pytest.mark.parametrize("kind", ["directory", "pipe", "nothing"])
def test_only_regular_files(sshd_pair: tuple[PrivateSshd, PrivateSshd], tmp_path: Path, kind: str) -> None:
    sshd = sshd_pair[0]
    if kind == "directory":
        (tmp_path / "x").mkdir()
    elif kind == "pipe":
        os.mkfifo(tmp_path / "x")
    host_key = " ".join(sshd.host_key.with_suffix(".pub").read_text().split()[:2])
    username = sshd.machine("m", "/").username
    given = {"username": username, "private_key": sshd.client_key.read_text(), "host_key": host_key}
    refused(SourceMissing, f"sftp://127.0.0.1:{sshd.port}{tmp_path}/x", given)


# --- servers that lie -------------------------------------------------------------------------------------------------


def test_short_reads_are_completed(odd: OddSftp) -> None:
    whole = honest(BODY)
    odd.read = lambda offset, length: whole(offset, min(length, 20_000 + offset % 11))
    assert fetch(odd.url, options(odd)) == BODY


def test_a_shorter_file_than_announced(odd: OddSftp) -> None:
    odd.size += 1
    refused(SizeMismatch, odd.url, options(odd))


def test_a_file_that_changes_while_it_is_read(odd: OddSftp) -> None:
    whole = honest(BODY)

    def read(offset: int, length: int) -> bytes | int:
        odd.mtime = 1_700_000_000
        return whole(offset, length)

    odd.read = read
    refused(SourceChanged, odd.url, options(odd))


def test_too_large_is_refused_before_a_byte_is_read(odd: OddSftp) -> None:
    odd.size = 2**30 + 1
    refused(TooLarge, odd.url, options(odd))


@pytest.mark.attack(cwe=130, title="An SFTP server answers reads with more than was asked for")
@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (SFTP_PERMISSION_DENIED, DownloadFailed),
        (SFTP_FAILURE, DownloadFailed),
        (b"x" * 40_000, DownloadFailed),
        (b"", SizeMismatch),
        (b"x" * 300_000, DownloadFailed),
    ],
    ids=["denied", "failure", "more than asked", "nothing", "a huge packet"],
)
def test_reads_that_are_answered_wrongly(odd: OddSftp, answer: bytes | int, error: type[DataManagerError]) -> None:
    odd.read = lambda _offset, _length: answer
    refused(error, odd.url, options(odd))


def test_a_file_that_may_not_be_read(odd: OddSftp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.odd_sftp._Files.stat", lambda _self, _path: SFTP_PERMISSION_DENIED)
    refused(PermissionDenied, odd.url, options(odd))


def test_a_server_that_stalls(odd: OddSftp) -> None:
    whole = honest(BODY)

    def read(offset: int, length: int) -> bytes | int:
        if offset > 10 * length:
            odd.ended.wait(20)
        return whole(offset, length)

    odd.read = read
    refused(TransportTimeout, odd.url, options(odd), read_timeout=0.5)


def test_a_server_that_drips(odd: OddSftp) -> None:
    def read(offset: int, _length: int) -> bytes | int:
        odd.ended.wait(0.02)
        return BODY[offset : offset + 1]

    odd.read = read
    refused(TransportTimeout, odd.url, options(odd), read_timeout=0.5)


def test_a_server_that_never_starts_sftp(odd: OddSftp) -> None:
    odd.subsystem = False
    source = open_source(odd.url, "sftp", options(odd), ALLOWED, max_size=1, connect_timeout=1, read_timeout=1)
    with pytest.raises(TransportTimeout), source.open():
        pass


@pytest.mark.parametrize("words", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-x\r\n"])
def test_no_ssh_server(words: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(words)

        thread = threading.Thread(target=serve)
        thread.start()
        source = open_source(
            f"sftp://127.0.0.1:{listener.getsockname()[1]}/a", "", {"username": "u"}, ALLOWED, max_size=1,
            connect_timeout=2, read_timeout=2,
        )  # fmt: skip
        with pytest.raises((ConnectionLost, TransportTimeout)), source.open():
            pass
        thread.join(30)
