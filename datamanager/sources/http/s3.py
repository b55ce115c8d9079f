"""s3: one GetObject from AWS, or from any server that speaks S3 (MinIO, Ceph), over the guarded HTTP source.

`s3://bucket/key`, percent-decoded; `?versionId=…` asks for one version. Requests are signed (AWS Signature Version 4)
by requests-aws4auth, or, for public buckets, not at all. Redirects to other regions are not followed: the error names
the region.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlsplit

import requests
from requests.auth import AuthBase
from requests_aws4auth import AWS4Auth

from datamanager.errors import (
    AuthenticationFailed,
    DataManagerError,
    DownloadFailed,
    InvalidRequest,
    PermissionDenied,
    SourceMissing,
    UrlNotAllowed,
)
from datamanager.sources.http.answer import Asked, HttpDownload
from datamanager.sources.http.client import HttpSource
from datamanager.sources.network.connection_errors import translated
from datamanager.sources.network.egress_guard import EgressGuard
from datamanager.sources.network.tls import Trust
from datamanager.sources.terms.options import HttpOptions, S3Options
from datamanager.sources.terms.urls import MAX_URL, Target, parse_target, public_url

DEFAULT_REGION = "us-east-1"
ERROR_MAX = 64 * 1024
"""Bytes of an error's document that are looked at."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_HOST_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
"""A bucket that can be a host's name under a certificate for `*.s3.….amazonaws.com`."""
_REGION = re.compile(r"[a-z0-9-]{1,40}")
# not an XML parser: what a stranger sends could make it work without end
_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")
_RIGHT_REGION = re.compile(rb"<Region>([a-z0-9-]{1,40})</Region>")
_MISSING = frozenset({"NoSuchKey", "NoSuchBucket", "NoSuchVersion"})
_LOGIN = frozenset(
    {
        *("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"),
        *("RequestTimeTooSkewed", "InvalidSecurity", "AccountProblem", "MissingSecurityHeader"),
    }
)
_ELSEWHERE = frozenset({"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "Redirect"})
_LATER = frozenset({"SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "OperationAborted"})


@dataclass(frozen=True, slots=True)
class Keys:
    """Whose requests they are."""

    access_key: str
    secret_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


class S3Auth(AuthBase):
    """Signs each request anew; safe to share between threads."""

    def __init__(self, keys: Keys, region: str) -> None:
        self._keys = keys
        self._region = region

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the signature: made by a signer of its own, because the library's keep state."""
        keys = self._keys
        signer = _Signer(keys.access_key, keys.secret_key, self._region, "s3", session_token=keys.session_token)
        signed: requests.PreparedRequest = signer(request)
        return signed


class _Signer(AWS4Auth):  # type: ignore[misc]  # it has no types
    """The library's signer, with the path as S3 wants it: not normalised, since `a//b` and `a/b` are two keys."""

    def amz_cano_path(self, path: str) -> str:
        return quote(unquote_to_bytes(path), safe="/~")


class _Objects(HttpSource):
    """The HTTP source with S3's own errors; it follows no redirect, whose signature would be another one."""

    def _get(self, target: Target, asked: Asked, *, trusted: bool) -> requests.Response:
        response = super()._get(target, asked, trusted=trusted)
        sound = (requests.codes.ok, requests.codes.partial, requests.codes.requested_range_not_satisfiable)
        if response.status_code in sound:
            if asked.partial and response.status_code == requests.codes.ok and "Content-Range" in response.headers:
                # rclone's server answers 200 and means it: which part it sends is checked as ever
                response.status_code = requests.codes.partial
            return response
        try:
            raise refusal(response, public_url(target.url))
        finally:
            response.close()
            response.connection.close()


@dataclass(frozen=True, slots=True)
class S3Source:
    """One object of a bucket."""

    source: HttpSource

    @classmethod
    def of(
        cls,
        url: str,
        options: S3Options,
        *,
        guard: EgressGuard,
        max_size: int,
        connect_timeout: float,
        read_timeout: float,
        ca_file: Path | None,
    ) -> S3Source:
        """Return the source for a URL with these options.

        Raises: UrlNotAllowed, InvalidRequest (keys that do not fit together, a region or an endpoint that can't be).
        """
        region = options.region or DEFAULT_REGION
        if not _REGION.fullmatch(region):
            _refuse("region", "must be like eu-west-1")
        keys = _keys(options)
        source = _Objects(
            object_url(url, options.endpoint, region),
            guard,
            max_size,
            connect_timeout,
            read_timeout,
            ca_file,
            auth=None if keys is None else S3Auth(keys, region),
            trust=Trust.of(HttpOptions(ca=options.ca, verify_tls=options.verify_tls)),
            expect_type=options.expect_type,
        )
        return cls(source)

    def check(self) -> None:
        """Refuse an endpoint where downloads may not go. Raises: UrlNotAllowed."""
        self.source.check()

    def open(
        self, start: int = 0, stop: int | None = None, *, version: str | None = None
    ) -> AbstractContextManager[HttpDownload]:
        """Ask for the object; see Source.open."""
        return self.source.open(start, stop, version=version)


def object_url(url: str, endpoint: str | None, region: str) -> str:
    """Return the http(s) URL of `s3://bucket/key`: below the endpoint's path, or at AWS with the bucket as host.

    Raises: UrlNotAllowed, InvalidRequest.
    """
    bucket, key, version = _parts(url)
    path, query = quote(key, safe="/~"), f"?versionId={quote(version, safe='')}" if version else ""
    if endpoint is not None:
        base = endpoint if "://" in endpoint else f"https://{endpoint}"
        try:
            parse_target(base)
        except UrlNotAllowed as exc:
            _refuse("endpoint", f"must be like https://host:port ({exc.detail})")
        if "?" in base or "#" in base:
            _refuse("endpoint", "must be like https://host:port, without query")
        return f"{base.rstrip('/')}/{bucket}/{path}{query}"
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    if _HOST_BUCKET.fullmatch(bucket):
        return f"https://{bucket}.s3.{region}.{domain}/{path}{query}"
    return f"https://s3.{region}.{domain}/{bucket}/{path}{query}"


def _parts(url: str) -> tuple[str, bytes, str | None]:
    """Return bucket, key and version. Raises: UrlNotAllowed."""
    shown = public_url(url)
    if len(url) > MAX_URL or "\\" in url or not all(char.isprintable() for char in url):
        raise UrlNotAllowed(f"the URL is longer than {MAX_URL} characters, or holds control characters or backslashes")
    try:
        parts = urlsplit(url)
        query = (
            parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True, max_num_fields=2) if parts.query else []
        )
    except ValueError:
        raise UrlNotAllowed(f"the URL {shown} is malformed") from None
    if "@" in parts.netloc:
        raise UrlNotAllowed("credentials in the URL are not supported; use the options access_key and secret_key")
    if not _BUCKET.fullmatch(parts.netloc):
        raise UrlNotAllowed(f"the URL {shown} names no bucket; it must be like s3://bucket/key")
    if parts.fragment or url.endswith("#") or [name for name, _ in query] not in ([], ["versionId"]):
        raise UrlNotAllowed("an s3 URL may have the query versionId and nothing else; write ? as %3F and # as %23")
    key = unquote_to_bytes(parts.path[1:])
    if not key or key.endswith(b"/") or any(byte < 0x20 or byte == 0x7F for byte in key):
        raise UrlNotAllowed(f"the URL {shown} names no object, or its key holds control characters")
    if {b".", b".."} & set(key.split(b"/")):
        raise UrlNotAllowed("keys with . or .. between slashes can't be asked for")
    return parts.netloc, key, query[0][1] if query else None


def _keys(options: S3Options) -> Keys | None:
    """Return the keys to sign with; None: unsigned. Raises: InvalidRequest."""
    if options.unsigned:
        if options.access_key or options.secret_key or options.session_token:
            _refuse("unsigned", "can't be true when keys are given")
        return None
    if not options.access_key:
        _refuse("access_key", "is needed, with secret_key; for public buckets give unsigned: true")
    if options.secret_key is None:
        _refuse("secret_key", "is needed with access_key")
    if not all(char.isprintable() and char.isascii() for char in options.access_key):
        _refuse("access_key", "must be printable ASCII")
    token = None if options.session_token is None else options.session_token.get_secret_value()
    if token is not None and not (token.isascii() and token.isprintable()):
        _refuse("session_token", "must be printable ASCII")
    return Keys(options.access_key, options.secret_key.get_secret_value(), token)


def _refuse(option: str, why: str) -> NoReturn:
    raise InvalidRequest(f"options.{option}: {why}", {f"options.{option}": why})


def refusal(response: requests.Response, shown: str) -> DataManagerError:
    """Return the error for an answer that is no object: S3's code, and the status where there is none."""
    status = response.status_code
    with translated(shown):
        document = b"".join(_beginning(response))
    match = _CODE.search(document)
    code = match[1].decode() if match else ""
    told = f"{shown} answered {status} {code}".rstrip()
    if code in _ELSEWHERE or 300 <= status < 400:
        region = response.headers.get("x-amz-bucket-region", "")
        if not _REGION.fullmatch(region):
            found = _RIGHT_REGION.search(document)
            region = found[1].decode() if found else ""
        where = f"in the region {region}" if region else "in another region, or at another endpoint"
        return DownloadFailed(f"{told}: the bucket is {where}; give it as the option region")
    if code in _MISSING or (status == requests.codes.not_found and not code):
        return SourceMissing(f"{told}: there is no such object")
    if code in _LOGIN or status == requests.codes.unauthorized:
        return AuthenticationFailed(f"{told}: the keys, the session token or the clock are not accepted")
    if code == "InvalidObjectState":
        return DownloadFailed(f"{told}: the object is in an archive and has to be restored there first")
    if status == requests.codes.forbidden:
        return PermissionDenied(f"{told}: the object may not be read")
    retryable = status >= 500 or status in (408, 429) or code in _LATER
    return DownloadFailed(told, retryable=retryable)


def _beginning(response: requests.Response) -> Iterator[bytes]:
    left = ERROR_MAX
    while left > 0 and (piece := response.raw.read1(left, decode_content=False)):
        left -= len(piece)
        yield piece
