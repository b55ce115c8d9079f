"""Options of http(s): what is sent to whom, what is refused; mirrors and files of checksums."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datamanager.engine.fetching import replica_fetch
from datamanager.errors import (
    ChecksumMismatch,
    ConnectionLost,
    DownloadFailed,
    InvalidRequest,
    NotSupported,
    TooLarge,
    TransportTimeout,
    UrlNotAllowed,
)
from datamanager.sources.download_terms import parse_download
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.registry import typed_options
from datamanager.sources.terms.source_options import secret_fields
from tests.support.authority import Authority
from tests.support.downloads import LOOPBACK, check_download, got, open_download, opened
from tests.support.fetcher import Fetcher
from tests.support.odd_http import OddServer, answer, ok, redirect

SECRET = "hunter2-s3cret"


@pytest.fixture
def fetcher(tmp_path: Path) -> Iterator[Fetcher]:
    made = Fetcher(tmp_path)
    yield made
    made.ends.storages.close()


# --- what is sent, and to whom ---------------------------------------------------------------------------------------

LOGINS: dict[str, tuple[dict[str, Any], str]] = {
    "basic": (
        {"username": "üser", "password": SECRET},
        f"Authorization: Basic {base64.b64encode(f'üser:{SECRET}'.encode()).decode()}\r\n",
    ),
    "token": ({"token": SECRET}, f"Authorization: Bearer {SECRET}\r\n"),
    "headers": ({"headers": {"X-Api-Key": SECRET, "Accept": "text/csv"}}, f"X-Api-Key: {SECRET}\r\n"),
    "own authorization": ({"headers": {"authorization": f"Token {SECRET}"}}, f"authorization: Token {SECRET}\r\n"),
}


@pytest.mark.parametrize("path", ["/%7Ea/b%2fc%2Fd", "/a%2f?x=%7e&y=~", "/a?", "/%2e%2E/a", "//a///b"])
@pytest.mark.parametrize("options", [{}, {"username": "u", "password": "p"}])
def test_a_path_is_sent_as_it_was_given(server: OddServer, path: str, options: dict[str, str]) -> None:
    server.answers[path] = [ok(b"abc")]
    server.answers["/moved"] = [redirect(path)]
    redirected = not path.startswith("//") and not path.endswith("?")  # another host; a query that nothing keeps
    for url in (server.url(path), *([server.url("/moved")] if redirected else [])):
        source = next(iter(open_download(url, "http", options, LOOPBACK, max_size=2**30).sources.values()))
        with source.open() as download:
            assert b"".join(bytes(block) for block in download.blocks()) == b"abc"
    assert server.heads[0].startswith(f"GET {path} HTTP/1.1\r\n")


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "br"])
def test_what_is_stored_encoded_is_what_it_is(server: OddServer, encoding: str) -> None:
    stored = gzip.compress(b"a,b\n" * 1000, mtime=0)
    server.answers["/a.csv.gz"] = [ok(stored, f"Content-Encoding: {encoding}")]
    server.answers["/SUMS"] = [ok(f"{hashlib.sha256(stored).hexdigest()}  a.csv.gz\n".encode())]
    url = server.url("/a.csv.gz")

    def got(**options: Any) -> bytes:
        opened = open_download(url, "http", options, LOOPBACK, max_size=2**30)
        opened.checksum()
        with next(iter(opened.sources.values())).open() as download:
            return b"".join(bytes(block) for block in download.blocks())

    assert got(raw=True) == stored
    assert got(checksum=f"sha256:{hashlib.sha256(stored).hexdigest()}") == stored
    assert got(checksum=server.url("/SUMS")) == stored
    with pytest.raises(DownloadFailed, match="raw: true, decompress"):
        got()
    if encoding == "br":
        with pytest.raises(DownloadFailed, match="raw: true, decompress"):
            got(decompress="gzip")
    else:
        assert got(decompress="gzip") == stored  # the engine decompresses it, once
    server.answers["/SUMS"] = [ok(stored, f"Content-Encoding: {encoding}")]
    with pytest.raises(DownloadFailed, match="not requested"):
        got(checksum=server.url("/SUMS"))


@pytest.mark.parametrize("login", LOGINS)
def test_logins_go_to_their_origin_only(server: OddServer, other: OddServer, login: str) -> None:
    options, line = LOGINS[login]
    server.answers["/"] = [redirect("/here")]
    server.answers["/here"] = [redirect(other.url("/there"))]
    other.answers["/there"] = [redirect(server.url("/back"))]
    server.answers["/back"] = [ok(b"abc")]
    assert got(server.url("/"), **options) == b"abc"
    assert [line in head for head in server.heads] == [True, True, True]
    assert [SECRET in head for head in other.heads] == [False]


def test_another_port_or_scheme_is_another_origin(server: OddServer, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with OddServer(tls=authority.server_context("127.0.0.1")) as secure:
        server.answers["/"] = [redirect(secure.url("/end"))]
        secure.answers["/end"] = [ok(b"abc")]
        assert got(server.url("/"), ca_file=authority.ca_file, token=SECRET) == b"abc"
        assert SECRET not in secure.heads[0]


def test_the_query_is_added_once_and_escaped(server: OddServer, other: OddServer) -> None:
    server.answers["/a?x=1&key=a%26b%3D%C3%BC"] = [redirect(other.url("/end"))]
    other.answers["/end"] = [ok(b"abc")]
    assert got(server.url("/a?x=1#frag"), query={"key": "a&b=ü"}) == b"abc"


@pytest.mark.parametrize(
    "name",
    [
        *("Host", "content-length", "Transfer-Encoding", "CONNECTION", "Range", "If-Range", "TE", "Upgrade", "Trailer"),
        *(
            "Proxy-Authorization",
            "Accept-Encoding",
            "Expect",
            "Keep-Alive",
            "If-None-Match",
            "X Y",
            "X:Y",
            "",
            "X\r\nY",
        ),
    ],
)
def test_headers_that_are_not_the_clients(name: str) -> None:
    with pytest.raises(InvalidRequest, match=r"options\.headers"):
        opened("http://h.example/", headers={name: "x"})


@pytest.mark.parametrize("value", ["a\r\nHost: evil", "a\nb", "a\0b", "ü", " a", "a ", "x" * 9000])
def test_header_values_that_can_not_be_sent(value: str) -> None:
    with pytest.raises(InvalidRequest, match=r"options\.headers") as caught:
        opened("http://h.example/", headers={"X-A": value})
    assert value not in caught.value.detail


WRONG: dict[str, dict[str, Any]] = {
    "a password alone": {"password": "p"},
    "two logins": {"username": "u", "token": "t"},
    "two logins, one a header": {"token": "t", "headers": {"Authorization": "x"}},
    "a colon": {"username": "a:b", "password": "p"},
    "lines in a token": {"token": "a\r\nX: y"},
    "no time": {"timeout": 0},
    "too much time": {"timeout": 1e9},
    "no number": {"timeout": "soon"},
    "too many tries": {"retries": 11},
    "a short checksum": {"checksum": "sha256:abc"},
    "an unknown checksum": {"checksum": "crc32:12345678"},
    "no type": {"expect_type": "nonsense"},
    "no certificate": {"client_cert": "nonsense"},
    "no authority": {"ca": "nonsense"},
    "no ASCII": {"ca": "nönsense"},
    "too many mirrors": {"mirrors": ["http://h.example/"] * 9},
    "a proxy for files": {"proxy": "socks5://h.example:1080"},
    "a proxy with a path": {"proxy": "http://h.example/a/b"},
    "a proxy's login without a proxy": {"proxy_username": "u"},
    "unverified TLS": {"verify_tls": False},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidRequest, match="options") as caught:
        opened("https://h.example/", **WRONG[name])
    assert all(field.startswith("options") for field in caught.value.fields)


def test_unknown_options_are_named() -> None:
    with pytest.raises(InvalidRequest, match=r"options.passwort: unknown; did you mean password\?"):
        opened("https://h.example/", passwort=SECRET)
    with pytest.raises(NotSupported, match="region is not supported by http"):
        opened("https://h.example/", region="eu-west-1")


def test_what_is_secret() -> None:
    given = {"username": "u", "password": "p", "headers": {"A": "1"}, "query": {"q": "2"}, "timeout": 5, "mirrors": []}
    typed = typed_options("https://h.example/", "http", given)
    assert secret_fields(typed) == {"password": "p", "headers": {"A": "1"}, "query": {"q": "2"}}
    assert typed_options("https://h.example/", "http", {**given, **secret_fields(typed)}) == typed
    assert "'p'" not in repr(typed)


# --- size, type, time ------------------------------------------------------------------------------------------------


def test_an_error_page_with_status_200_is_refused(server: OddServer) -> None:
    server.answers["/"] = [ok(b"<html>no</html>", "Content-Type: text/html; charset=utf-8")]
    server.answers["/nc"] = [ok(b"CDF", "Content-Type: Application/X-NetCDF")]
    server.answers["/none"] = [ok(b"CDF")]
    assert got(server.url("/nc"), expect_type="application/x-netcdf") == b"CDF"
    assert got(server.url("/nc"), expect_type="application/*") == b"CDF"
    for path in ("/", "/none"):
        with pytest.raises(DownloadFailed, match="expected 'application/"):
            got(server.url(path), expect_type="application/*")


def test_no_error_quotes_what_a_server_gives_back(server: OddServer) -> None:
    server.answers["/encoded"] = [ok(b"abc", f"Content-Encoding: {SECRET}")]
    server.answers["/typed"] = [ok(b"abc", f"Content-Type: {SECRET}")]
    for path in ("/encoded", "/typed"):
        with pytest.raises(DownloadFailed) as failed:
            got(server.url(path), token=SECRET, expect_type="image/*")
        assert SECRET not in failed.value.detail


@pytest.mark.parametrize("token", ["tök€n", "a b\u2003c", " t0ken"])
def test_a_token_that_can_not_be_sent(token: str) -> None:
    with pytest.raises(InvalidRequest, match=r"options\.token") as refused:
        opened("https://data.example/x", token=token)
    assert token not in refused.value.detail


def test_a_date_beyond_all_bounds_is_no_date(server: OddServer) -> None:
    late = f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT"
    server.answers["/"] = [ok(b"abc", f"Last-Modified: {late}", f"Date: {late}")]
    assert got(server.url("/")) == b"abc"


def test_max_size_is_for_what_is_unpacked_as_well(server: OddServer, fetcher: Fetcher) -> None:
    server.answers["/"] = [ok(gzip.compress(bytes(100_000)))]
    fetcher.refused(TooLarge, opened(server.url("/"), decompress="gzip", max_size=99_999))
    assert fetcher.attempt(opened(server.url("/"), decompress="gzip", max_size=100_000)) == bytes(100_000)


def test_over_tls_a_body_without_length_ends_with_close_notify_only(tmp_path: Path) -> None:
    def cut() -> Iterator[bytes]:
        yield answer("200 OK", body=b"abc")
        raise OSError("closed by somebody on the way")

    authority = Authority(tmp_path)
    with OddServer(tls=authority.server_context("127.0.0.1")) as secure:
        secure.answers["/"] = [answer("200 OK", body=b"abc")]
        assert got(secure.url("/"), ca_file=authority.ca_file) == b"abc"
        secure.answers["/"] = cut()
        with pytest.raises(ConnectionLost):
            got(secure.url("/"), ca_file=authority.ca_file)


def test_max_size_never_raises_the_operators(server: OddServer) -> None:
    server.answers["/"] = [ok(b"abcdef")]
    with pytest.raises(TooLarge):
        got(server.url("/"), max_size=5)
    (source,) = open_download(server.url("/"), "http", {"max_size": 100}, LOOPBACK, max_size=5).sources.values()
    with pytest.raises(TooLarge), source.open():
        pass


def test_timeout(server: OddServer) -> None:
    server.answers["/"] = [5.0]
    with pytest.raises(TransportTimeout):
        got(server.url("/"), timeout=0.3)


def test_the_size_said_twice_must_be_one() -> None:
    def size(asked: int | None) -> int | None:
        return parse_download("http://h.example/", "http", {"size": 7}, asked).size

    assert (size(None), size(7)) == (7, 7)
    with pytest.raises(InvalidRequest, match=r"options\.size"):
        size(8)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("attachment; filename=a.nc", "a.nc"),
        ('attachment; filename="../../etc/pass wd"', "../../etc/pass wd"),
        ("attachment; filename=plain.nc; filename*=UTF-8''%e2%82%ac.nc", "€.nc"),
        ("inline", None),
        ("attachment; filename=", None),
        ("attachment; filename*=idna''a%ff", None),
        ("attachment; filename*=a\0b''x", None),
        (f"attachment; filename*{'9' * 5000}*=utf-8''a", None),
        ("a;" * 20_000, None),
    ],
)
def test_the_name_that_a_server_suggests(server: OddServer, header: str, name: str | None) -> None:
    server.answers["/"] = [ok(b"abc", f"Content-Disposition: {header}", "Content-Type: text/plain")]
    (source,) = opened(server.url("/")).sources.values()
    with source.open() as download:
        assert (download.filename, download.content_type) == (name, "text/plain")


# --- checksums and mirrors -------------------------------------------------------------------------------------------

BODY = b"the right bytes"
SHA256, MD5 = hashlib.sha256(BODY).hexdigest(), hashlib.md5(BODY).hexdigest()
SUMS: dict[str, str] = {
    "sha256sum": f"{'0' * 64}  other.nc\n{SHA256}  data set.nc\n",
    "binary, in a directory": f"{SHA256} *./2026/data set.nc\n",
    "md5sum": f"{MD5}  data set.nc\n",
    "BSD": f"SHA256 (data set.nc) = {SHA256.upper()}\n",
    "both kinds": f"MD5 (data set.nc) = {'0' * 32}\nSHA256 (data set.nc) = {SHA256}\n",
    "a lone digest": f"{SHA256}\n",
    "with comments": f"# made by hand\n\n{SHA256}  data set.nc\r\n",
}


@pytest.mark.parametrize("form", SUMS)
def test_a_file_of_checksums(server: OddServer, fetcher: Fetcher, form: str) -> None:
    server.answers["/data%20set.nc"] = [ok(BODY)]
    server.answers["/SUMS"] = [ok(SUMS[form].encode())]
    assert fetcher.attempt(opened(server.url("/data%20set.nc"), checksum=server.url("/SUMS"))) == BODY


def test_a_file_of_checksums_that_does_not_help(server: OddServer, fetcher: Fetcher) -> None:
    server.answers["/data.nc"] = [ok(BODY)]
    for sums, error in (
        (f"{SHA256}  other.nc\n", DownloadFailed),
        (f"{SHA256}  data.nc\n{'0' * 64}  data.nc\n", DownloadFailed),
        (f"{'0' * 64}  data.nc\n", ChecksumMismatch),
        ("<html>", DownloadFailed),
        (f"{SHA256}  data.nc\n" + " " * 2**20, TooLarge),
    ):
        server.answers["/SUMS"] = [ok(sums.encode())]
        fetcher.refused(error, opened(server.url("/data.nc"), checksum=server.url("/SUMS")))
    fetcher.refused(DownloadFailed, opened(server.url("/data.nc"), checksum=server.url("/nothing")))


def test_checksum_file_and_mirrors_elsewhere_get_no_login(
    server: OddServer, other: OddServer, fetcher: Fetcher
) -> None:
    server.answers["/data.nc"] = [answer("503 Away", "Content-Length: 0")]
    other.answers["/data.nc"] = [ok(BODY)]
    other.answers["/SUMS"] = [ok(f"{SHA256}  data.nc\n".encode())]
    urls: dict[str, Any] = {"checksum": other.url("/SUMS"), "mirrors": [other.url("/data.nc")]}
    login: dict[str, Any] = {"username": "me", "password": SECRET, "headers": {"X-Key": SECRET}}
    assert fetcher.attempt(opened(server.url("/data.nc"), **urls, **login)) == BODY
    assert all(SECRET in head and "Authorization" in head for head in server.heads)
    assert len(other.heads) == 2
    assert not any(SECRET in head or "Authorization" in head for head in other.heads)


def test_the_names_of_places_tell_nothing_and_stay_the_same() -> None:
    def names(one: str, two: str) -> list[str]:
        return list(opened(f"http://h.example/x?token={one}", mirrors=[f"http://m.example/x?token={two}"]).sources)

    assert names("a", "b") == names("c", "d"), "nobody can try passwords on what is kept of a checkpoint"
    assert len(set(names("a", "a"))) == 2
    assert names("a", "b") != list(opened("http://h.example/y").sources)


def test_every_mirror_passes_the_guard(server: OddServer, other: OddServer, fetcher: Fetcher) -> None:
    guard = EgressGuard([f"127.0.0.1:{server.port}"])
    wanted: list[dict[str, Any]] = [{"mirrors": [other.url("/")]}, {"checksum": other.url("/SUMS")}]
    for options in wanted:
        with pytest.raises(UrlNotAllowed):
            check_download(server.url("/data.nc"), "http", options, guard)
        # also where nobody looked before: the first one answers 404, the file of checksums is asked first
        fetcher.refused(UrlNotAllowed, opened(server.url("/data.nc"), guard, **options))
    with pytest.raises(UrlNotAllowed):
        opened(server.url("/data.nc"), mirrors=["file:///etc/passwd"])
    assert other.connections == 0


def test_mirrors_are_not_tried_for_the_clients_faults(server: OddServer, other: OddServer, fetcher: Fetcher) -> None:
    server.answers["/data.nc"] = [ok(BODY)]
    other.answers["/data.nc"] = [ok(BODY)]
    fetcher.refused(TooLarge, opened(server.url("/data.nc"), mirrors=[other.url("/data.nc")], max_size=3))
    assert other.connections == 0


def test_the_last_mirrors_failure_is_told(server: OddServer, fetcher: Fetcher) -> None:
    server.answers["/a"] = [answer("404 Gone", "Content-Length: 0")]
    server.answers["/b"] = [ok(b"others")]
    checksum = f"sha256:{SHA256}"
    fetching = opened(server.url("/a"), mirrors=[server.url("/b"), server.url("/c")], checksum=checksum)
    assert "404" in fetcher.refused(DownloadFailed, fetching).detail
    assert [head.split(" ")[1] for head in server.heads] == ["/a", "/b", "/c"]


def test_a_resume_stays_with_its_mirror(
    server: OddServer, other: OddServer, fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica_fetch, "CHECKPOINT_EVERY", 0.0)
    body = bytes(range(256)) * 16384
    tag = 'ETag: "x"'
    server.answers["/"] = [answer("503 Away", "Content-Length: 0")]
    other.answers["/"] = [
        answer("200 OK", f"Content-Length: {len(body)}", tag, "Accept-Ranges: bytes", body=body[:-99])
    ]
    fetching = opened(server.url("/"), mirrors=[other.url("/")])
    with pytest.raises(ConnectionLost):
        fetcher.attempt(fetching)
    assert fetcher.marker is not None
    server.answers["/"] = [ok(body)]  # back again, but the bytes that are stored are the mirror's
    start = fetcher.marker.done - replica_fetch.TAIL
    said = f"Content-Range: bytes {start}-{len(body) - 1}/{len(body)}"
    other.answers["/"] = [
        answer("206 Partial Content", f"Content-Length: {len(body) - start}", said, tag, body=body[start:])
    ]
    assert fetcher.attempt(fetching) == body
    assert len(server.heads) == 1
