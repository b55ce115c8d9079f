"""s3: one GetObject from AWS, or from any server that speaks S3 (MinIO, Ceph), over the guarded HTTP source.

`s3://bucket/key`, percent-decoded; `?versionId=…` asks for one version. Requests are signed (AWS Signature Version 4)
by requests-aws4auth, or, for public buckets, not at all. Redirects to other regions are not followed: the error names
the region.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any, Self
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlsplit

import requests
from requests.auth import AuthBase
from requests_aws4auth import AWS4Auth

from datamanager.errors import (
    AuthenticationFailed,
    DataManagerError,
    DownloadFailed,
    PermissionDenied,
    SourceMissing,
    UrlNotAllowed,
)
from datamanager.sources.http.answer import RangeRequest, retry_after
from datamanager.sources.http.client import HttpTerms
from datamanager.sources.network.connections import translated
from datamanager.sources.network.tls import Trust
from datamanager.sources.terms.source_options import S3Options, option_error, plain_text
from datamanager.sources.terms.urls import parse_target, public_url, require_plain

DEFAULT_REGION = "us-east-1"
ERROR_MAX = 64 * 1024
"""Bytes of an error's document that are searched."""

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")
_HOST_BUCKET = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
"""A bucket that can be a host's name under a certificate for `*.s3.….amazonaws.com`."""
_REGION = re.compile(r"[a-z0-9-]{1,40}")
# not an XML parser, which a hostile document could keep busy without end
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


class S3Auth(AuthBase):
    """Signs each request anew; safe to share between threads."""

    def __init__(self, access_key: str, secret_key: str, region: str, session_token: str | None) -> None:
        self._signer = partial(_Signer, access_key, secret_key, region, "s3", session_token=session_token)

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        """Add the signature: made by a signer of its own, because the library's keep state."""
        signed: requests.PreparedRequest = self._signer()(request)
        return signed


class _Signer(AWS4Auth):  # type: ignore[misc]  # it has no types
    """The library's signer, with the path as S3 wants it: not normalised, since `a//b` and `a/b` are two keys."""

    def amz_cano_path(self, path: str) -> str:
        return quote(unquote_to_bytes(path), safe="/~")


class S3Terms(HttpTerms):
    """One object of a bucket, with its options, parsed."""

    @classmethod
    def parse(cls, url: str, options: Any) -> Self:
        """Return the terms of a URL with these options (S3Options).

        Raises: UrlNotAllowed, InvalidRequest (keys that do not fit together, a region or an endpoint that can't be).
        """
        region = options.region or DEFAULT_REGION
        if not _REGION.fullmatch(region):
            raise option_error("region", "must be like eu-west-1")
        auth = _auth(options, region)
        return cls(
            parse_target(object_url(url, options.endpoint, region)),
            auth=auth,
            trust=Trust.of(options),
            expect_type=options.expect_type,
            encodings=options.encodings,
        )

    def refusal(self, response: requests.Response, wanted: RangeRequest, shown: str) -> DataManagerError | None:
        """Return S3's own errors; no redirect is followed, whose signature would be another one."""
        sound = (requests.codes.ok, requests.codes.partial, requests.codes.requested_range_not_satisfiable)
        if response.status_code not in sound:
            return refusal(response, shown)
        if wanted.partial and response.status_code == requests.codes.ok and "Content-Range" in response.headers:
            # rclone's server answers 200 to a range; which range it sends is checked as ever
            response.status_code = requests.codes.partial
        return None


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
            raise option_error("endpoint", f"must be like https://host:port ({exc.detail})") from exc
        if "?" in base or "#" in base:
            raise option_error("endpoint", "must be like https://host:port, without query")
        return f"{base.rstrip('/')}/{bucket}/{path}{query}"
    domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
    if _HOST_BUCKET.fullmatch(bucket):
        return f"https://{bucket}.s3.{region}.{domain}/{path}{query}"
    return f"https://s3.{region}.{domain}/{bucket}/{path}{query}"


def _parts(url: str) -> tuple[str, bytes, str | None]:
    """Return bucket, key and version. Raises: UrlNotAllowed."""
    shown = public_url(url)
    require_plain(url)
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
        raise UrlNotAllowed(f"the URL {shown} does not name a bucket; it must be like s3://bucket/key")
    if parts.fragment or url.endswith("#") or [name for name, _ in query] not in ([], ["versionId"]):
        raise UrlNotAllowed("an s3 URL may have the query versionId and nothing else; write ? as %3F and # as %23")
    key = unquote_to_bytes(parts.path[1:])
    if not key or key.endswith(b"/") or any(byte < 0x20 or byte == 0x7F for byte in key):
        raise UrlNotAllowed(f"the URL {shown} does not name an object, or its key contains control characters")
    if {b".", b".."} & set(key.split(b"/")):
        raise UrlNotAllowed("keys with . or .. between slashes cannot be requested")
    return parts.netloc, key, query[0][1] if query else None


def _auth(options: S3Options, region: str) -> S3Auth | None:
    """Return what signs requests; None: unsigned. Raises: InvalidRequest."""
    if options.unsigned:
        if options.access_key or options.secret_key or options.session_token:
            raise option_error("unsigned", "can't be true when keys are given")
        return None
    if not options.access_key:
        raise option_error("access_key", "is needed, with secret_key; for public buckets give unsigned: true")
    if options.secret_key is None:
        raise option_error("secret_key", "is needed with access_key")
    if not all(char.isprintable() and char.isascii() for char in options.access_key):
        raise option_error("access_key", "must be printable ASCII")
    token = plain_text(options.session_token)
    if token is not None and not (token.isascii() and token.isprintable()):
        raise option_error("session_token", "must be printable ASCII")
    return S3Auth(options.access_key, options.secret_key.get_secret_value(), region, token)


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
    return DownloadFailed(told, retryable=retryable, again=retry_after(status, response.raw.headers))


def _beginning(response: requests.Response) -> Iterator[bytes]:
    left = ERROR_MAX
    while left > 0 and (piece := response.raw.read1(left, decode_content=False)):
        left -= len(piece)
        yield piece
