"""s3 as a source: addresses, signatures that a real server checks, and S3's own errors."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from datamanager.errors import (
    AuthenticationFailed,
    DataManagerError,
    DownloadFailed,
    InvalidRequest,
    PermissionDenied,
    SourceMissing,
    UrlNotAllowed,
)
from datamanager.sources.http.s3 import object_url
from datamanager.sources.network.egress_guard import EgressGuard
from tests.support import rclone
from tests.support.downloads import check_download, open_source
from tests.support.odd_http import OddServer, answer, ok, redirect

BODY = random.Random(3).randbytes(2**20 + 5)
ALLOWED = EgressGuard(["127.0.0.0/8"])
SECRET = "the/secret+of/a/test"
KEYS = {"access_key": "AKTEST", "secret_key": SECRET}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[rclone.Rclone]:
    with rclone.s3(tmp_path_factory.mktemp("s3")) as running:
        (running.root / "bucket").mkdir()
        (running.root / "bucket" / "file").write_bytes(BODY)
        yield running


@pytest.fixture
def odd() -> Iterator[OddServer]:
    with OddServer() as running:
        yield running


def fetch(url: str, options: dict[str, Any], *part: int, guard: EgressGuard = ALLOWED) -> bytes:
    source = open_source(url, "", options, guard, max_size=2**30, connect_timeout=10, read_timeout=10)
    with source.open(*part) as download:
        return b"".join(bytes(block) for block in download.blocks())


def of(server: rclone.Rclone, **others: Any) -> dict[str, Any]:
    keys = {"access_key": rclone.ACCESS_KEY, "secret_key": rclone.SECRET_KEY}
    return {"endpoint": f"http://127.0.0.1:{server.port}", **keys, **others}


# --- where an object is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "endpoint", "region", "there"),
    [
        ("s3://b-1/k", None, "us-east-1", "https://b-1.s3.us-east-1.amazonaws.com/k"),
        ("s3://b-1/a/b%20c", None, "eu-west-1", "https://b-1.s3.eu-west-1.amazonaws.com/a/b%20c"),
        ("s3://b.c/k", None, "eu-west-1", "https://s3.eu-west-1.amazonaws.com/b.c/k"),
        ("s3://Old_1/k", None, "us-east-1", "https://s3.us-east-1.amazonaws.com/Old_1/k"),
        ("s3://bkt/k", None, "cn-north-1", "https://bkt.s3.cn-north-1.amazonaws.com.cn/k"),
        ("s3://b-1/k?versionId=a%2Fb", None, "us-east-1", "https://b-1.s3.us-east-1.amazonaws.com/k?versionId=a%2Fb"),
        ("s3://b-1/k%3Fx", "minio.example:9000", "us-east-1", "https://minio.example:9000/b-1/k%3Fx"),
        ("s3://b-1//k", "http://h/base/", "us-east-1", "http://h/base/b-1//k"),
        ("s3://b-1/%C3%BC+&", "https://h", "us-east-1", "https://h/b-1/%C3%BC%2B%26"),
    ],
)
def test_where_an_object_is(url: str, endpoint: str | None, region: str, there: str) -> None:
    assert object_url(url, endpoint, region) == there


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket",
        "s3://bucket/",
        "s3://bucket/a/",
        "s3:///key",
        "s3://key:secret@bucket/key",
        "s3://bucket:80/key",
        "s3://bucket/a/../../other/key",
        "s3://bucket/a/%2e%2e/b",
        "s3://bucket/a?acl",
        "s3://bucket/a?versionId=1&acl=",
        "s3://bucket/a#b",
        "s3://bucket/a%0a",
        "s3://169.254.169.254#/key",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(UrlNotAllowed) as caught:
        open_source(url, "s3", KEYS, ALLOWED, max_size=1)
    assert "secret" not in caught.value.detail.replace("secret_key", "")


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({}, "access_key"),
        ({"access_key": "a"}, "secret_key"),
        ({**KEYS, "unsigned": True}, "unsigned"),
        ({**KEYS, "region": "a b"}, "region"),
        ({**KEYS, "region": "x.evil.example/"}, "region"),
        ({**KEYS, "endpoint": "ftp://h"}, "endpoint"),
        ({**KEYS, "endpoint": "https://u:p@h"}, "endpoint"),
        ({**KEYS, "endpoint": "https://h/?x"}, "endpoint"),
        ({**KEYS, "session_token": "a\nb"}, "session_token"),
        ({**KEYS, "verify_tls": False}, "verify_tls"),
        ({**KEYS, "ca": "none"}, "ca"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        open_source("s3://bucket/key", "s3", options, ALLOWED, max_size=1)
    assert list(caught.value.fields) == [f"options.{field}"]
    assert SECRET not in caught.value.detail


def test_the_guard_checks_the_endpoint(odd: OddServer) -> None:
    options = {"endpoint": odd.url(""), **KEYS}
    with pytest.raises(UrlNotAllowed):
        check_download("s3://bucket/key", "s3", options, EgressGuard())
    source = open_source("s3://bucket/key", "s3", options, EgressGuard(), max_size=1)
    with pytest.raises(UrlNotAllowed), source.open():
        pass
    assert odd.connections == 0
    assert SECRET not in repr(source)


# --- signatures -----------------------------------------------------------------------------------------------------


@pytest.mark.server
def test_signed_objects_and_parts(server: rclone.Rclone) -> None:
    assert fetch("s3://bucket/file", of(server)) == BODY
    assert fetch("s3://bucket/file", of(server, region="eu-west-1"), 5, 500) == BODY[5:500]


@pytest.mark.server
def test_wrong_keys(server: rclone.Rclone) -> None:
    for wrong in ({"secret_key": SECRET}, {"access_key": "AKOTHER"}):
        with pytest.raises(AuthenticationFailed) as caught:
            fetch("s3://bucket/file", of(server, **wrong))
        assert SECRET not in caught.value.detail


@pytest.mark.server
def test_a_key_is_signed_as_it_is_and_not_normalised(server: rclone.Rclone) -> None:
    """rclone keeps no such keys; but it looks at the signature first."""
    with pytest.raises(DownloadFailed, match="400 InvalidArgument"):
        fetch("s3://bucket/a//b", of(server))


def test_public_buckets_are_asked_without_a_signature(tmp_path: Path, odd: OddServer) -> None:
    with rclone.s3(tmp_path, keys=False) as public:
        (public.root / "bucket").mkdir()
        (public.root / "bucket" / "file").write_bytes(BODY)
        options = {"endpoint": f"http://127.0.0.1:{public.port}", "unsigned": True}
        assert fetch("s3://bucket/file", options) == BODY
    odd.answers["/bucket/key"] = [ok(b"abc")]
    assert fetch("s3://bucket/key", {"endpoint": odd.url(""), "unsigned": True}) == b"abc"
    assert "authorization" not in odd.heads[0].lower()
    assert "x-amz" not in odd.heads[0].lower()


def test_session_tokens_are_sent_and_signed(odd: OddServer) -> None:
    odd.answers["/bucket/key"] = [ok(b"abc")]
    assert fetch("s3://bucket/key", {"endpoint": odd.url(""), **KEYS, "session_token": "TOKEN"}) == b"abc"
    head = odd.heads[0].lower()
    assert "x-amz-security-token: token" in head
    assert "signedheaders=host;x-amz-content-sha256;x-amz-date;x-amz-security-token" in head
    assert SECRET not in odd.heads[0]


# --- errors -----------------------------------------------------------------------------------------------------------


def error(status: str, code: str, *headers: str, more: str = "") -> bytes:
    body = f'<?xml version="1.0"?>\n<Error><Code>{code}</Code><Message>{SECRET}</Message>{more}</Error>'.encode()
    return answer(status, f"Content-Length: {len(body)}", *headers, body=body)


ERRORS: dict[str, tuple[bytes, type[DataManagerError], bool, str]] = {
    "no key": (error("404 Not Found", "NoSuchKey"), SourceMissing, False, "NoSuchKey"),
    "no bucket": (error("404 Not Found", "NoSuchBucket"), SourceMissing, False, "NoSuchBucket"),
    "404 of a proxy": (answer("404 Not Found", "Content-Length: 0"), SourceMissing, False, "404"),
    "denied": (error("403 Forbidden", "AccessDenied"), PermissionDenied, False, "AccessDenied"),
    "expired": (error("400 Bad Request", "ExpiredToken"), AuthenticationFailed, False, "ExpiredToken"),
    "clock": (error("403 Forbidden", "RequestTimeTooSkewed"), AuthenticationFailed, False, "clock"),
    "archived": (error("403 Forbidden", "InvalidObjectState"), DownloadFailed, False, "archive"),
    "slow down": (error("503 Slow Down", "SlowDown"), DownloadFailed, True, "SlowDown"),
    "their timeout": (error("400 Bad Request", "RequestTimeout"), DownloadFailed, True, "RequestTimeout"),
    "nothing known": (error("400 Bad Request", "Whatever"), DownloadFailed, False, "Whatever"),
    "region, in a header": (
        error("301 Moved Permanently", "PermanentRedirect", "x-amz-bucket-region: eu-north-1"),
        DownloadFailed,
        False,
        "region eu-north-1",
    ),
    "region, in the text": (
        error("400 Bad Request", "AuthorizationHeaderMalformed", more="<Region>ap-south-1</Region>"),
        DownloadFailed,
        False,
        "region ap-south-1",
    ),
    "an odd region": (
        error("301 Moved Permanently", "PermanentRedirect", "x-amz-bucket-region: <b>\x7f"),
        DownloadFailed,
        False,
        "another region",
    ),
    "no text": (answer("403 Forbidden", "Content-Length: 3", body=b"\xff\xff\xff"), PermissionDenied, False, "403"),
    "a text without end": (answer("403 Forbidden", body=b"<Code>" * 200_000), PermissionDenied, False, "403"),
    "a part that is another one": (
        answer("200 OK", "Content-Length: 3", "Content-Range: bytes 7-9/10", body=b"abc"),
        DataManagerError,
        False,
        "bytes 7 to 9",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors_of_s3(odd: OddServer, name: str) -> None:
    steps, kind, retryable, says = ERRORS[name]
    odd.answers["/bucket/key"] = [steps]
    part = (5, 8) if name.startswith("a part") else ()
    with pytest.raises(kind) as caught:
        fetch("s3://bucket/key", {"endpoint": odd.url(""), **KEYS}, *part)
    assert says in caught.value.detail
    assert caught.value.retryable is retryable
    assert SECRET not in caught.value.detail


def test_redirects_are_not_followed(odd: OddServer) -> None:
    odd.answers["/bucket/key"] = [redirect(odd.url("/elsewhere"), "307 Temporary Redirect")]
    odd.answers["/elsewhere"] = [ok(b"abc")]
    with pytest.raises(DownloadFailed, match="region"):
        fetch("s3://bucket/key", {"endpoint": odd.url(""), **KEYS})
    assert odd.connections == 1
